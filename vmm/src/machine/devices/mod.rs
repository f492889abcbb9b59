//! The machine's virtio devices by name. The API shows and changes them, a pause stops them, and hot-plug
//! adds and removes them.
//!
//! The builder creates one [`Devices`] for each machine and fills it. With virtio-mmio the list does not
//! change. On a PCI bus, [`Devices::plug`] adds a device while the guest runs, and [`Devices::remove`] asks
//! the guest to release one. Every ejection by the guest, requested or not, calls [`Devices::ejected`].
//!
//! One lock protects the list and the slots. Adding a device holds it to the end, so that a free slot stays
//! free. It is taken before the locks of the buses. It is held neither during an access to a device nor while
//! a device ends. Ending a device takes as long as its request in progress; until then, its name and its slot
//! stay taken.

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

/// The properties of a device that do not depend on its transport.
pub struct Device {
    /// Kind of the device.
    pub kind: DeviceKind,
    /// Its name.
    pub name: String,
    /// Address of a network device.
    pub mac: Option<Mac>,
    /// Shows and changes the device.
    pub handle: Arc<dyn DeviceHandle>,
}

impl Device {
    /// Returns the properties of `device`, before a transport takes it.
    pub fn of(device: &dyn VirtioDevice) -> Device {
        let name = device.name().to_owned();
        Device { kind: device.kind(), name, mac: device.mac(), handle: device.handle() }
    }
}

/// Status of a device in the list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ListedStatus {
    /// Status of the device itself.
    #[serde(flatten)]
    pub device: DeviceStatus,
    /// Status of its slot on the PCI bus.
    #[serde(flatten)]
    pub slot: Option<SlotStatus>,
}

/// Status of a slot of the PCI bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotStatus {
    /// Number of the slot.
    pub slot: usize,
    /// Whether the guest was asked to release the device.
    pub removing: bool,
}

struct Entry {
    device: Device,
    /// Slot on the PCI bus.
    slot: Option<usize>,
    /// Whether the guest was asked to release it.
    removing: bool,
    /// Unique: a later device in the same slot has another one.
    id: u64,
}

/// A PCI bus whose slots change while the guest runs.
struct Plug {
    slots: PciSlots,
    events: Arc<HotplugEvents>,
    maker: Arc<Maker>,
}

/// The devices, in the order in which they were added.
pub struct Devices {
    list: Mutex<List>,
    gone: Condvar,
    plug: Option<Plug>,
}

#[derive(Default)]
struct List {
    entries: Vec<Entry>,
    next_id: u64,
    /// Whether the machine has ended and no device can be added.
    ended: bool,
}

impl List {
    fn push(&mut self, device: Device, slot: Option<usize>) {
        if let (Some(mac), Some(twin)) = (device.mac, self.same_address(&device)) {
            let name = &device.name;
            warn!(
                event = "same_address", device:% = name;
                "{twin} and {name} have the same address, {mac}: on one network neither works; give one of \
                 them another mac="
            );
        }
        let id = self.next_id;
        self.next_id += 1;
        self.entries.push(Entry { device, slot, removing: false, id });
    }

    /// Finds another network device with the same address.
    fn same_address(&self, device: &Device) -> Option<&str> {
        let others = self.entries.iter().map(|entry| &entry.device);
        others
            .filter(|other| device.mac.is_some() && other.mac == device.mac)
            .map(|other| &*other.name)
            .next()
    }

    /// Finds a device by name, or by number among the devices of its kind.
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
    /// Creates a list that does not change.
    pub fn fixed(devices: Vec<Device>) -> Devices {
        let mut list = List::default();
        devices.into_iter().for_each(|device| list.push(device, None));
        Devices { list: Mutex::new(list), gone: Condvar::new(), plug: None }
    }

    /// Creates an empty list. Devices go into `slots`, `events` notifies the guest, and `maker` starts and
    /// resets the devices.
    pub fn on_pci(slots: PciSlots, events: Arc<HotplugEvents>, maker: Arc<Maker>) -> Devices {
        Devices { plug: Some(Plug { slots, events, maker }), ..Devices::fixed(Vec::new()) }
    }

