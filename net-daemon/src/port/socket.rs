//! A port over datagram socket pairs: one packet a frame, header first. For tests, and for whoever wants to hand
//! frames to a program of their own.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::port::queue::FdQueue;
use crate::port::{Port, PortQueue, PortState};
use crate::state::{Exporter, FdId, Importer, StateError};
use crate::virtio::features::Features;

/// One socket for each queue pair.
#[derive(Debug)]
pub struct SocketPort(Vec<Arc<FdQueue>>);

impl SocketPort {
    /// A port over `sockets`, which must keep packets apart (`SOCK_DGRAM` or `SOCK_SEQPACKET`).
    ///
    /// # Errors
    ///
    /// When one cannot be made non-blocking.
    pub fn new(sockets: Vec<OwnedFd>) -> io::Result<SocketPort> {
        sockets
            .into_iter()
            .map(|socket| FdQueue::new(socket).map(Arc::new))
            .collect::<Result<_, _>>()
            .map(SocketPort)
    }

    pub(super) fn import(fds: &[FdId], from: &mut Importer) -> Result<SocketPort, StateError> {
        fds.iter()
            .map(|fd| FdQueue::import(*fd, from).map(Arc::new))
            .collect::<Result<_, _>>()
            .map(SocketPort)
    }
}

impl Port for SocketPort {
    fn name(&self) -> &str {
        "socket"
    }

    fn queue(&self, pair: usize) -> Arc<dyn PortQueue> {
        self.0[pair].clone()
    }

    fn extra_features(&self) -> Features {
        Features::NONE
    }

    fn mtu(&self) -> Option<u16> {
        None
    }

    fn set_offloads(&mut self, _acked: Features) -> io::Result<()> {
        Ok(())
    }

    fn attach(&mut self, _active: &[bool]) -> io::Result<()> {
        Ok(())
    }

    fn reopen(&mut self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn export<'a>(&'a self, out: &mut Exporter<'a>) -> Option<PortState> {
        Some(PortState::Socket(self.0.iter().map(|queue| queue.export(out)).collect()))
    }
}
