//! Commands of the control vring (virtio 1.2, 5.1.6.5), as the VMM serves them for a vhost-user device.

use std::sync::{Arc, Mutex, PoisonError};

use log::debug;
use thiserror::Error;
use volt_net::net::config::NetConfig;
use volt_net::net::ctrl::{self, ACK_ERR, ACK_OK, Command, CommandError, Limits, MAX_COMMAND_LEN};
use volt_net::virtio::features::Features;

use crate::virtio::chain::{Chain, ChainError};
use crate::virtio::faults::Faults;

#[derive(Debug, Error)]
enum ControlError {
    #[error(transparent)]
    Chain(#[from] ChainError),
    #[error("control command without room for its answer")]
    NoAck,
    #[error("control command of {0} bytes")]
    Long(usize),
    #[error("control command")]
    Command(#[from] CommandError),
}

/// Serves control commands for one activation.
pub struct Requests {
    limits: Limits,
    config: Arc<Mutex<NetConfig>>,
    faults: Faults,
}

impl Requests {
    /// A server for a driver that acknowledged `acked` and may use `max_pairs`.
    pub fn new(label: &str, acked: Features, max_pairs: u16, config: Arc<Mutex<NetConfig>>) -> Requests {
        Requests { limits: Limits { acked, max_pairs }, config, faults: Faults::new(label) }
    }

    /// Serves one command; `set_pairs` is called when the driver wants another number of pairs. Answers
    /// the bytes written.
    pub fn serve(&mut self, chain: Result<&Chain<'_>, ChainError>, set_pairs: impl FnOnce(u16)) -> u32 {
        let result = match chain {
            Ok(chain) if !chain.writable.is_empty() => {
                let result = self.execute(chain, set_pairs);
                chain.writable.copy_from(&[if result.is_ok() { ACK_OK } else { ACK_ERR }]);
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

    fn execute(&self, chain: &Chain<'_>, set_pairs: impl FnOnce(u16)) -> Result<(), ControlError> {
        let len = chain.readable.len();
        if len > MAX_COMMAND_LEN {
            return Err(ControlError::Long(len));
        }
        let mut bytes = vec![0; len];
        chain.readable.copy_to(&mut bytes);
        let command = ctrl::parse(&bytes, self.limits)?;
        debug!("control command {command:?}");
        match command {
            Command::SetPairs(pairs) => set_pairs(pairs),
            Command::SetMac(mac) => self.config.lock().unwrap_or_else(PoisonError::into_inner).mac = mac,
            // Filters: everything passes, and the driver drops what it did not ask for.
            Command::SetRxMode(..)
            | Command::SetMacTable { .. }
            | Command::AddVlan(_)
            | Command::DeleteVlan(_) => {}
            // Their features are not offered, so the parser lets neither through.
            Command::AckAnnounce | Command::SetGuestOffloads(_) => {}
        }
        Ok(())
    }
}
