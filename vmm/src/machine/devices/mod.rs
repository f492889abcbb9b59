//! The machine's virtio devices by name: what the API shows and changes, what a pause stops, and what comes
//! and goes.
//!
//! The builder makes one [`Devices`] for each machine and fills it. With virtio-mmio it stays as it is; on a
//! PCI bus [`Devices::plug`] adds a device while the guest runs, and [`Devices::remove`] asks the guest for
//! one, whose answer, like one that nobody asked for, comes to [`Devices::ejected`].
//!
//! One lock holds the list together with the slots: whoever plugs has it to the end, so that a slot that
//! looks free is. It is taken before the locks of the buses, and neither in an access to a device nor while
//! one ends, which takes as long as its request in hand: until then its name and its slot stay taken.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use log::{info, warn};
use serde::{Deserialize, Serialize};
use volt_net::config::Mac;
use volt_net::device::DeviceError;

use crate::pci::hotplug::HotplugEvents;
use crate::virtio::VirtioDevice;
use crate::virtio::handle::{DeviceHandle, DeviceKind};
use crate::virtio::maker::{Made, Maker};
use crate::virtio::pci::slots::PciSlots;
use crate::virtio::status::DeviceStatus;

mod error;

pub use error::PlugError;

/// What is known of a device beside its transport.
pub struct Device {
    /// What it is.
    pub kind: DeviceKind,
    /// Its name.
    pub name: String,
    /// Of a network device.
    pub mac: Option<Mac>,
    /// Shows and changes it.
    pub handle: Arc<dyn DeviceHandle>,
}

impl Device {
    /// What `device` shows of itself, before a transport takes it.
    pub fn of(device: &dyn VirtioDevice) -> Device {
        let name = device.name().to_owned();
        Device { kind: device.kind(), name, mac: device.mac(), handle: device.handle() }
    }
}

/// How a device of the list is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ListedStatus {
    /// Of the device itself.
    #[serde(flatten)]
    pub device: DeviceStatus,
    /// On a PCI bus.
    #[serde(flatten)]
    pub slot: Option<SlotStatus>,
}

/// How a slot of the PCI bus is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotStatus {
    /// Its number.
    pub slot: usize,
    /// The guest was asked for the device.
    pub removing: bool,
}

struct Entry {
    device: Device,
    /// On the PCI bus.
    slot: Option<usize>,
    /// The guest was asked for it.
    removing: bool,
    /// Differs from that of a later device in the same slot.
    id: u64,
}

/// A PCI bus whose slots may be filled and emptied while the guest runs.
struct Plug {
    slots: PciSlots,
    events: Arc<HotplugEvents>,
    maker: Arc<Maker>,
}

/// The devices in the order in which they came.
pub struct Devices {
    list: Mutex<List>,
    gone: Condvar,
    plug: Option<Plug>,
}

#[derive(Default)]
struct List {
    entries: Vec<Entry>,
    next_id: u64,
    /// Nothing comes any more.
    ended: bool,
}

impl List {
    fn push(&mut self, device: Device, slot: Option<usize>) {
        if let (Some(mac), Some(twin)) = (device.mac, self.same_address(&device)) {
            let name = &device.name;
            warn!(
                event = "same_address", device:% = name;
                "{twin} and {name} have the same address, {mac}: on one network neither works; give them \
                 others with mac="
            );
        }
        let id = self.next_id;
        self.next_id += 1;
        self.entries.push(Entry { device, slot, removing: false, id });
    }

    /// Another network device of the same address.
    fn same_address(&self, device: &Device) -> Option<&str> {
        let others = self.entries.iter().map(|entry| &entry.device);
        others
            .filter(|other| device.mac.is_some() && other.mac == device.mac)
            .map(|other| &*other.name)
            .next()
    }

    /// By name, or by number among those of its kind.
    fn find(&mut self, kind: DeviceKind, name: &str) -> Result<&mut Entry, PlugError> {
        let same: Vec<_> =
            (0..self.entries.len()).filter(|at| self.entries[*at].device.kind == kind).collect();
        let named = same.iter().find(|at| self.entries[**at].device.name == name);
        let numbered = || same.get(name.parse::<usize>().ok()?);
        match named.or_else(numbered) {
            Some(at) => Ok(&mut self.entries[*at]),
            None => {
                let names = same.iter().map(|at| self.entries[*at].device.name.clone()).collect();
                Err(PlugError::Absent { kind, name: name.to_owned(), names })
            }
        }
    }
}

