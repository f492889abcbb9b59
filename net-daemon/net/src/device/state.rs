//! The device in a saved state: the settings, and the data that workers change by themselves.

use std::collections::BTreeMap;
use std::fs::File;

use serde::{Deserialize, Serialize};
use volt_virtio::features::Features;

use super::NetDevice;
use crate::config::Mac;
use crate::counters::CounterMemory;
use crate::limiter::RateLimits;
use crate::state::{Exporter, FdId, Format, Importer, StateError};

/// The device's part of a state, without its port.
#[derive(Debug, Serialize, Deserialize)]
pub struct DeviceState {
    /// Queue pairs.
    pub pairs: u16,
    /// MAC address.
    pub mac: [u8; 6],
    /// MTU, if one is offered to the guest.
    pub mtu: Option<u16>,
    /// Rate limits.
    #[serde(default)]
    pub limits: RateLimits,
    /// Microseconds that workers poll before they sleep.
    #[serde(default)]
    pub busy_poll_us: u16,
    /// The memory of the counters, from format 2 on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counters: Option<FdId>,
}

/// Data that workers change by themselves: the part of a stopped device that a [`DeviceState`] does not
/// contain.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct RunState {
    /// The counters of each pair by name, in format 1.
    pub counters: Vec<BTreeMap<String, u64>>,
    /// For each pair, a frame that was received but not delivered, in hexadecimal.
    pub stashes: Vec<Option<HexBytes>>,
    /// An address of the guest that is to be announced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub announcement: Option<[u8; 6]>,
}

/// Bytes that a state contains as hexadecimal text.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct HexBytes(#[serde(with = "crate::state::hex")] pub Vec<u8>);

impl NetDevice {
    /// Exports the settings, which do not change while the device runs, in this format.
    pub fn export<'a>(&'a self, format: Format, out: &mut Exporter<'a>) -> DeviceState {
        let mtu = self.offered.contains(Features::NET_MTU).then_some(self.config.mtu);
        DeviceState {
            pairs: self.config.max_pairs,
            mac: self.config.mac.0,
            mtu,
            limits: self.limits,
            busy_poll_us: self.busy_poll_us,
            counters: self.counter_file(format).map(|file| out.fd(self.counters_id, file)),
        }
    }

    /// Exports the data that workers change. Does not include frames of running pairs.
    pub fn run_state(&self, format: Format) -> RunState {
        let written =
            |pair| self.counters(pair).all().map(|(name, count)| (name.to_owned(), count)).collect();
        let written_here = if self.counter_file(format).is_some() { 0 } else { self.pairs() };
        RunState {
            counters: (0..written_here).map(written).collect(),
            stashes: self.stashes.iter().map(|stash| stash.clone().map(HexBytes)).collect(),
            announcement: self.announcement.map(|mac| mac.0),
        }
    }

    /// Returns the file that a state of this format names instead of counter values, if there is one.
    fn counter_file(&self, format: Format) -> Option<&File> {
        self.counters.file().filter(|_| format.has_counter_memory())
    }

    /// Continues to count in the memory of a state, which another process shares, or in a copy. No pair may
    /// run yet.
    ///
    /// # Errors
    ///
    /// Fails if the memory did not come, or is something else.
    pub fn import_counters(&mut self, id: FdId, from: &mut Importer) -> Result<(), StateError> {
        let (memory, copied) =
            CounterMemory::open(from.take(id)?, self.pairs()).map_err(StateError::Counters)?;
        self.counters = memory;
        if !copied {
            self.counters_id = id;
        }
        Ok(())
    }

    /// Continues with the data of another process. No pair may run yet.
    pub fn set_run_state(&mut self, run_state: RunState) {
        for (pair, counts) in (0..self.pairs()).zip(&run_state.counters) {
            self.counters.of(pair).set(counts);
        }
        for (stash, frame) in self.stashes.iter_mut().zip(run_state.stashes) {
            *stash = frame.map(|bytes| bytes.0);
        }
        self.announcement = run_state.announcement.map(Mac);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::os::unix::net::UnixDatagram;

    use super::*;
    use crate::builder::VirtioNetBuilder;
    use crate::counters::memory_of_version;
    use crate::port::socket::SocketPort;

    fn device() -> NetDevice {
        let (near, _) = UnixDatagram::pair().unwrap();
        let port = SocketPort::new(vec![near.into()]).unwrap();
        VirtioNetBuilder::over(port).build().unwrap().into_device()
    }

    /// The keeper of a state is sent the descriptors that it does not have. A copy of the counters has a new
    /// number; shared counters keep theirs.
    #[test]
    fn a_copy_of_counters_is_another_descriptor() {
        let ours = device().counters(0).fields().count();
        for (counters, is_copy) in [(2, true), (ours, false), (ours + 1, false)] {
            let (id, mut device) = (FdId::fresh(), device());
            let (_words, memory) = memory_of_version(counters, 1);
            device.import_counters(id, &mut Importer::new(BTreeMap::from([(id, memory)]))).unwrap();
            assert_eq!(device.counters(0).tx_bytes.get(), 1, "{counters} counters");
            let mut out = Exporter::default();
            let newest = Format::ALL.iter().copied().find(|format| format.has_counter_memory()).unwrap();
            let named = device.export(newest, &mut out).counters;
            assert_eq!(named != Some(id), is_copy, "{counters} counters");
        }
    }
}
