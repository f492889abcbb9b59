//! The interface to a running machine for other threads.

use std::sync::Arc;
use std::time::Instant;

use crate::board::exit::ExitEvent;
use crate::board::pause_gate::PauseGate;
use crate::machine::devices::Devices;
use crate::machine::pause::Pause;
use crate::machine::power::PowerButton;

/// A machine for the threads of the API. Their requests may outlive it.
pub struct MachineHandle {
    /// Number of vCPUs.
    pub cpus: u8,
    /// Bytes of guest memory.
    pub memory: u64,
    /// When the machine was built.
    pub started: Instant,
    /// The devices.
    pub devices: Arc<Devices>,
    /// The gate that the threads of later devices pass.
    pub gate: Arc<PauseGate>,
    /// Requests the end of the machine.
    pub exit: Arc<ExitEvent>,
    /// Pauses and resumes the machine.
    pub pause: Pause,
    /// Asks the guest to shut down.
    pub power_button: Arc<PowerButton>,
}
