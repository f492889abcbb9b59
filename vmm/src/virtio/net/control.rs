//! The control vring (virtio 1.2, 5.1.6.5) of all network devices, served by the VMM.
//!
//! It has its own thread, so that commands get answers whatever the data path does. If the data path did not
//! start, each command is refused: a driver waits for the answer, and Linux waits in a loop that occupies its
//! processor.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use thiserror::Error;
use volt_net::config::NetConfig;
use volt_net::control::command::{self, Command, CommandError, Limits};
use volt_virtio::features::Features;

use crate::board::pause_gate::PauseGate;
use crate::faults::Faults;
use crate::virtio::chain::{Chain, ChainError};
use crate::virtio::net::changes::{Change, Changes};
use crate::virtio::ring::Ring;
use crate::virtio::worker::Worker;
use crate::virtio::{ActivateError, Activation};

/// Features of the control vring and of the configuration space, which belong to the VMM. The specification
/// makes receive modes and filters best effort (5.1.6.5.1). Nothing is filtered here: every frame passes, and
/// the driver drops the frames that it did not ask for.
pub const OWN: Features = Features::NET_MAC
    .union(Features::NET_STATUS)
    .union(Features::NET_CTRL_VQ)
    .union(Features::NET_CTRL_RX)
    .union(Features::NET_CTRL_VLAN)
    .union(Features::NET_CTRL_MAC_ADDR);

/// Entries of a receive or transmit vring.
const DATA_VRING_SIZE: u16 = 256;
/// Entries of a control vring.
const CONTROL_VRING_SIZE: u16 = 64;

/// Returns the largest sizes of the vrings of a device with `pairs` queue pairs. The control vring is last.
pub fn vring_sizes(pairs: u16) -> Vec<u16> {
    let mut sizes = vec![DATA_VRING_SIZE; 2 * usize::from(pairs)];
    sizes.push(CONTROL_VRING_SIZE);
    sizes
}

/// Returns how many of `pairs` queue pairs a driver can use that acknowledged `acked`.
pub fn usable_pairs(acked: Features, pairs: u16) -> u16 {
    if acked.contains(Features::NET_MQ) { pairs } else { 1 }
}

/// Returns the control vring's number. With MQ it follows the vrings of all pairs, otherwise those of the
/// first pair (5.1.2).
pub fn control_index(acked: Features, pairs: u16) -> u16 {
    2 * usable_pairs(acked, pairs)
}

/// A device whose control vring is served.
pub struct Served<'a> {
    /// Starts its log lines.
    pub label: &'a str,
    /// Number of queue pairs.
    pub pairs: u16,
    /// Its configuration. The driver can set the MAC address in it.
    pub config: &'a Arc<Mutex<NetConfig>>,
    /// No command is served while this gate is closed.
    pub gate: &'a Arc<PauseGate>,
}

/// Takes the control vring out of `activation` and serves it until the worker is dropped. `apply` is called
/// on another thread, before the driver gets its answer. The first command waits until `started` is set. If
/// it says that the data path did not start, every command is refused. Returns `None` if the driver uses no
/// control vring.
///
/// # Errors
///
/// Fails if no thread can be created.
pub fn serve(
    served: &Served<'_>,
    activation: &mut Activation,
    started: Arc<OnceLock<bool>>,
    apply: impl FnMut(Change) + Send + 'static,
) -> Result<Option<Worker>, ActivateError> {
    let Served { label, pairs, config, gate } = *served;
    let acked = activation.features;
    let Ok(vring) = activation.take_vring(control_index(acked, pairs)) else { return Ok(None) };
    if !acked.contains(Features::NET_CTRL_VQ) {
        return Ok(None);
    }
    let ring = Ring::new(vring, activation);
    let limits = Limits { acked, max_pairs: usable_pairs(acked, pairs) };
    let mut requests = ControlQueue { limits, started, config: config.clone(), faults: Faults::new(label) };
    let changes = Changes::new(apply).map_err(ActivateError::Thread)?;
    let worker = Worker::spawn(label, "net-control", gate, ring, move |chain| {
        requests.serve(chain, |change| changes.carry_out(change))
    });
    worker.map(Some).map_err(ActivateError::Thread)
}

#[derive(Debug, Error)]
enum ControlError {
    #[error(transparent)]
    Chain(#[from] ChainError),
    #[error("control command without room for the answer")]
    NoAck,
    #[error("control command")]
    Command(#[from] CommandError),
    #[error("control command for a device that did not start")]
    NoDataPath,
}

/// Serves control commands for one activation.
struct ControlQueue {
    limits: Limits,
    started: Arc<OnceLock<bool>>,
    config: Arc<Mutex<NetConfig>>,
    faults: Faults,
}

impl ControlQueue {
    /// Serves one command. Returns the number of bytes written.
    fn serve(&mut self, chain: Result<&Chain<'_>, ChainError>, apply: impl Fn(Change)) -> u32 {
        let result = match chain {
            Ok(chain) if !chain.writable.is_empty() => {
                let result = self.execute(chain, apply);
                chain.writable.copy_from(&[command::ack(&result)]);
                result.map(|()| 1).map_err(|error| (error, 1))
            }
            Ok(_) => Err((ControlError::NoAck, 0)),
            Err(error) => Err((error.into(), 0)),
        };
        result.unwrap_or_else(|(error, used)| {
            self.faults.report(&error);
            used
        })
    }

    fn execute(&self, chain: &Chain<'_>, apply: impl Fn(Change)) -> Result<(), ControlError> {
        if !*self.started.wait() {
            return Err(ControlError::NoDataPath);
        }
        let carry_out = |command| match command {
            Command::SetPairs(pairs) => apply(Change::Pairs(pairs)),
            Command::SetGuestOffloads(offloads) => apply(Change::Offloads(offloads)),
            Command::SetMac(mac) => self.config.lock().unwrap_or_else(PoisonError::into_inner).mac = mac,
            // See OWN.
            Command::SetRxMode(..)
            | Command::SetMacTable { .. }
            | Command::AddVlan(_)
            | Command::DeleteVlan(_) => {}
            // Its feature is not offered, so the parser refuses it.
            Command::AckAnnounce => {}
        };
        let read = |bytes: &mut [u8]| chain.readable.copy_to(bytes);
        Ok(command::execute(chain.readable.len(), read, self.limits, carry_out)?)
    }
}
