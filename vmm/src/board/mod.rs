//! The base of vCPUs and devices, shared by all parts of a machine.
//!
//! The builder creates all of it first, and combines it in the [`Board`]. vCPUs, devices, and threads that
//! end or pause the machine hold their parts of it. Nothing here knows a device.
//!
//! | module | holds |
//! |---|---|
//! | [`layout`] | the guest's physical address space, ports and interrupts: every fixed number |
//! | [`memory`] | guest memory |
//! | [`bus`] | port and memory-mapped I/O: ranges, and the devices behind them |
//! | [`irq`] | level-triggered interrupt lines |
//! | [`exit`] | the machine's end and the exit status |
//! | [`vcpu_error`] | why a vCPU cannot continue |
//! | [`pause_gate`] | the gate where threads wait while the machine is paused |

use std::sync::Arc;

use crate::board::bus::Bus;
use crate::board::exit::ExitEvent;
use crate::board::pause_gate::PauseGate;

pub mod bus;
pub mod exit;
pub mod irq;
pub mod layout;
pub mod memory;
pub mod pause_gate;
pub mod vcpu_error;

/// The address spaces of a vCPU's exits.
#[derive(Default)]
pub struct Buses {
    /// Port I/O.
    pub pio: Bus,
    /// Memory-mapped I/O.
    pub mmio: Arc<Bus>,
}

/// Shared by all processors of a machine.
#[derive(Clone)]
pub struct Board {
    /// The address spaces of their exits.
    pub buses: Arc<Buses>,
    /// Requests the end of the machine.
    pub exit: Arc<ExitEvent>,
    /// Closed while the machine is paused.
    pub gate: Arc<PauseGate>,
}
