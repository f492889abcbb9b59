//! A driver for the tests. It uses a device like a guest: with the transport's registers, and with rings that
//! it writes itself.

use std::collections::BTreeMap;
use std::fs::File;
use std::thread;
use std::time::{Duration, Instant};

use kvm_ioctls::VcpuFd;
use rustix::fs::{MemfdFlags, memfd_create};
use virtio_bindings::virtio_mmio::*;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};
use volt_virtio::features::Features;

use crate::board::bus::BusDevice;
use crate::virtio::VirtioDevice;
use crate::virtio::mmio::MmioTransport;

/// Bytes in each of the two memory regions.
pub(crate) const REGION: u64 = 8 << 20;
/// Start of the second region, behind a hole.
pub(crate) const HIGH: u64 = 2 * REGION;
/// There are no rings from here to the end of the first region.
pub(crate) const BUFFERS: u64 = 4 << 20;

/// Limit for operations that take milliseconds on a quiet machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Two regions of one shared memfd with a hole between them.
pub(crate) fn memory() -> GuestMemoryMmap {
    let file = File::from(memfd_create("guest", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(2 * REGION).unwrap();
    let at = |offset| Some(FileOffset::new(file.try_clone().unwrap(), offset));
    GuestMemoryMmap::from_ranges_with_files([
        (GuestAddress(0), REGION as usize, at(0)),
        (GuestAddress(HIGH), REGION as usize, at(REGION)),
    ])
    .unwrap()
}

/// Makes a processor after its reset run `code`, in real mode with a code segment at 0.
pub(crate) fn load_code(vcpu: &VcpuFd, memory: &GuestMemoryMmap, code: &[u8]) {
    const START: u64 = 0x1000;
    memory.write_slice(code, GuestAddress(START)).unwrap();
    let mut sregs = vcpu.get_sregs().unwrap();
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    vcpu.set_sregs(&sregs).unwrap();
    let mut regs = vcpu.get_regs().unwrap();
    (regs.rip, regs.rflags) = (START, 2);
    vcpu.set_regs(&regs).unwrap();
}

/// Waits until `condition` holds.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// A descriptor: address, length, and whether the device writes.
pub(crate) type Part = (u64, u32, bool);

pub(crate) struct Driver {
    pub(crate) transport: MmioTransport,
    pub(crate) memory: GuestMemoryMmap,
    pub(crate) rings: BTreeMap<u16, DriverRing>,
}

/// The driver's side of a vring.
pub(crate) struct DriverRing {
    pub(crate) size: u16,
    /// Descriptor table, available ring and used ring.
    pub(crate) table: u64,
    pub(crate) available: u64,
    pub(crate) used: u64,
    next_descriptor: u16,
    pub(crate) offered: u16,
    seen: u16,
}

impl Driver {
    pub(crate) fn new(device: impl VirtioDevice + 'static) -> Driver {
        let memory = memory();
        let transport = MmioTransport::unconnected(Box::new(device), memory.clone()).unwrap();
        Driver { transport, memory, rings: BTreeMap::new() }
    }

    pub(crate) fn read(&mut self, register: u32) -> u32 {
        let mut data = [0; 4];
        self.transport.read(register.into(), &mut data);
        u32::from_le_bytes(data)
    }

    pub(crate) fn write(&mut self, register: u32, value: u32) {
        self.transport.write(register.into(), &value.to_le_bytes());
    }

    pub(crate) fn config(&mut self, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.transport.read(VIRTIO_MMIO_CONFIG.into(), &mut data);
        data
    }

    pub(crate) fn offered_features(&mut self) -> Features {
        self.write(VIRTIO_MMIO_DEVICE_FEATURES_SEL, 0);
        let low = self.read(VIRTIO_MMIO_DEVICE_FEATURES);
        self.write(VIRTIO_MMIO_DEVICE_FEATURES_SEL, 1);
        Features::from_bits_retain(u64::from(self.read(VIRTIO_MMIO_DEVICE_FEATURES)) << 32 | u64::from(low))
    }

    /// Goes from a reset to FEATURES_OK. Returns the device status.
    pub(crate) fn negotiate(&mut self, features: Features) -> u32 {
        self.rings.clear();
        for status in [0, 1, 3] {
            self.write(VIRTIO_MMIO_STATUS, status);
        }
        for half in [0, 1] {
            self.write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, half);
            self.write(VIRTIO_MMIO_DRIVER_FEATURES, (features.bits() >> (32 * half)) as u32);
        }
        self.write(VIRTIO_MMIO_STATUS, 11);
        self.read(VIRTIO_MMIO_STATUS)
    }

    /// Makes vring `index` ready, zeroed, in the first region.
    pub(crate) fn add_ring(&mut self, index: u16, size: u16) {
        let table = 0x1_0000 * (u64::from(index) + 1);
        let ring = DriverRing {
            size,
            table,
            available: table + 0x4000,
            used: table + 0x8000,
            next_descriptor: 0,
            offered: 0,
            seen: 0,
        };
        self.memory.write_slice(&[0; 0x1_0000], GuestAddress(table)).unwrap();
        self.write(VIRTIO_MMIO_QUEUE_SEL, index.into());
        self.write(VIRTIO_MMIO_QUEUE_NUM, size.into());
        self.write(VIRTIO_MMIO_QUEUE_DESC_LOW, ring.table as u32);
        self.write(VIRTIO_MMIO_QUEUE_AVAIL_LOW, ring.available as u32);
        self.write(VIRTIO_MMIO_QUEUE_USED_LOW, ring.used as u32);
        self.write(VIRTIO_MMIO_QUEUE_READY, 1);
        self.rings.insert(index, ring);
    }

    /// Sets DRIVER_OK. Returns the device status.
    pub(crate) fn start(&mut self) -> u32 {
        self.write(VIRTIO_MMIO_STATUS, 15);
        self.read(VIRTIO_MMIO_STATUS)
    }

    /// Does all steps, with every vring of `rings` at size 16.
    pub(crate) fn run(&mut self, features: Features, rings: &[u16]) {
        assert_eq!(self.negotiate(features), 11);
        for index in rings {
            self.add_ring(*index, 16);
        }
        assert_eq!(self.start(), 15);
    }

    pub(crate) fn reset(&mut self) {
        self.write(VIRTIO_MMIO_STATUS, 0);
        assert_eq!(self.read(VIRTIO_MMIO_STATUS), 0);
    }

    /// Writes descriptor `slot` of vring `index`.
    pub(crate) fn descriptor(&self, index: u16, slot: u16, part: Part, flags: u16, next: u16) {
        let (address, len, write) = part;
        let at = GuestAddress(self.rings[&index].table + 16 * u64::from(slot));
        write_descriptor(&self.memory, at, address, len, flags | if write { 2 } else { 0 }, next);
    }

    /// Puts `head` into the available ring.
    pub(crate) fn publish(&mut self, index: u16, head: u16) {
        let ring = self.rings.get_mut(&index).unwrap();
        let entry = ring.available + 4 + 2 * u64::from(ring.offered % ring.size);
        self.memory.write_obj(head, GuestAddress(entry)).unwrap();
        ring.offered = ring.offered.wrapping_add(1);
        let at = GuestAddress(ring.available + 2);
        self.memory.store(ring.offered, at, std::sync::atomic::Ordering::Release).unwrap();
    }

    /// Makes a chain of `parts` available, without a kick.
    pub(crate) fn offer(&mut self, index: u16, parts: &[Part]) {
        let ring = &self.rings[&index];
        let (head, size) = (ring.next_descriptor, ring.size);
        for (n, part) in parts.iter().enumerate() {
            let slot = (head + n as u16) % size;
            let more = n + 1 < parts.len();
            self.descriptor(index, slot, *part, u16::from(more), (slot + 1) % size);
        }
        self.rings.get_mut(&index).unwrap().next_descriptor = (head + parts.len() as u16) % size;
        self.publish(index, head);
    }

    pub(crate) fn kick(&mut self, index: u16) {
        self.write(VIRTIO_MMIO_QUEUE_NOTIFY, index.into());
    }

    /// Returns the length of the next used entry, if there is one.
    pub(crate) fn used(&mut self, index: u16) -> Option<u32> {
        let ring = self.rings.get_mut(&index).unwrap();
        let at = GuestAddress(ring.used + 2);
        let now: u16 = self.memory.load(at, std::sync::atomic::Ordering::Acquire).unwrap();
        if now == ring.seen {
            return None;
        }
        let entry = GuestAddress(ring.used + 4 + 8 * u64::from(ring.seen % ring.size) + 4);
        ring.seen = ring.seen.wrapping_add(1);
        Some(self.memory.read_obj(entry).unwrap())
    }

    pub(crate) fn wait_used(&mut self, index: u16) -> u32 {
        let mut len = None;
        eventually("a used entry", || {
            len = self.used(index);
            len.is_some()
        });
        len.unwrap()
    }

    /// Offers one chain, kicks, and waits for its used entry.
    pub(crate) fn request(&mut self, index: u16, parts: &[Part]) -> u32 {
        self.offer(index, parts);
        self.kick(index);
        self.wait_used(index)
    }

    pub(crate) fn put(&self, address: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(address)).unwrap();
    }

    pub(crate) fn get(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }
}

pub(crate) fn write_descriptor(
    memory: &GuestMemoryMmap,
    at: GuestAddress,
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
) {
    let word = u64::from(len) | u64::from(flags) << 32 | u64::from(next) << 48;
    memory.write_obj([address.to_le(), word.to_le()], at).unwrap();
}
