//! Devices that take long to end, on the PCI bus of a virtual machine without a guest. They delay nothing
//! else.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use kvm_ioctls::Kvm;
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use volt_virtio::features::Features;

use super::*;
use crate::board::bus::Bus;
use crate::board::irq::LevelLine;
use crate::virtio::testing::{PATIENCE, eventually, memory};
use crate::virtio::{ActivateError, Activation};

/// A disk whose reset waits for its request in progress, which lasts until `hold` is released.
#[derive(Clone)]
struct Slow {
    name: String,
    label: String,
    hold: Arc<Mutex<()>>,
    in_reset: Arc<AtomicBool>,
}

impl Slow {
    fn new(name: &str) -> Slow {
        Slow {
            name: name.to_owned(),
            label: format!("disk {name}"),
            hold: Arc::default(),
            in_reset: Arc::default(),
        }
    }

    fn wait_for_reset(&self) {
        eventually(&self.label, || self.in_reset.load(Ordering::SeqCst));
    }
}

impl VirtioDevice for Slow {
    fn device_id(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn kind(&self) -> DeviceKind {
        DeviceKind::Disk
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn label(&self) -> &str {
        &self.label
    }

    fn features(&self) -> Features {
        Features::VERSION_1
    }

    fn vring_sizes(&self) -> &[u16] {
        &[16]
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn activate(&mut self, _activation: Activation) -> Result<(), ActivateError> {
        Ok(())
    }

    fn reset(&mut self) {
        self.in_reset.store(true, Ordering::SeqCst);
        drop(self.hold.lock());
    }
}

fn devices(test: &str) -> Option<Devices> {
    let vm = Kvm::new().and_then(|kvm| kvm.create_vm());
    let vm = vm.and_then(|vm| vm.create_irq_chip().map(|()| vm));
    let vm = vm.map_err(|error| eprintln!("SKIP {test}: /dev/kvm: {error}")).ok()?;
    let slots = PciSlots::new(Arc::new(vm), memory(), Arc::new(Bus::new()));
    Some(Devices::on_pci(
        slots,
        Arc::new(HotplugEvents::new(LevelLine::new(|_| {}))),
        Maker::start().unwrap(),
    ))
}

/// While a vCPU ends a device, others can be added and removed. The device's own name and slot are free after
/// its end, and a waiting removal then succeeds.
#[test]
fn a_slow_ejection_holds_up_nobody() {
    let Some(devices) = devices("a_slow_ejection_holds_up_nobody") else { return };
    let slow = Slow::new("slow");
    let slot = devices.attach(Box::new(slow.clone())).unwrap();
    thread::scope(|scope| {
        let held = slow.hold.lock().unwrap();
        let ejection = scope.spawn(|| devices.ejected(slot));
        slow.wait_for_reset();
        let removal = scope.spawn(|| devices.remove(DeviceKind::Disk, "slow", PATIENCE));
        let others = scope.spawn(|| {
            while !devices.status()[0].slot.unwrap().removing {
                thread::yield_now();
            }
            assert!(matches!(devices.room_for(DeviceKind::Disk, "slow"), Err(PlugError::Taken { .. })));
            let other = devices.plug(Box::new(Slow::new("other"))).unwrap();
            assert_ne!(other, slot);
            devices.pause().unwrap();
            devices.resume();
            devices.ejected(other);
            // The guest ejects it twice.
            devices.ejected(slot);
            devices.status()
        });
        eventually("what others want", || others.is_finished());
        assert_eq!(others.join().unwrap().len(), 1);
        assert!(!ejection.is_finished() && !removal.is_finished());
        drop(held);
        removal.join().unwrap().unwrap();
    });
    assert!(devices.status().is_empty());
    // All 31 slots are free again, and each is used once.
    let add = |number: usize| devices.plug(Box::new(Slow::new(&number.to_string()))).unwrap();
    let mut slots: Vec<_> = (0..31).map(add).collect();
    slots.sort_unstable();
    assert_eq!(slots, (1..=31).collect::<Vec<_>>());
}

/// The machine's end does not wait for a device that a vCPU ends.
#[test]
fn the_end_waits_for_no_ejection() {
    let Some(devices) = devices("the_end_waits_for_no_ejection") else { return };
    let slow = Slow::new("slow");
    let slot = devices.attach(Box::new(slow.clone())).unwrap();
    thread::scope(|scope| {
        let held = slow.hold.lock().unwrap();
        let ejection = scope.spawn(|| devices.ejected(slot));
        slow.wait_for_reset();
        let end = scope.spawn(|| devices.end());
        eventually("the end", || end.is_finished());
        assert!(!ejection.is_finished());
        drop(held);
    });
    assert!(devices.status().is_empty());
}

/// The vCPU does not wait for a device that the machine's end closes.
#[test]
fn an_ejection_does_not_wait_for_the_end() {
    let Some(devices) = devices("an_ejection_does_not_wait_for_the_end") else { return };
    let (ejected, closed) = (Slow::new("ejected"), Slow::new("closed"));
    let slot = devices.attach(Box::new(ejected.clone())).unwrap();
    devices.attach(Box::new(closed.clone())).unwrap();
    thread::scope(|scope| {
        let [hold_ejected, hold_closed] = [&ejected, &closed].map(|slow| slow.hold.lock().unwrap());
        let ejection = scope.spawn(|| devices.ejected(slot));
        ejected.wait_for_reset();
        let end = scope.spawn(|| devices.end());
        closed.wait_for_reset();
        drop(hold_ejected);
        eventually("the end of an ejection", || ejection.is_finished());
        assert!(!end.is_finished());
        drop(hold_closed);
    });
    assert!(devices.status().is_empty());
    assert!(matches!(devices.plug(Box::new(closed)), Err(PlugError::Ended)));
}
