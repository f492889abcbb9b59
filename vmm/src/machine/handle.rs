//! What others show and change of a machine while it runs.

use std::sync::Arc;
use std::time::Instant;

use crate::board::exit::ExitEvent;
use crate::board::pause_gate::PauseGate;
use crate::machine::devices::Devices;
use crate::machine::pause::Pause;
use crate::machine::power::PowerButton;

/// A machine for the threads of the API, whose requests may outlive it.
pub struct MachineHandle {
    /// Number of vCPUs.
    pub cpus: u8,
    /// Bytes of guest memory.
    pub memory: u64,
    /// When the machine was built.
    pub started: Instant,
    /// The devices.
    pub devices: Arc<Devices>,
    /// What the threads of those to come pass.
    pub gate: Arc<PauseGate>,
    /// The end.
    pub exit: Arc<ExitEvent>,
    /// Stops everything for a while.
    pub pause: Pause,
    /// Asks the guest to end.
    pub power_button: Arc<PowerButton>,
}
