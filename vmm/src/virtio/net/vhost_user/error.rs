//! What goes wrong in the conversation with a back-end, by the name of the message.

use std::io;
use std::time::Duration;

use log::debug;
use thiserror::Error;
use vhost::vhost_user::Error as Socket;
use vm_memory::GuestMemoryError;
use volt_virtio::features::{Class, Features};

/// Time for a back-end to answer a group of requests. Long, as a loaded host is no reason to give it up.
pub(super) const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// Why a back-end cannot be used, or can no more.
#[derive(Debug, Error)]
pub enum SessionError {
    /// Virtio 0.9.
    #[error("it offers no VERSION_1: it is too old for this device")]
    NoVersion1,
    /// No vring of it could be enabled and disabled.
    #[error("it offers no PROTOCOL_FEATURES: it is no vhost-user back-end that can be used here")]
    NoProtocolFeatures,
    /// Too few vrings.
    #[error(
        "it serves {offered} queue pairs and {asked} are asked for: give it more (volt-netd --queues \
         {asked}) or lower queues="
    )]
    Pairs {
        /// Pairs on the command line.
        asked: u16,
        /// Pairs of the back-end.
        offered: u64,
    },
    /// The guest uses what this back-end does not have.
    #[error("it lacks features that the guest uses: {}", .0.named(Class::Net))]
    Features(Features),
    /// The guest may use what this back-end does not have.
    #[error("it lacks features that the guest was offered: {}", .0.named(Class::Net))]
    Offered(Features),
    /// Nothing came back.
    #[error("it gave no answer to {request} within {} s", ANSWER_LIMIT.as_secs())]
    Late {
        /// The message.
        request: &'static str,
    },
    /// The connection ended.
    #[error("it closed the connection at {request}; its own log should say why")]
    Closed {
        /// The message.
        request: &'static str,
    },
    /// The answer was an error.
    #[error("it refused {request}; its own log should say why")]
    Refused {
        /// The message.
        request: &'static str,
    },
    /// A message went wrong in another way.
    #[error("{request} failed")]
    Request {
        /// The message.
        request: &'static str,
        /// How.
        #[source]
        source: vhost::Error,
    },
    /// A vring's address has no place in this process.
    #[error("vring {index} is not in guest memory")]
    Vring {
        /// The vring.
        index: u16,
        /// Which address.
        #[source]
        source: GuestMemoryError,
    },
    /// Guest memory cannot be shared.
    #[error("guest memory is not backed by a file that the back-end could map")]
    NotShared,
    /// No more threads or files.
    #[error("the host is out of resources")]
    Host(#[source] io::Error),
}

/// Names the message that a result belongs to.
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
