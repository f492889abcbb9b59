//! What vCPUs and devices are put on, and what the parts of a machine have in common.
//!
//! The builder makes all of it first, and the [`Board`] of it; vCPUs, devices and whoever ends or pauses the
//! machine hold their parts of it. Nothing here knows of a device.
//!
//! | module | holds |
//! |---|---|
//! | [`layout`] | the guest's physical address space, ports and interrupts: every fixed number |
//! | [`memory`] | guest memory |
//! | [`bus`] | port and memory-mapped I/O: ranges, and the devices behind them |
//! | [`irq`] | level-triggered interrupt lines |
//! | [`exit`] | how the machine comes to its end |
//! | [`vcpu_error`] | why a vCPU cannot go on |
//! | [`pause_gate`] | where threads wait while the machine is paused |

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

/// The address spaces that a vCPU's exits reach.
#[derive(Default)]
pub struct Buses {
    /// Port I/O.
    pub pio: Bus,
    /// Memory-mapped I/O.
    pub mmio: Arc<Bus>,
}

/// What all processors of a machine share.
#[derive(Clone)]
pub struct Board {
    /// What their exits reach.
    pub buses: Arc<Buses>,
    /// The end.
    pub exit: Arc<ExitEvent>,
    /// Closed while the machine is paused.
    pub gate: Arc<PauseGate>,
}
