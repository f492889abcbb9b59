//! Pausing a machine: its vCPUs, its devices' workers, and the frames that this process moves.
//!
//! The builder creates one [`Pause`] for each machine, and the API's threads call it. vCPUs and workers stop
//! at the [`PauseGate`]. So nothing starts or resets a device while the data paths of network devices, which
//! the gate does not stop, stop one by one. Frames that other processes and the kernel move continue until
//! the guest's buffers are used up. Signals, the console and the machine's end do not depend on the pause.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use log::info;
use thiserror::Error;
use volt_net::device::DeviceError;

use crate::board::pause_gate::{PauseGate, PauseTimeout};
use crate::machine::devices::Devices;

/// How long vCPUs and workers may take to stop. The longest wait is for a disk's request in progress.
const LIMIT: Duration = Duration::from_secs(3);

/// Why a machine cannot be paused.
#[derive(Debug, Error)]
pub enum PauseError {
    /// A thread waits for the host's disk.
    #[error("a thread waits for the host's disk: {0}")]
    Late(#[from] PauseTimeout),
    /// A network device's worker is stuck.
    #[error("a network device does not stop")]
    Device(#[source] DeviceError),
}

/// Pauses and resumes a machine.
pub struct Pause {
    gate: Arc<PauseGate>,
    devices: Arc<Devices>,
    /// Held during a change, so that there is one at a time.
    turn: Mutex<()>,
    paused: AtomicBool,
}

impl Pause {
    /// Creates the pause of a machine whose threads pass `gate`, and whose frames `devices` move. Devices
    /// that are added during a pause move no frames before the guest continues.
    pub fn new(gate: Arc<PauseGate>, devices: Arc<Devices>) -> Pause {
        Pause { gate, devices, turn: Mutex::default(), paused: AtomicBool::new(false) }
    }

    /// Returns whether the machine is paused.
    pub fn is_paused(&self) -> bool {
        self.paused.load(Ordering::SeqCst)
    }

    /// Pauses the machine, if it is not paused already. Waits a bounded time. Returns whether it ran before.
    ///
    /// # Errors
    ///
    /// Fails if something does not stop. The machine then continues.
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

    /// Resumes the machine, if it is paused.
    pub fn resume(&self) {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_paused() {
            self.go_on();
            self.paused.store(false, Ordering::SeqCst);
            info!(event = "resumed"; "resumed");
        }
    }

    fn go_on(&self) {
        self.devices.resume();
        self.gate.open();
    }
}
