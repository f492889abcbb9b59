//! How a machine is, as the API shows it: the schema of `docs/reference/http-api.md`.

use serde::{Deserialize, Serialize};

use crate::machine::devices::ListedStatus;

/// A machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MachineStatus {
    /// Name and version of the program.
    pub program: String,
    /// Of the process.
    pub pid: u32,
    /// Since the machine was built.
    pub uptime_seconds: u64,
    /// Whether it runs.
    pub state: MachineState,
    /// Number of vCPUs.
    pub cpus: u32,
    /// Of the guest.
    pub memory_bytes: u64,
    /// In the guest's order.
    pub devices: Vec<ListedStatus>,
}

/// Whether a machine runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MachineState {
    /// It does.
    Running,
    /// It has been told to wait.
    Paused,
}
