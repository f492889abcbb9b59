//! Ports: where frames go to and come from on the host's side.
//!
//! A [`Port`] is the interface as a whole and stays with the device. Its [`PortQueue`]s, one for each queue
//! pair, are what a worker reads and writes; they are shared by `Arc` so that the device can attach and
//! detach them while the worker owns its pair.
//!
//! What makes or judges frames is a queue in front of a port's queue, which a device puts there when a pair
//! starts, and only where it was asked for. The order, from the guest to the wire:
//!
//! ```text
//! ring - capture - frames of the program's own (inject) - rate limits (limiter) - port
//! ```
//!
//! So frames that the program makes have no limit but their own, nothing is sent that a limit has held back,
//! and a capture shows what the guest sends and gets. What decides on a frame's bytes stands between frames
//! of the program's own and limits, decides on a copy of its own, and passes that copy on. What makes frames
//! has its way in from [`NetDevice::inject`](crate::device::NetDevice::inject).

use std::fmt::Debug;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use log::warn;
use volt_virtio::features::Features;
use volt_virtio::part::IoPart;

use crate::config::Mac;
use crate::counters::DropReason;
use crate::port::state::{PortState, Reopening};
use crate::state::Exporter;

pub mod host;
pub mod import;
pub mod inject;
mod link;
pub mod macvtap;
pub mod queue;
pub mod reopening;
pub mod socket;
pub mod state;
pub mod tap;
pub mod watch;

/// Length of `struct virtio_net_hdr_v1`, which stands before each frame on a port and in a ring (virtio 1.2,
/// 5.1.6).
pub const HEADER_LEN: usize = 12;
/// Length of an Ethernet header: the shortest frame there is.
pub const ETHERNET_LEN: usize = 14;
/// Shortest frame with its header.
pub const MIN_FRAME_LEN: usize = HEADER_LEN + ETHERNET_LEN;
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

    /// Receives one frame, header first, scattered into `parts` (1 to 1024 of them); returns its bytes. No
    /// bytes are a frame too, and no end.
    ///
    /// # Errors
    ///
    /// `WouldBlock` when there is none, `BrokenPipe` when none can come any more, otherwise what the system
    /// says of the interface.
    fn recv(&self, parts: &[IoPart<'_>]) -> io::Result<usize>;

    /// What is wrong with a port whose descriptor reports an error, which receiving would say if the guest
    /// had buffers. What stands in front of a port's queue asks that one.
    ///
    /// # Errors
    ///
    /// As [`PortQueue::recv`].
    fn probe(&self) -> io::Result<()> {
        self.recv(&[IoPart::from_slice(&mut [0])]).map(drop)
    }

    /// The frame of `len` bytes in `parts`, header first, goes nowhere: one that was to be sent, or the last
    /// one that was received. For who looks at frames, and stands in front of all others.
    fn dropped(&self, _reason: DropReason, _parts: &[IoPart<'_>], _len: usize) {}

    /// Descriptors that become readable when a call that would have had to wait is worth another try,
    /// although the queue's own says nothing. Nobody reads them.
    fn wakers(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
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

    /// Makes exactly those queues take part whose element of `active` is true. The host spreads flows over
    /// all that take part, so one that nobody serves would swallow its share.
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

    /// What another process needs to open the interface again for this one, by
    /// [`open_again`](reopening::open_again); `None` where none can.
    fn reopening(&self) -> Option<Reopening> {
        None
    }

    /// Goes on with the queues of the interface that another process has opened again.
    ///
    /// # Errors
    ///
    /// When they are no such queues.
    fn adopt(&mut self, _queues: Vec<OwnedFd>) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// What a port from a state leaves alone, because it may still be another process's, is this one's to
    /// clean up from here on.
    fn own(&mut self) {}

    /// Writes the port out for a process that is to go on with it; `None` where that cannot be done.
    fn export<'a>(&'a self, _out: &mut Exporter<'a>) -> Option<PortState> {
        None
    }
}

/// Says what comes of an address that is not the interface's own.
pub fn check_mac(port: &dyn Port, mac: Mac) {
    if let Some(own) = port.mac().filter(|own| *own != mac) {
        warn!(
            event = "address_differs", interface = port.name();
            "{0}: the guest's address is {mac} and the interface's {own}, so that frames to the guest get \
             lost but in mode passthru: leave the guest's out, or 'ip link set {0} address {mac}'",
            port.name()
        );
    }
}
