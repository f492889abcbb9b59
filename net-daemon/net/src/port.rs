//! Ports: the host's side of the device, which frames go to and come from.
//!
//! A [`Port`] is a whole interface and belongs to the device. It has a [`PortQueue`] for each queue pair,
//! which a worker reads and writes. An `Arc` shares them, so that the device can attach and detach queues
//! while the worker owns its pair.
//!
//! Other queues can stand in front of a port's queue, to create, inspect or delay frames. The device adds
//! them when a pair starts, if they are requested. The order from the guest to the wire:
//! ```text
//! ring - capture - injected frames (inject) - filter - rate limits (limiter) - port
//! ```
//!
//! So rate limits do not apply to injected frames, a frame that a limit holds back is not sent, and a
//! capture shows the frames that the guest sends and gets. The [filter](crate::filter) decides by a frame's
//! bytes: it decides on its own copy, and passes that copy on. Its refusals cost no tokens of a limit for
//! sending. A queue that creates frames injects them with
//! [`NetDevice::inject`](crate::device::NetDevice::inject).

use std::fmt::Debug;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use log::warn;
use volt_virtio::features::Features;
use volt_virtio::part::IoPart;

use crate::config::Mac;
use crate::counters::DropReason;
pub use crate::lengths::{ETHERNET_LEN, HEADER_LEN, MAX_FRAME_LEN, MIN_FRAME_LEN};
use crate::port::queue::FdQueue;
use crate::port::state::{PortState, Reopening};
use crate::state::Exporter;

pub mod host;
pub mod import;
pub mod inject;
mod link;
pub mod macvtap;
pub mod peer;
pub mod peer_options;
pub mod queue;
pub mod reopening;
pub mod socket;
pub mod state;
pub mod tap;
pub(crate) mod timer;
pub mod watch;
pub mod xdp;

/// Error number for a frame that a filter refuses. The system's numbers are 1 to 4095, so no port returns it.
/// An error made of a number allocates nothing.
pub(crate) const FILTERED: i32 = 0x1_0000;