    /// Returns the status of each device.
    pub fn status(&self) -> Vec<ListedStatus> {
        let entries: Vec<_> = {
            let list = self.list();
            let slot = |entry: &Entry| Some(SlotStatus { slot: entry.slot?, removing: entry.removing });
            list.entries.iter().map(|entry| (entry.device.handle.clone(), slot(entry))).collect()
        };
        // Without the lock, which a vCPU may need: a device that stops slowly also reports its status slowly.
        entries.into_iter().map(|(handle, slot)| ListedStatus { device: handle.status(), slot }).collect()
    }

    /// Calls `act` with a device, found by its name or its number among the devices of its kind.
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

    /// Stops all frames that this process moves. After a failure, some may have stopped.
    ///
    /// # Errors
    ///
    /// Fails if a worker does not stop.
    pub fn pause(&self) -> Result<(), DeviceError> {
        let list = self.list();
        list.entries.iter().try_for_each(|entry| entry.device.handle.pause())
    }

    /// Continues after [`Devices::pause`].
    pub fn resume(&self) {
        let list = self.list();
        list.entries.iter().for_each(|entry| entry.device.handle.resume());
    }

    /// Checks that [`Devices::plug`] would accept a device of this name, before the device is opened.
    ///
    /// # Errors
    ///
    /// The reason against it.
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

    /// Adds a device before the guest starts.
    ///
    /// # Errors
    ///
    /// Fails without a PCI bus, or if the bus cannot take the device.
    pub fn attach(&self, device: Box<dyn VirtioDevice>) -> Result<usize, PlugError> {
        let plug = self.plug.as_ref().ok_or(PlugError::Mmio)?;
        self.put(&mut self.list(), plug, device)
    }

    /// Adds a device while the guest runs, and notifies the guest. Returns its slot.
    ///
    /// # Errors
    ///
    /// See [`PlugError`]. The device is closed then.
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

    /// Asks the guest to release a device, and waits for it.
    ///
    /// # Errors
    ///
    /// Fails with virtio-mmio, without such a device, and if the guest takes longer than `limit`. In the last
    /// case the request stands.
    pub fn remove(&self, kind: DeviceKind, name: &str, limit: Duration) -> Result<(), PlugError> {
        let plug = self.plug.as_ref().ok_or(PlugError::Mmio)?;
        let end = Instant::now() + limit;
        let mut list = self.list();
        let entry = list.find(kind, name)?;
        entry.removing = true;
        let (id, name) = (entry.id, entry.device.name.clone());
        info!(
            event = "device_removal_asked", device:% = name;
            "{} {name}: the guest is asked to release it", kind.name()
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

    /// Closes all devices at the machine's end, even if a request still waits for the guest or holds one of
    /// them. Called after the vCPUs have stopped. A device that a stuck vCPU keeps busy stays open.
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

    /// Ends the device in `slot`, which the guest has ejected. Called on a vCPU's thread that holds no
    /// device.
    pub fn ejected(&self, slot: usize) {
        let Some(plug) = &self.plug else { return };
        let of_slot = |entry: &&Entry| entry.slot == Some(slot);
        let Some(id) = self.list().entries.iter().find(of_slot).map(|entry| entry.id) else { return };
        // Without the lock, which all others need, the machine's end included.
        if !plug.slots.take(slot) {
            return;
        }
        let mut list = self.list();
        plug.events.forget(slot);
        plug.slots.release(slot);
        // The machine may have ended meanwhile.
        let Some(at) = list.entries.iter().position(|entry| entry.id == id) else { return };
        let Entry { device: Device { kind, name, .. }, removing, .. } = list.entries.remove(at);
        drop(list);
        self.gone.notify_all();
        let why = if removing { "" } else { " without a request" };
        info!(
            event = "device_removed", device:% = name;
            "{} {name}: released by the guest{why}, and removed", kind.name()
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
        assert_eq!(absent(&[]), "there is no network device x: there are none");
        assert_eq!(absent(&["a"]), r#"there is no network device x: there is "a", or 0"#);
        assert_eq!(
            absent(&["a", "b", "c"]),
            r#"there is no network device x: they are ["a", "b", "c"], or 0 to 2 in this order"#
        );
    }
}
