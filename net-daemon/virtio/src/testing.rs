//! For tests of devices: private guest memory, and the driver's side of a ring in it. Errors are panics.
#![expect(unsafe_code, reason = "plays the driver in raw memory")]

use std::sync::Arc;

use vm_memory::MmapRegion;

use crate::features::Features;
use crate::memory::{GuestMemory, Region};
use crate::ring::{Ring, RingLayout};

/// Size of guest memory in bytes, from guest address 0.
pub const MEMORY: usize = 0x40_0000;
/// Guest address for buffers.
pub const BUFFERS: u64 = 0x10_0000;

/// A part of a chain: guest address, length, device-writable.
pub type Buffer = (u64, u32, bool);

/// The driver's side of one ring.
pub struct Driver {
    /// The guest memory, with one region.
    pub memory: Arc<GuestMemory>,
    mapping: Arc<MmapRegion>,
    /// The addresses of the ring.
    pub layout: RingLayout,
    /// The acknowledged features.
    pub features: Features,
    free: u16,
    avail: u16,
    seen: u16,
}

impl Driver {
    /// Creates a ring of `size` at the start of new memory.
    pub fn new(size: u16, features: Features) -> Driver {
        let mapping = Arc::new(MmapRegion::new(MEMORY).unwrap());
        let region = Region::new(mapping.clone(), 0, 0, 0, MEMORY as u64).unwrap();
        let avail = u64::from(size) * 16;
        let used = (avail + 6 + u64::from(size) * 2).next_multiple_of(4);
        Driver {
            memory: Arc::new(GuestMemory::new(vec![region]).unwrap()),
            mapping,
            layout: RingLayout { size, desc: 0, avail, used },
            features,
            free: 0,
            avail: 0,
            seen: 0,
        }
    }

    /// Returns the device's side.
    pub fn ring(&self) -> Ring {
        Ring::start(self.memory.clone(), self.layout, self.features).unwrap()
    }

    /// Writes `bytes` at guest address `at`.
    pub fn write(&self, at: u64, bytes: &[u8]) {
        assert!(at as usize + bytes.len() <= MEMORY);
        // SAFETY: inside the mapping (asserted); only this test uses it.
        unsafe {
            let to = self.mapping.as_ptr().add(at as usize);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len());
        }
    }

    /// Reads `N` bytes at guest address `at`.
    pub fn read<const N: usize>(&self, at: u64) -> [u8; N] {
        self.read_vec(at, N).try_into().unwrap()
    }

    /// Reads `len` bytes at guest address `at`.
    pub fn read_vec(&self, at: u64, len: usize) -> Vec<u8> {
        assert!(at as usize + len <= MEMORY);
        let mut bytes = vec![0; len];
        // SAFETY: inside the mapping (asserted); only this test uses it.
        unsafe {
            let from = self.mapping.as_ptr().add(at as usize);
            std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), len);
        }
        bytes
    }

    /// Reads the little-endian field at guest address `at`.
    pub fn u16(&self, at: u64) -> u16 {
        u16::from_le_bytes(self.read(at))
    }

    /// Writes the little-endian field at guest address `at`.
    pub fn set_u16(&self, at: u64, value: u16) {
        self.write(at, &value.to_le_bytes());
    }

    /// Writes one descriptor at guest address `at`.
    pub fn descriptor(&self, at: u64, addr: u64, len: u32, flags: u16, next: u16) {
        self.write(at, &addr.to_le_bytes());
        self.write(at + 8, &len.to_le_bytes());
        self.write(at + 12, &flags.to_le_bytes());
        self.write(at + 14, &next.to_le_bytes());
    }

    /// Writes descriptors for `buffers`, from number `first` of the table at `table` on.
    pub fn table(&self, table: u64, first: u16, size: u16, buffers: &[Buffer]) {
        for (i, (addr, len, write)) in buffers.iter().enumerate() {
            let number = (first + i as u16) % size;
            let last = i + 1 == buffers.len();
            let flags = u16::from(!last) | u16::from(*write) << 1;
            self.descriptor(table + u64::from(number) * 16, *addr, *len, flags, (number + 1) % size);
        }
    }

    /// Makes `head` available.
    pub fn offer(&mut self, head: u16) {
        let slot = u64::from(self.avail % self.layout.size);
        self.set_u16(self.layout.avail + 4 + slot * 2, head);
        self.avail = self.avail.wrapping_add(1);
        self.set_u16(self.layout.avail + 2, self.avail);
    }

    /// Makes a chain of `buffers` available and returns its head. Reuses descriptors in a circle: tests must
    /// not have more outstanding than the ring holds.
    pub fn add(&mut self, buffers: &[Buffer]) -> u16 {
        let (head, size) = (self.free, self.layout.size);
        self.table(self.layout.desc, head, size, buffers);
        self.free = (head + buffers.len() as u16) % size;
        self.offer(head);
        head
    }

    /// Returns the used index.
    pub fn used_idx(&self) -> u16 {
        self.u16(self.layout.used + 2)
    }

    /// Whether the device wants a kick for the chain that is offered as number `number`, counted from 0: the
    /// driver's side of virtio 1.2, section 2.7.10. A driver that asks after the offer misses nothing.
    pub fn wants_kick_for(&self, number: u16) -> bool {
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        match self.features.contains(Features::EVENT_IDX) {
            true => self.avail_event() == number,
            false => self.u16(self.layout.used) & 1 == 0,
        }
    }

    /// Asks for a call when the used index passes `event`.
    pub fn set_used_event(&self, event: u16) {
        self.set_u16(self.layout.avail + 4 + u64::from(self.layout.size) * 2, event);
    }

    /// Returns the index for which the device wants a kick.
    pub fn avail_event(&self) -> u16 {
        self.u16(self.layout.used + 4 + u64::from(self.layout.size) * 8)
    }

    /// Returns the used elements since the last call: head and length.
    pub fn take_used(&mut self) -> Vec<(u32, u32)> {
        let mut taken = Vec::new();
        while self.seen != self.used_idx() {
            let at = self.layout.used + 4 + u64::from(self.seen % self.layout.size) * 8;
            taken.push((u32::from_le_bytes(self.read(at)), u32::from_le_bytes(self.read(at + 4))));
            self.seen = self.seen.wrapping_add(1);
        }
        taken
    }
}
