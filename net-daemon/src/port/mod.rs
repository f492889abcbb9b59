//! Ports: where frames go to and come from on the host's side.
//!
//! A [`Port`] is the interface as a whole and stays with the device. Its [`PortQueue`]s, one for each queue
//! pair, are what a worker reads and writes; they are shared by `Arc` so that the device can attach and detach
//! them while the worker owns its pair.

use std::fmt::Debug;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::net::config::Mac;
use crate::state::{Exporter, Importer, StateError};
use crate::virtio::features::Features;
use crate::virtio::part::IoPart;

mod link;
pub mod macvtap;
pub mod queue;
pub mod socket;
pub mod tap;
pub mod watch;

/// Length of `struct virtio_net_hdr_v1`, which stands before each frame on a port and in a ring (virtio 1.2, 5.1.6).
pub const HEADER_LEN: usize = 12;
/// Length of an Ethernet header: the shortest frame there is.
pub const ETHERNET_LEN: usize = 14;
/// Longest frame with its header: the largest IP packet, an Ethernet header and two VLAN tags.
pub const MAX_FRAME_LEN: usize = HEADER_LEN + ETHERNET_LEN + 8 + 65535;

/// One queue of a port. Both calls return at once, with `WouldBlock` where they would have to wait.
pub trait PortQueue: AsFd + Debug + Send + Sync {
    /// Sends one frame, header first, gathered from `parts` (1 to 1024 of them); returns its bytes.
    ///
    /// # Errors
    ///
    /// What the system says of the frame or of the interface.
    fn send(&self, parts: &[IoPart<'_>]) -> io::Result<usize>;

    /// Receives one frame, header first, scattered into `parts` (1 to 1024 of them); returns its bytes. No bytes are a frame
    /// too, and no end.
    ///
    /// # Errors
    ///
    /// `WouldBlock` when there is none, `BrokenPipe` when none can come any more, otherwise what the system says of the
    /// interface.
    fn recv(&self, parts: &[IoPart<'_>]) -> io::Result<usize>;

    /// Timers after which a call that would have had to wait is worth another try, although the descriptor says nothing.
    fn timers(&self) -> &[OwnedFd] {
        &[]
    }
}

/// An interface of the host.
pub trait Port: Debug + Send {
    /// What logs and errors call it.
    fn name(&self) -> &str;

    /// The queue of `pair`, for 0 to the number of pairs that the port was opened with.
    fn queue(&self, pair: usize) -> Arc<dyn PortQueue>;

    /// Features that this port can serve beyond those that every port can: UDP segmentation.
    fn extra_features(&self) -> Features;

    /// The interface's MTU, where it can be asked.
    fn mtu(&self) -> Option<u16>;

    /// The address that a guest behind this interface must have, where it cannot have any.
    fn mac(&self) -> Option<Mac> {
        None
    }

    /// Whether the interface is set up, where it can be asked.
    fn is_up(&self) -> Option<bool> {
        None
    }

    /// Lets the interface hand over frames as large and with as little done to them as the `GUEST_*` bits
    /// of `acked` allow.
    ///
    /// # Errors
    ///
    /// What the system says.
    fn set_offloads(&mut self, acked: Features) -> io::Result<()>;

    /// Makes exactly those queues take part whose element of `active` is true. The host spreads flows over all
    /// that take part, so one that nobody serves would swallow its share.
    ///
    /// # Errors
    ///
    /// What the system says.
    fn attach(&mut self, active: &[bool]) -> io::Result<()>;

    /// Opens the interface again after it was deleted; its queues are then new ones.
    ///
    /// # Errors
    ///
    /// While it cannot be opened.
    fn reopen(&mut self) -> io::Result<()>;

    /// What a port from a state leaves alone, because it may still be another process's, is this one's to clean up from here
    /// on.
    fn own(&mut self) {}

    /// Writes the port out for a process that is to go on with it; `None` where that cannot be done.
    fn export<'a>(&'a self, _out: &mut Exporter<'a>) -> Option<PortState> {
        None
    }
}

/// A port in a state.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PortState {
    /// A TAP interface.
    Tap(tap::TapState),
    /// A macvtap interface.
    Macvtap(macvtap::MacvtapState),
    /// Datagram sockets.
    Socket(Vec<crate::state::FdId>),
}

impl PortState {
    /// Takes the port over. Nothing about it is changed: it may still be in use.
    ///
    /// # Errors
    ///
    /// When the state is not whole.
    pub fn import(self, from: &mut Importer) -> Result<Box<dyn Port>, StateError> {
        Ok(match self {
            PortState::Tap(state) => Box::new(tap::Tap::import(state, from)?),
            PortState::Macvtap(state) => Box::new(macvtap::Macvtap::import(state, from)?),
            PortState::Socket(fds) => Box::new(socket::SocketPort::import(&fds, from)?),
        })
    }
}
