//! The connection to a front-end.

use std::sync::Arc;
use std::time::Instant;

use volt_net::device::NetDevice;
use volt_net::state::{Exporter, Importer, StateError};
use volt_vhost_user::channel::{Channel, ChannelError};
use volt_vhost_user::session::{Session, SessionError};
use volt_virtio::notify::Notifier;

use crate::state::ConnectionState;

/// The connection to a front-end.
pub(crate) struct Connection {
    pub(crate) channel: Channel,
    pub(crate) session: Session,
    /// The control queue's kick descriptor that the main thread watches.
    pub(crate) control_kick: Option<Arc<Notifier>>,
    /// When this process began to serve the connection.
    pub(crate) since: Instant,
}

impl Connection {
    pub(crate) fn new(channel: Channel, session: Session) -> Connection {
        Connection { channel, session, control_kick: None, since: Instant::now() }
    }

    pub(crate) fn export<'a>(&'a self, out: &mut Exporter<'a>) -> ConnectionState {
        ConnectionState { channel: self.channel.export(out), session: self.session.export(out) }
    }

    pub(crate) fn import(
        state: ConnectionState,
        from: &mut Importer,
        device: &NetDevice,
        max_ring_size: u16,
    ) -> Result<Connection, StateError> {
        let session = Session::import(&state.session, from, device, max_ring_size)?;
        Ok(Connection::new(Channel::import(state.channel, from)?, session))
    }
}

/// The error that ended a connection.
pub(crate) enum Ended {
    Channel(ChannelError),
    Session(SessionError),
}

impl From<ChannelError> for Ended {
    fn from(error: ChannelError) -> Ended {
        Ended::Channel(error)
    }
}

impl From<SessionError> for Ended {
    fn from(error: SessionError) -> Ended {
        Ended::Session(error)
    }
}
