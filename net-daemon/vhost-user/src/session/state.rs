//! A session as data.

use serde::{Deserialize, Serialize};
use volt_net::state::{Exporter, FdId, Importer, StateError};

use super::*;
use crate::memory::RegionState;
use crate::migration_log::MigrationLogState;
use crate::vring::VringSetupState;

/// A session in a state. It does not contain guest memory.
#[derive(Debug, Serialize, Deserialize)]
pub struct SessionState {
    /// Acknowledged features.
    acked: Option<u64>,
    /// Acknowledged protocol features.
    protocol: u64,
    /// The memory table.
    memory: Option<Vec<RegionState>>,
    /// The log of written pages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    log: Option<MigrationLogState>,
    /// Regions that were added repeatedly.
    repeated: Vec<MemoryRegion>,
    /// The vrings, the control vring last.
    vrings: Vec<VringSetupState>,
    /// Number of pairs that the driver uses, if the control queue is served here.
    control_pairs: u16,
    /// The channel for requests of the back-end.
    #[serde(default)]
    backend: Option<FdId>,
    /// Whether the last link state sent to the front-end was "down".
    #[serde(default)]
    told_down: bool,
}

impl Session {
    /// Exports the session, which may run.
    pub fn export<'a>(&'a self, out: &mut Exporter<'a>) -> SessionState {
        SessionState {
            acked: self.acked.map(|acked| acked.bits()),
            protocol: self.protocol.bits(),
            memory: self.memory.as_ref().map(|memory| memory.export(out)),
            log: self.log.as_ref().map(|log| log.export(out)),
            repeated: self.repeated.clone(),
            vrings: self.vrings.iter().map(|vring| vring.export(out)).collect(),
            control_pairs: self.control_pairs,
            backend: self.backend.as_ref().map(|backend| backend.export(out)),
            told_down: self.told_down,
        }
    }

    /// Imports a session, stopped: it touches nothing before [`Session::resume`].
    ///
    /// # Errors
    ///
    /// Fails if the state is not one for `device`, or is incomplete.
    pub fn import(
        state: &SessionState,
        from: &mut Importer,
        device: &NetDevice,
        max_ring_size: u16,
    ) -> Result<Session, StateError> {
        let fresh = Session::new(device, max_ring_size);
        if state.vrings.len() != fresh.vrings.len() {
            return Err(StateError::Contradiction("the numbers of vrings and queue pairs do not match"));
        }
        if state.control_pairs == 0 || usize::from(state.control_pairs) > device.pairs() {
            return Err(StateError::Contradiction("the driver uses pairs that do not exist"));
        }
        if state.protocol & !PROTOCOL.bits() != 0 {
            return Err(StateError::Contradiction("protocol features that this program does not support"));
        }
        let fresh = Session { protocol: Protocol::from_bits_retain(state.protocol), ..fresh };
        let acked = state.acked.map(Features::from_bits_retain);
        // The protocol features may have changed since, and the offer with them.
        let offered = fresh.offered(device) | Features::NET_GUEST_ANNOUNCE;
        let surplus = acked.unwrap_or_default().difference(offered);
        if !surplus.is_empty() {
            return Err(StateError::Features(surplus));
        }
        let memory = state.memory.as_ref().map(|regions| MemoryTable::import(regions, from)).transpose()?;
        let log = state.log.as_ref().map(|log| MigrationLog::import(log, from)).transpose()?;
        let vrings = state.vrings.iter().map(|vring| VringSetup::import(vring, from));
        let vrings = vrings.collect::<Result<Vec<_>, StateError>>()?;
        if vrings.iter().filter_map(|vring| vring.size).any(|n| !n.is_power_of_two() || n > max_ring_size) {
            return Err(StateError::Contradiction("a vring has an invalid size"));
        }
        Ok(Session {
            acked,
            memory,
            log,
            repeated: state.repeated.clone(),
            vrings,
            control_pairs: state.control_pairs,
            backend: state.backend.map(|id| BackendChannel::import(id, from)).transpose()?,
            told_down: state.told_down,
            ..fresh
        })
    }
}
