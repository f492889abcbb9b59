//! A machine's status, as the API shows it. `docs/reference/openapi.json` has its schema.

use serde::{Deserialize, Serialize};

use crate::machine::devices::ListedStatus;

/// The status of a machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MachineStatus {
    /// Name and version of the program.
    pub program: String,
    /// Number of the process.
    pub pid: u32,
    /// Time since the machine was built.
    pub uptime_seconds: u64,
    /// Whether the machine runs.
    pub state: MachineState,
    /// Number of vCPUs.
    pub cpus: u32,
    /// Size of guest memory.
    pub memory_bytes: u64,
    /// Devices, in the guest's order.
    pub devices: Vec<ListedStatus>,
}

/// Whether a machine runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MachineState {
    /// The machine runs.
    Running,
    /// The machine is paused.
    Paused,
}