impl Devices {
    /// Devices that stay.
    pub fn fixed(devices: Vec<Device>) -> Devices {
        let mut list = List::default();
        devices.into_iter().for_each(|device| list.push(device, None));
        Devices { list: Mutex::new(list), gone: Condvar::new(), plug: None }
    }

    /// None yet; they go into `slots`, the guest is told by `events`, and `maker` starts and resets them.
    pub fn on_pci(slots: PciSlots, events: Arc<HotplugEvents>, maker: Arc<Maker>) -> Devices {
        Devices { plug: Some(Plug { slots, events, maker }), ..Devices::fixed(Vec::new()) }
    }

    /// How each device is.
    pub fn status(&self) -> Vec<ListedStatus> {
        let entries: Vec<_> = {
            let list = self.list();
            let slot = |entry: &Entry| Some(SlotStatus { slot: entry.slot?, removing: entry.removing });
            list.entries.iter().map(|entry| (entry.device.handle.clone(), slot(entry))).collect()
        };
        // Without the list, which a vCPU may want: a device that is slow to stop is slow to tell, too.
        entries.into_iter().map(|(handle, slot)| ListedStatus { device: handle.status(), slot }).collect()
    }

    /// Does something with a device, by its name or its number among those of its kind.
    ///
    /// # Errors
    ///
    /// [`PlugError::Absent`].
    pub fn with<T>(
        &self,
        kind: DeviceKind,
        name: &str,
        act: impl FnOnce(&Device) -> T,
    ) -> Result<T, PlugError> {
        self.list().find(kind, name).map(|entry| act(&entry.device))
    }

    /// Stops all frames that this process moves; some may have stopped when that fails.
    ///
    /// # Errors
    ///
    /// When a worker does not stop.
    pub fn pause(&self) -> Result<(), DeviceError> {
        let list = self.list();
        list.entries.iter().try_for_each(|entry| entry.device.handle.pause())
    }

    /// Goes on after [`Devices::pause`].
    pub fn resume(&self) {
        let list = self.list();
        list.entries.iter().for_each(|entry| entry.device.handle.resume());
    }

    /// Whether [`Devices::plug`] would take a device of this name now: to be asked before it is opened.
    ///
    /// # Errors
    ///
    /// What is in its way.
    pub fn room_for(&self, kind: DeviceKind, name: &str) -> Result<(), PlugError> {
        self.check(&self.list(), kind, name).map(|_| ())
    }

    fn check(&self, list: &List, kind: DeviceKind, name: &str) -> Result<&Plug, PlugError> {
        let plug = self.plug.as_ref().ok_or(PlugError::Mmio)?;
        if list.ended {
            return Err(PlugError::Ended);
        }
        if list.entries.iter().any(|entry| entry.device.kind == kind && entry.device.name == name) {
            return Err(PlugError::Taken { kind, name: name.to_owned() });
        }
        plug.slots.room(|_| true)?;
        Ok(plug)
    }

    /// Adds a device that is there when the guest starts.
    ///
    /// # Errors
    ///
    /// Without a PCI bus, or when that does not take it.
    pub fn attach(&self, device: Box<dyn VirtioDevice>) -> Result<usize, PlugError> {
        let plug = self.plug.as_ref().ok_or(PlugError::Mmio)?;
        self.put(&mut self.list(), plug, device)
    }

    /// Adds a device while the guest runs, and tells it. The slot is where the guest finds it.
    ///
    /// # Errors
    ///
    /// See [`PlugError`]; the device is closed again then.
    pub fn plug(&self, device: Box<dyn VirtioDevice>) -> Result<usize, PlugError> {
        let Device { kind, name, .. } = Device::of(&*device);
        let mut list = self.list();
        let plug = self.check(&list, kind, &name)?;
        let slot = self.put(&mut list, plug, device)?;
        plug.events.plugged(slot);
        drop(list);
        info!(event = "device_added", device:% = name, slot; "{} {name}: added in slot {slot}", kind.name());
        Ok(slot)
    }