/// One queue of a port. Its calls never block: they return `WouldBlock` instead.
pub trait PortQueue: AsFd + Debug + Send + Sync {
    /// Sends one frame, header first, gathered from `parts` (1 to 1024 of them). Returns its length in bytes.
    ///
    /// # Errors
    ///
    /// Returns the system's error for the frame or for the interface.
    fn send(&self, parts: &[IoPart<'_>]) -> io::Result<usize>;

    /// Receives one frame, header first, scattered into `parts` (1 to 1024 of them). Returns its length in
    /// bytes. 0 bytes are a frame, too, and not the end.
    ///
    /// # Errors
    ///
    /// Returns `WouldBlock` if there is no frame, `BrokenPipe` if no more can arrive, `InvalidData` if no
    /// more can arrive and a frame was lost, otherwise the system's error for the interface.
    fn recv(&self, parts: &[IoPart<'_>]) -> io::Result<usize>;

    /// Ends a batch of [`PortQueue::send`]: passes on the frames that the calls have collected. Empty for a
    /// queue that passes each frame on at once.
    ///
    /// # Errors
    ///
    /// Returns `WouldBlock` if frames remain until the wire accepts more: the caller waits as for a full
    /// port, and calls again. Otherwise as [`PortQueue::send`].
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    /// Ends a batch of [`PortQueue::recv`], whose frames the guest has: their memory may be used for others.
    /// Empty for a queue without such memory.
    fn release(&self) {}

    /// Checks a port whose descriptor reports an error, without buffers of the guest. A queue in front of a
    /// port's queue passes the call on.
    ///
    /// # Errors
    ///
    /// As [`PortQueue::recv`].
    fn probe(&self) -> io::Result<()> {
        self.recv(&[IoPart::from_slice(&mut [0])]).map(drop)
    }

    /// Reports that the frame of `len` bytes in `parts`, header first, is dropped: a frame to send, or the
    /// last received one. For a queue in front of all others that inspects frames.
    fn dropped(&self, _reason: DropReason, _parts: &[IoPart<'_>], _len: usize) {}

    /// Returns the queue itself if it is an [`FdQueue`], so that a queue in front of it can call it directly.
    fn on_descriptor(self: Arc<Self>) -> Option<Arc<FdQueue>> {
        None
    }

    /// Whether the queue's own descriptor becomes writable when a full queue has room. If not, a waker
    /// becomes readable: see [`PortQueue::wakers`].
    fn tells_room(&self) -> bool {
        true
    }

    /// Returns descriptors that become readable when a call that returned `WouldBlock` may succeed, for
    /// reasons that the queue's own descriptor does not show. Nobody reads them.
    fn wakers(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }
}

/// Who can reopen a port.
#[derive(Debug)]
pub enum Reopener<'a> {
    /// A process with the rights to do so, by [`open_again`](reopening::open_again) with these data and this
    /// descriptor.
    Process(Reopening, Option<BorrowedFd<'a>>),
    /// [`Port::reopen`], which needs no rights.
    Port,
    /// Nobody.
    Nobody,
}

/// An interface of the host.
pub trait Port: Debug + Send {
    /// Returns the name for logs and errors.
    fn name(&self) -> &str;

    /// Returns the queue of `pair`, from 0 up to the number of pairs that the port was opened with.
    fn queue(&self, pair: usize) -> Arc<dyn PortQueue>;

    /// Returns the features that this port supports and others do not: UDP segmentation.
    fn extra_features(&self) -> Features;

    /// Returns the interface's MTU, if it can be queried.
    fn mtu(&self) -> Option<u16>;

    /// Returns the address that a guest behind this interface must have. `None`: any address.
    fn mac(&self) -> Option<Mac> {
        None
    }

    /// Whether the interface is up, if it can be queried.
    fn is_up(&self) -> Option<bool> {
        None
    }

    /// Lets the interface deliver frames that need the offloads in the `GUEST_*` bits of `acked`.
    ///
    /// # Errors
    ///
    /// Returns the system's error.
    fn set_offloads(&mut self, acked: Features) -> io::Result<()>;

    /// Attaches exactly the queues whose element of `active` is true. The host spreads flows over all
    /// attached queues, so one that nobody serves would swallow its share.
    ///
    /// # Errors
    ///
    /// Returns the system's error.
    fn attach(&mut self, active: &[bool]) -> io::Result<()>;

    /// Reopens the interface after it was deleted. It has new queues then.
    ///
    /// # Errors
    ///
    /// Fails while it cannot be opened.
    fn reopen(&mut self) -> io::Result<()>;

    /// Whether the interface is known to be gone before any pair has used it.
    fn is_gone(&self) -> bool {
        false
    }

    /// Returns who can reopen the interface.
    fn reopening(&self) -> Reopener<'_> {
        Reopener::Nobody
    }

    /// Adopts the queues of the interface that another process has reopened: the answer of
    /// [`open_again`](reopening::open_again).
    ///
    /// # Errors
    ///
    /// Fails if the descriptors are not such queues.
    fn adopt(&mut self, _queues: Vec<OwnedFd>) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Makes this port clean up at its end. A port from a state does not do so before, because another
    /// process may still use it.
    fn own(&mut self) {}

    /// Exports the port for a process that continues with it; `None` if that is impossible.
    fn export<'a>(&'a self, _out: &mut Exporter<'a>) -> Option<PortState> {
        None
    }
}

/// Warns if `mac` is not the address that a guest behind this port must have.
pub fn check_mac(port: &dyn Port, mac: Mac) {
    if let Some(own) = port.mac().filter(|own| *own != mac) {
        warn!(
            event = "address_differs", interface = port.name();
            "{0}: the guest's address is {mac}, but the interface's is {own}: frames to the guest are lost, \
             except on a veth or in mode passthru; omit the guest's address, or 'ip link set {0} address \
             {mac}'",
            port.name()
        );
    }
}
