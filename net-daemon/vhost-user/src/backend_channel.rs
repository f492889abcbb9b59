//! The channel for requests of the back-end to its front-end (`VHOST_USER_SET_BACKEND_REQ_FD`).
//!
//! It carries one request: the configuration space has changed. It is never read, and sending never blocks.
//! No reply is requested, and a request that does not fit is dropped.

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SendFlags, send, sockopt};
use thiserror::Error;
use volt_net::state::{Exporter, FdId, Importer, Numbered, StateError};

use crate::message::Header;

/// `VHOST_USER_BACKEND_CONFIG_CHANGE_MSG`.
const CONFIG_CHANGE: u32 = 2;

/// The descriptor is unusable.
#[derive(Debug, Error)]
#[error("the descriptor for requests of the back-end is not a Unix socket")]
pub struct NoSocket;

/// The back-end's end of the channel.
#[derive(Debug)]
pub struct BackendChannel(Numbered<OwnedFd>);

impl BackendChannel {
    /// Takes over a descriptor that a front-end sent.
    ///
    /// # Errors
    ///
    /// Fails if it is not a Unix socket: only with those it is certain that a non-blocking send never blocks.
    pub fn new(fd: OwnedFd) -> Result<BackendChannel, NoSocket> {
        match sockopt::socket_domain(&fd) {
            Ok(AddressFamily::UNIX) => Ok(BackendChannel(Numbered::fresh(fd))),
            _ => Err(NoSocket),
        }
    }

    /// Adds the descriptor to a state.
    pub fn export<'a>(&'a self, out: &mut Exporter<'a>) -> FdId {
        self.0.export(out)
    }

    /// Imports the descriptor from a state.
    ///
    /// # Errors
    ///
    /// Fails if it did not come with the state.
    pub fn import(id: FdId, from: &mut Importer) -> Result<BackendChannel, StateError> {
        Ok(BackendChannel(Numbered::known(id, from.take(id)?)))
    }

    /// Tells the front-end that the configuration space has changed.
    ///
    /// # Errors
    ///
    /// Fails if the front-end does not read, or has closed its end.
    pub fn config_changed(&self) -> io::Result<()> {
        let message = Header::request(CONFIG_CHANGE);
        // A Unix socket accepts such a short message completely or not at all.
        send(&*self.0, &message, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_front_end_that_does_not_read_is_not_waited_for() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let channel = BackendChannel::new(ours.into()).unwrap();
        let mut sent = 0;
        let full = loop {
            match channel.config_changed() {
                Ok(()) => sent += 1,
                Err(error) => break error,
            }
            assert!(sent < 1_000_000);
        };
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
        let mut bytes = vec![0; sent * 12];
        theirs.read_exact(&mut bytes).unwrap();
        let message: Vec<u8> = [2u32, 1, 0].iter().flat_map(|word| word.to_ne_bytes()).collect();
        assert!(bytes.chunks(12).all(|chunk| chunk == message), "whole messages only");
        drop(theirs);
        assert_eq!(channel.config_changed().unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn other_descriptors_are_refused() {
        let (pipe, _other) = io::pipe().unwrap();
        assert!(BackendChannel::new(pipe.into()).is_err());
        assert!(BackendChannel::new(std::fs::File::open("/dev/null").unwrap().into()).is_err());
    }
}
