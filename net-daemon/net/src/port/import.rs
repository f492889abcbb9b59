//! Import of ports from a state.

use crate::port::Port;
use crate::port::macvtap::Macvtap;
use crate::port::peer::PeerPort;
use crate::port::socket::SocketPort;
use crate::port::state::PortState;
use crate::port::tap::Tap;
use crate::port::xdp::Xdp;
use crate::state::{Importer, StateError};

/// Takes the port over. Does not change it: it may still be in use.
///
/// # Errors
///
/// Fails if the state is incomplete.
pub fn import(state: PortState, from: &mut Importer) -> Result<Box<dyn Port>, StateError> {
    Ok(match state {
        PortState::Tap(state) => Box::new(Tap::import(state, from)?),
        PortState::Macvtap(state) => Box::new(Macvtap::import(state, from)?),
        PortState::Xdp(state) => Box::new(Xdp::import(state, from)?),
        PortState::Peer(state) => Box::new(PeerPort::import(state, from)?),
        PortState::Socket(fds) => Box::new(SocketPort::import(&fds, from)?),
    })
}
