//! Pauses a machine: its vCPUs, its devices' workers, and the frames that this process moves.
//!
//! The builder makes one [`Pause`] for each machine; the API's threads call it. vCPUs and workers stop at the
//! [`PauseGate`], so that nobody starts or resets a device while the data paths of network devices, which are
//! not the gate's, stop one by one. What other processes and the kernel move goes on as far as the guest has
//! left them buffers. Signals, the console and the machine's end do not depend on it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use log::info;
use thiserror::Error;
use volt_net::device::DeviceError;

use crate::board::pause_gate::{PauseGate, PauseTimeout};
use crate::machine::devices::Devices;

/// How long vCPUs and workers may take: a disk's request in hand is what takes longest.
const LIMIT: Duration = Duration::from_secs(3);

/// Why a machine runs on.
#[derive(Debug, Error)]
pub enum PauseError {
    /// A thread is held up by the host's disk.
    #[error("a thread is held up by the host's disk: {0}")]
    Late(#[from] PauseTimeout),
    /// A network device's worker is stuck.
    #[error("a network device does not stop")]
    Device(#[source] DeviceError),
}

/// What stops and goes on.
pub struct Pause {
    gate: Arc<PauseGate>,
    devices: Arc<Devices>,
    /// One change at a time.
    turn: Mutex<()>,
    paused: AtomicBool,
}

impl Pause {
    /// A machine whose threads pass `gate`, and whose frames move by `devices`. Those that come while it is
    /// paused have none before the guest goes on.
    pub fn new(gate: Arc<PauseGate>, devices: Arc<Devices>) -> Pause {
        Pause { gate, devices, turn: Mutex::default(), paused: AtomicBool::new(false) }
    }

    /// Whether the machine is paused.
    pub fn is_paused(&self) -> bool {
        self.paused.load(Ordering::SeqCst)
    }

    /// Stops everything; a machine that is paused stays so. Waits for a bounded time. Answers whether it ran
    /// before.
    ///
    /// # Errors
    ///
    /// When something does not stop; the machine runs on then.
    pub fn pause(&self) -> Result<bool, PauseError> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_paused() {
            return Ok(false);
        }
        self.gate.close(LIMIT)?;
        if let Err(error) = self.devices.pause() {
            self.go_on();
            return Err(PauseError::Device(error));
        }
        self.paused.store(true, Ordering::SeqCst);
        info!(event = "paused"; "paused");
        Ok(true)
    }

    /// Goes on; a machine that runs stays so.
    pub fn resume(&self) {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_paused() {
            self.go_on();
            self.paused.store(false, Ordering::SeqCst);
            info!(event = "resumed"; "goes on");
        }
    }

    fn go_on(&self) {
        self.devices.resume();
        self.gate.open();
    }
}
