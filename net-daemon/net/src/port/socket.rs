//! A port over datagram socket pairs: one packet a frame, header first. For tests, and to pass frames to
//! another program.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::net::SocketType;
use rustix::net::sockopt::socket_type;
use volt_virtio::features::Features;

use crate::port::queue::FdQueue;
use crate::port::state::PortState;
use crate::port::{Port, PortQueue};
use crate::state::{Exporter, FdId, Importer, StateError};

/// One socket for each queue pair.
#[derive(Debug)]
pub struct SocketPort(Vec<Arc<FdQueue>>);

impl SocketPort {
    /// Creates a port over `sockets`, which must keep packets apart (`SOCK_DGRAM` or `SOCK_SEQPACKET`).
    ///
    /// # Errors
    ///
    /// Fails if one of them is another kind of socket, or cannot be made non-blocking.
    pub fn new(sockets: Vec<OwnedFd>) -> io::Result<SocketPort> {
        for socket in &sockets {
            let kind = socket_type(socket)?;
            if ![SocketType::DGRAM, SocketType::SEQPACKET].contains(&kind) {
                let what = "a socket of a port must keep packets apart: SOCK_DGRAM or SOCK_SEQPACKET";
                return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
            }
        }
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
        Features::empty()
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

#[cfg(test)]
mod tests {
    use rustix::net::{AddressFamily, SendFlags, SocketFlags, send, socketpair};
    use volt_virtio::testing::{BUFFERS, Driver};

    use super::*;
    use crate::batch::Turn;
    use crate::rx::Rx;
    use crate::testing::{Rig, frame};
    use crate::tx::Tx;

    fn pair(kind: SocketType) -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap()
    }

    /// Frames that were sent before the end arrive. Then the port is gone in both directions, and there is
    /// nothing to do.
    #[test]
    fn a_socket_whose_other_end_is_closed_is_gone() {
        for kind in [SocketType::DGRAM, SocketType::SEQPACKET] {
            let (near, far) = pair(kind);
            let port = SocketPort::new(vec![near]).unwrap();
            let (mut rig, _) = Rig::new();
            rig.queue = port.0[0].clone();
            let mut driver = Driver::new(8, Features::empty());
            let mut rx = Rx::new(Rig::vring(&driver, 0), Features::empty());
            driver.add(&[(BUFFERS, 2000, true)]);
            driver.add(&[(BUFFERS, 2000, true)]);
            send(&far, &frame(60, 1), SendFlags::empty()).unwrap();
            drop(far);
            rig.rx(&mut rx).unwrap();
            assert_eq!(driver.take_used().len(), 1, "{kind:?}");
            assert_eq!(rig.rx(&mut rx), Ok(Turn::Idle), "{kind:?}");
            assert_eq!(rig.rx(&mut rx), Ok(Turn::Idle), "{kind:?}");

            let mut sender = Driver::new(8, Features::empty());
            sender.add(&[(BUFFERS, 72, false)]);
            rig.tx(&mut Tx::new(Rig::vring(&sender, 1), false)).unwrap();
            assert_eq!(sender.take_used().len(), 1, "{kind:?}: given back");
            assert!(rig.trouble.take_port_gone(), "{kind:?}");
            assert_eq!((rig.counters.tx_no_port.get(), rig.counters.rx_failed.get()), (1, 0), "{kind:?}");
        }
    }

    #[test]
    fn an_empty_datagram_is_a_frame_and_no_end() {
        let (near, far) = pair(SocketType::DGRAM);
        let port = SocketPort::new(vec![near]).unwrap();
        let (mut rig, _) = Rig::new();
        rig.queue = port.0[0].clone();
        let mut driver = Driver::new(8, Features::empty());
        let mut rx = Rx::new(Rig::vring(&driver, 0), Features::empty());
        driver.add(&[(BUFFERS, 2000, true)]);
        send(&far, &[], SendFlags::empty()).unwrap();
        send(&far, &frame(60, 1), SendFlags::empty()).unwrap();
        rig.rx(&mut rx).unwrap();
        assert_eq!(driver.take_used().len(), 1);
        assert!(!rig.trouble.take_port_gone());
    }

    #[test]
    fn sockets_that_do_not_keep_packets_apart_are_refused() {
        let error = SocketPort::new(vec![pair(SocketType::STREAM).0]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert!(SocketPort::new(vec![std::fs::File::open("/dev/null").unwrap().into()]).is_err());
    }
}
