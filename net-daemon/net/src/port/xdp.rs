//! An interface by AF_XDP sockets: its frames go to the guest and never to the host's network stack.
//!
//! A port has a socket for each queue pair, bound to consecutive queues of the interface. Each has its own
//! memory for frames (`umem`). An XDP program gives the frames of these queues to the sockets (`program`);
//! frames of other queues go to the host. Socket, memory and the program's attachment are descriptors, so
//! that another process continues with them.
//!
//! The guest has its offloads: frames are completed and cut on their way into the memory
//! ([`segments`](crate::segments)).
//!
//! | module | holds |
//! |---|---|
//! | `open` | sockets and attachment of an interface, and why there are none |
//! | `program` | the XDP program |
//! | `umem`, `ring` | the memory of frames; the rings that the kernel shares |
//! | `queue` | the data path |

use std::fs::read_to_string;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

use log::{info, warn};
use rustix::net::netdevice::index_to_name;
use rustix::net::sockopt::xdp_options;
use rustix::net::xdp::XdpOptionsFlags;
use volt_virtio::features::Features;

use crate::config::Mac;
use crate::port::state::{PortState, Reopening, XdpState};
use crate::port::{Port, PortQueue, Reopener, link};
use crate::state::{Exporter, FdId, Importer, Numbered, StateError};

mod error;
mod open;
mod program;
mod queue;
mod ring;
mod umem;

pub use crate::port::state::{XdpMode, XdpOptions};
pub use error::XdpError;
pub use open::{XdpFds, open_fds};
use queue::XdpQueue;
use umem::Umem;

/// An interface with AF_XDP sockets.
#[derive(Debug)]
pub struct Xdp {
    name: String,
    /// For queries about the interface after the sandbox forbids new sockets.
    asks: OwnedFd,
    queues: Vec<Arc<XdpQueue>>,
    /// The attachment of the program. The program goes with its last copy.
    link: Numbered<OwnedFd>,
    /// How to reopen it; `None` for descriptors from elsewhere.
    options: Option<XdpOptions>,
}

impl Xdp {
    /// Opens sockets on an interface, and attaches the program.
    ///
    /// # Errors
    ///
    /// See [`XdpError`].
    pub fn open(options: XdpOptions) -> Result<Xdp, XdpError> {
        let fds = open_fds(&options)?;
        let name = options.name.clone();
        let xdp = Xdp::over(Xdp::asks(&name)?, name, fds, Some(options))?;
        xdp.tell();
        Ok(xdp)
    }

    /// Takes over descriptors that [`open_fds`] has opened, in this process or in another one.
    ///
    /// # Errors
    ///
    /// See [`XdpError`].
    pub fn from_fds(fds: XdpFds) -> Result<Xdp, XdpError> {
        let name = interface_of(&fds.link)?;
        let xdp = Xdp::over(Xdp::asks(&name)?, name, fds, None)?;
        xdp.tell();
        Ok(xdp)
    }

    /// Creates the socket for queries.
    fn asks(name: &str) -> Result<OwnedFd, XdpError> {
        let failed = |source| XdpError::System { name: name.to_owned(), doing: "creating a socket", source };
        link::socket().map_err(failed)
    }

    fn over(asks: OwnedFd, name: String, fds: XdpFds, options: Option<XdpOptions>) -> Result<Xdp, XdpError> {
        let failed = |doing| {
            let name = name.clone();
            move |source| XdpError::System { name, doing, source }
        };
        let queues = fds.queues.into_iter().map(|(socket, memory)| {
            let umem = Umem::open(memory).map_err(XdpError::Memory)?;
            let queue = XdpQueue::over(Numbered::fresh(socket), umem, FdId::fresh());
            let queue = queue.map_err(failed("mapping the rings of a socket"))?;
            if !queue.is_mapped() {
                return Err(XdpError::Kernel(io::ErrorKind::ResourceBusy.into()));
            }
            Ok(Arc::new(queue))
        });
        let queues = queues.collect::<Result<Vec<_>, _>>()?;
        queues.iter().for_each(|queue| queue.resume());
        Ok(Xdp { name, asks, queues, link: Numbered::fresh(fds.link), options })
    }

    pub(super) fn import(state: XdpState, from: &mut Importer) -> Result<Xdp, StateError> {
        let XdpState { name, queues, link, options } = state;
        if queues.is_empty() {
            return Err(StateError::Contradiction("the interface's queues"));
        }
        let queues = queues.into_iter().map(|(socket, memory)| {
            let umem = Umem::open(from.take(memory)?).map_err(StateError::Frames)?;
            let socket = Numbered::known(socket, from.take(socket)?);
            let failed = |error| StateError::System("cannot map the rings of an AF_XDP socket", error);
            XdpQueue::over(socket, umem, memory).map(Arc::new).map_err(failed)
        });
        let queues = queues.collect::<Result<_, _>>()?;
        let link = Numbered::known(link, from.take(link)?);
        let failed = |error| StateError::System("cannot create a socket", error);
        let asks = link::socket().map_err(failed)?;
        Ok(Xdp { name, asks, queues, link, options })
    }

