//! Errors of the protocol with a back-end, with the name of the message.

use std::io;
use std::time::Duration;

use log::debug;
use thiserror::Error;
use vhost::vhost_user::Error as Socket;
use vm_memory::GuestMemoryError;
use volt_program::display::of;
use volt_virtio::features::{Class, Features};

/// Time for a back-end to answer a group of requests. Long, because a loaded host is no reason to disconnect.
pub(super) const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// Why a back-end cannot be used, or no longer.
#[derive(Debug, Error)]
pub enum SessionError {
    /// The back-end knows only virtio 0.9.
    #[error("it offers no VERSION_1: it is too old for this device")]
    NoVersion1,
    /// Its vrings cannot be enabled and disabled.
    #[error("it offers no PROTOCOL_FEATURES: volt-vmm cannot use it")]
    NoProtocolFeatures,
    /// It has too few vrings.
    #[error(
        "it serves {} and {asked} are needed: give it more (volt-netd --queues {asked}) or lower queues=",
        of(*offered, "queue pair")
    )]
    Pairs {
        /// Pairs on the command line.
        asked: u16,
        /// Pairs of the back-end.
        offered: u64,
    },
    /// It lacks features that the guest uses.
    #[error("it lacks features that the guest uses: {}", .0.named(Class::Net))]
    Features(Features),
    /// It lacks features that the guest may use.
    #[error("it lacks features that the guest was offered: {}", .0.named(Class::Net))]
    Offered(Features),
    /// It did not answer.
    #[error("it gave no answer to {request} within {} s", ANSWER_LIMIT.as_secs())]
    Late {
        /// The message.
        request: &'static str,
    },
    /// It closed the connection.
    #[error("it closed the connection at {request}; its own log should say why")]
    Closed {
        /// The message.
        request: &'static str,
    },
    /// It answered with an error.
    #[error("it refused {request}; its own log should say why")]
    Refused {
        /// The message.
        request: &'static str,
    },
    /// A message failed in another way.
    #[error("{request} failed")]
    Request {
        /// The message.
        request: &'static str,
        /// The error.
        #[source]
        source: vhost::Error,
    },
    /// A vring's address does not exist in this process.
    #[error("vring {index} is not in guest memory")]
    Vring {
        /// The vring.
        index: u16,
        /// The error of the address.
        #[source]
        source: GuestMemoryError,
    },
    /// Guest memory cannot be shared.
    #[error("guest memory is not backed by a file that the back-end could map")]
    NotShared,
    /// There are no more threads or files.
    #[error("the host is out of resources")]
    Host(#[source] io::Error),
}

/// Adds the name of a message to its result.
pub(super) fn named<T>(request: &'static str, result: vhost::Result<T>) -> Result<T, SessionError> {
    match &result {
        Ok(_) => debug!("vhost-user: {request}"),
        Err(error) => debug!("vhost-user: {request}: {error}"),
    }
    result.map_err(|error| match error {
        vhost::Error::VhostUserProtocol(Socket::BackendInternalError) => SessionError::Refused { request },
        vhost::Error::VhostUserProtocol(
            Socket::SocketBroken(_) | Socket::Disconnected | Socket::PartialMessage,
        ) => SessionError::Closed { request },
        source => SessionError::Request { request, source },
    })
}