    fn put(&self, list: &mut List, plug: &Plug, device: Box<dyn VirtioDevice>) -> Result<usize, PlugError> {
        let shown = Device::of(&*device);
        let slot = plug.slots.room(|slot| plug.events.is_settled(slot))?;
        plug.slots.put(slot, Made::wrap(&plug.maker, device))?;
        list.push(shown, Some(slot));
        Ok(slot)
    }

    /// Asks the guest for a device, and waits until it has given it back.
    ///
    /// # Errors
    ///
    /// With virtio-mmio, without such a device, and when the guest takes longer than `limit`: then the
    /// request stands.
    pub fn remove(&self, kind: DeviceKind, name: &str, limit: Duration) -> Result<(), PlugError> {
        let plug = self.plug.as_ref().ok_or(PlugError::Mmio)?;
        let end = Instant::now() + limit;
        let mut list = self.list();
        let entry = list.find(kind, name)?;
        entry.removing = true;
        let (id, name) = (entry.id, entry.device.name.clone());
        info!(
            event = "device_removal_asked", device:% = name;
            "{} {name}: the guest is asked to give it back", kind.name()
        );
        if let Some(slot) = entry.slot {
            plug.events.eject(slot);
        }
        while list.entries.iter().any(|entry| entry.id == id) {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(PlugError::Late { kind, name, waited: limit });
            }
            list = self.gone.wait_timeout(list, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        if list.ended { Err(PlugError::Ended) } else { Ok(()) }
    }

    /// Closes all devices, as the machine ends, whoever still waits for the guest here or has something of
    /// theirs. Called when the vCPUs have stopped; what one that has not keeps busy stays open.
    pub fn end(&self) {
        let mut list = self.list();
        list.ended = true;
        list.entries.clear();
        drop(list);
        if let Some(plug) = &self.plug {
            plug.slots.end();
        }
        self.gone.notify_all();
    }

    /// The guest gives `slot` back: what is in it ends here. Called on a vCPU's thread, with no device in its
    /// hands.
    pub fn ejected(&self, slot: usize) {
        let Some(plug) = &self.plug else { return };
        let of_slot = |entry: &&Entry| entry.slot == Some(slot);
        let Some(id) = self.list().entries.iter().find(of_slot).map(|entry| entry.id) else { return };
        // Without the list, which everybody wants, and the machine's end too.
        if !plug.slots.take(slot) {
            return;
        }
        let mut list = self.list();
        plug.events.forget(slot);
        plug.slots.release(slot);
        // Unless the machine has ended meanwhile.
        let Some(at) = list.entries.iter().position(|entry| entry.id == id) else { return };
        let Entry { device: Device { kind, name, .. }, removing, .. } = list.entries.remove(at);
        drop(list);
        self.gone.notify_all();
        let why = if removing { "" } else { ", which nobody asked for" };
        info!(
            event = "device_removed", device:% = name;
            "{} {name}: given back by the guest{why}; it is removed", kind.name()
        );
    }

    fn list(&self) -> MutexGuard<'_, List> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod slow_tests;
#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::handle::Labelled;

    fn net(name: &str, mac: Option<u8>) -> Device {
        let mac = mac.map(|last| Mac([2, 0, 0, 0, 0, last]));
        let handle = Arc::new(Labelled(format!("net {name}")));
        Device { kind: DeviceKind::Net, name: name.to_owned(), mac, handle }
    }

    #[test]
    fn two_of_an_address_are_noticed() {
        let mut list = List::default();
        for (name, mac, twin) in [
            ("a", Some(1), None),
            ("b", Some(2), None),
            ("c", Some(1), Some("a")),
            ("d", None, None),
            ("e", None, None),
        ] {
            let device = net(name, mac);
            assert_eq!(list.same_address(&device), twin, "{name}");
            list.push(device, None);
        }
    }

    #[test]
    fn what_there_is_is_named() {
        let absent = |names: &[&str]| {
            let devices = Devices::fixed(names.iter().map(|name| net(name, None)).collect());
            devices.with(DeviceKind::Net, "x", |_| ()).unwrap_err().to_string()
        };
        assert_eq!(absent(&[]), "there is no network device x: there is none at all");
        assert_eq!(absent(&["a"]), r#"there is no network device x: there is "a", or 0"#);
        assert_eq!(
            absent(&["a", "b", "c"]),
            r#"there is no network device x: they are ["a", "b", "c"], or 0 to 2 in this order"#
        );
    }
}