    /// Logs how the interface is used, and what an operator may not expect.
    fn tell(&self) {
        let (name, first) = (&self.name, self.queues[0].number());
        let last = first as usize + self.queues.len() - 1;
        let zero_copy = self.queues.iter().all(|queue| {
            let options = xdp_options(queue.as_fd());
            options.is_ok_and(|options| options.contains(XdpOptionsFlags::XDP_OPTIONS_ZEROCOPY))
        });
        let which = match last - first as usize {
            0 => format!("queue {first}"),
            _ => format!("queues {first} to {last}"),
        };
        let how = if zero_copy { "the card reads and writes them itself" } else { "the kernel copies them" };
        info!(
            event = "xdp_attached", interface = name, first, last, zero_copy;
            "{name}: frames of {which} go to the guest alone; {how}"
        );
        if let Some(all) = link::queues(name).filter(|all| *all as usize > self.queues.len()) {
            warn!(
                event = "xdp_other_queues", interface = name, queues = all;
                "{name} has {all} queues: frames that arrive on others go to the host; use one queue with \
                 'ethtool -L {name} combined 1', or steer the guest's frames with 'ethtool -N {name} \
                 flow-type ether dst MAC action {first}'"
            );
        }
        if link::driver(name).is_ok_and(|driver| driver == "veth") {
            info!(
                event = "xdp_veth", interface = name;
                "{name} is a veth: its peer must complete checksums: 'ethtool -K PEER tx off'"
            );
        }
    }
}

/// Returns the name of the interface that `link` is attached to.
fn interface_of(link: &OwnedFd) -> Result<String, XdpError> {
    let wrong = || XdpError::NotLink(link.as_raw_fd());
    let path = format!("/proc/self/fdinfo/{}", link.as_raw_fd());
    let text = read_to_string(path).map_err(|_| wrong())?;
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
    if field("link_type") != Some("xdp") {
        return Err(wrong());
    }
    let index = field("ifindex").and_then(|index| index.trim().parse().ok()).ok_or_else(wrong)?;
    let socket = link::socket().map_err(|_| wrong())?;
    index_to_name(socket, index).map_err(|_| XdpError::Elsewhere(index))
}

impl Port for Xdp {
    fn name(&self) -> &str {
        &self.name
    }

    fn queue(&self, pair: usize) -> Arc<dyn PortQueue> {
        self.queues[pair].clone()
    }

    fn extra_features(&self) -> Features {
        Features::NET_HOST_USO
    }

    fn mtu(&self) -> Option<u16> {
        link::mtu(&self.asks, &self.name).ok().and_then(|mtu| u16::try_from(mtu).ok())
    }

    /// The interface's own: others may not pass its filter.
    fn mac(&self) -> Option<Mac> {
        link::mac(&self.asks, &self.name).ok()
    }

    fn is_up(&self) -> Option<bool> {
        link::is_up(&self.asks, &self.name)
    }

    /// The kernel tells only those who send.
    fn is_gone(&self) -> bool {
        self.queues.iter().any(|queue| queue.is_gone())
    }

    fn set_offloads(&mut self, _acked: Features) -> io::Result<()> {
        Ok(())
    }

    /// The card spreads frames over its queues without regard to the guest.
    fn attach(&mut self, _active: &[bool]) -> io::Result<()> {
        Ok(())
    }

    fn reopen(&mut self) -> io::Result<()> {
        let options = self.options.as_ref().ok_or(io::ErrorKind::Unsupported)?;
        let fds = open_fds(options).map_err(io::Error::other)?;
        self.adopt(fds.into_vec())
    }

    fn reopening(&self) -> Reopener<'_> {
        let Some(options) = self.options.clone() else { return Reopener::Nobody };
        Reopener::Process(Reopening::Xdp(options), None)
    }

    fn adopt(&mut self, fds: Vec<OwnedFd>) -> io::Result<()> {
        let fds = XdpFds::from_vec(fds).filter(|fds| fds.queues.len() == self.queues.len());
        let fds = fds.ok_or(io::ErrorKind::InvalidInput)?;
        let xdp = Xdp::over(self.asks.try_clone()?, self.name.clone(), fds, self.options.clone());
        *self = xdp.map_err(io::Error::other)?;
        Ok(())
    }

    fn own(&mut self) {
        self.queues.iter().for_each(|queue| queue.resume());
    }

    fn export<'a>(&'a self, out: &mut Exporter<'a>) -> Option<PortState> {
        Some(PortState::Xdp(XdpState {
            name: self.name.clone(),
            queues: self.queues.iter().map(|queue| queue.export(out)).collect(),
            link: self.link.export(out),
            options: self.options.clone(),
        }))
    }
}
