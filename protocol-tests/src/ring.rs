//! The driver's side of a split ring (virtio 1.2, 2.7), with every shape that a driver may use and some
//! invalid ones.
//!
//! A [`DriverRing`] owns no memory: it lives at guest addresses of a [`GuestMemory`]. `add*` puts a chain in
//! the available ring, [`DriverRing::publish`] makes all added chains visible, and [`DriverRing::pop_used`]
//! takes back used chains. The raw setters at the end are for deliberate faults.

use std::collections::HashMap;
use std::sync::atomic::{Ordering, fence};

use crate::memory::GuestMemory;

/// Flags of a descriptor (virtio 1.2, 2.7.5).
pub mod desc_flags {
    /// `next` is valid.
    pub const NEXT: u16 = 1;
    /// The device writes this buffer.
    pub const WRITE: u16 = 2;
    /// The buffer is a table of descriptors.
    pub const INDIRECT: u16 = 4;
}

/// One descriptor, 16 bytes in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Desc {
    /// Guest address of the buffer.
    pub addr: u64,
    /// Its length in bytes.
    pub len: u32,
    /// See [`desc_flags`].
    pub flags: u16,
    /// The following descriptor, with [`desc_flags::NEXT`].
    pub next: u16,
}

impl Desc {
    /// Returns the descriptor's bytes.
    pub fn encode(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&self.next.to_le_bytes());
        bytes
    }

    /// Returns a descriptor from its bytes.
    pub fn decode(bytes: &[u8; 16]) -> Desc {
        let [a, b, c, d, e, f, g, h, l0, l1, l2, l3, f0, f1, n0, n1] = *bytes;
        Desc {
            addr: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            len: u32::from_le_bytes([l0, l1, l2, l3]),
            flags: u16::from_le_bytes([f0, f1]),
            next: u16::from_le_bytes([n0, n1]),
        }
    }
}

/// The guest addresses of the three parts of a ring, and its number of descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Ring size: 1 to 32768 and a power of two, if the device is to accept it.
    pub size: u16,
    /// Descriptor table, 16-byte aligned.
    pub desc: u64,
    /// Available ring, 2-byte aligned.
    pub avail: u64,
    /// Used ring, 4-byte aligned.
    pub used: u64,
}

impl Layout {
    /// Returns the three parts in sequence from `base`, which is rounded up to 16.
    pub fn at(base: u64, size: u16) -> Layout {
        let desc = base.next_multiple_of(16);
        let avail = desc + 16 * u64::from(size);
        let used = (avail + 6 + 2 * u64::from(size)).next_multiple_of(4);
        Layout { size, desc, avail, used }
    }

    /// Returns the first address after the used ring.
    pub fn end(&self) -> u64 {
        self.used + 6 + 8 * u64::from(self.size)
    }
}

/// One buffer of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Guest address.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
    /// Whether the device may write it.
    pub write: bool,
}

impl Part {
    /// Returns a buffer that the device reads.
    pub fn out(addr: u64, len: u32) -> Part {
        Part { addr, len, write: false }
    }

    /// Returns a buffer that the device writes.
    pub fn into(addr: u64, len: u32) -> Part {
        Part { addr, len, write: true }
    }

    fn desc(&self, next: Option<u16>) -> Desc {
        let write = if self.write { desc_flags::WRITE } else { 0 };
        let chained = if next.is_some() { desc_flags::NEXT } else { 0 };
        Desc { addr: self.addr, len: self.len, flags: write | chained, next: next.unwrap_or(0) }
    }
}

/// An entry of the used ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// Head of the used chain.
    pub head: u16,
    /// Bytes that the device wrote.
    pub len: u32,
}

/// An error of the ring's other side, or a chain that does not fit.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RingError {
    /// Too few descriptors are free.
    #[error("chain needs {needed} descriptors, {free} are free")]
    Full {
        /// Descriptors of the chain.
        needed: usize,
        /// Descriptors not in flight.
        free: usize,
    },
    /// A used entry names a chain that is not in flight: never offered, or already returned.
    #[error("used entry {index} returns head {id}, which is not in flight")]
    NotInFlight {
        /// Index of the entry, as counted by the ring.
        index: u16,
        /// The head in the entry.
        id: u32,
    },
    /// The used index ran ahead of the available index.
    #[error("used.idx {used} while only {avail} chains were made available (counted modulo 65536)")]
    UsedAhead {
        /// The device's index.
        used: u16,
        /// The driver's index.
        avail: u16,
    },
}

/// `vring_need_event` (virtio 1.2, 2.7.7.2): whether the index passed `event` between `old` and `new`.
pub fn need_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

/// The driver of one split ring.
#[derive(Debug)]
pub struct DriverRing {
    mem: GuestMemory,
    layout: Layout,
    event_idx: bool,
    free: Vec<u16>,
    in_flight: HashMap<u16, Vec<u16>>,
    next_avail: u16,
    published: u16,
    last_used: u16,
}

impl DriverRing {
    /// Makes an empty ring: clears its memory and starts all indices at `start`.
    pub fn new(mem: GuestMemory, layout: Layout, event_idx: bool, start: u16) -> DriverRing {
        mem.write(layout.desc, &vec![0; 16 * usize::from(layout.size)]);
        mem.write(layout.avail, &vec![0; 6 + 2 * usize::from(layout.size)]);
        mem.write(layout.used, &vec![0; 6 + 8 * usize::from(layout.size)]);
        mem.store(layout.avail + 2, start);
        mem.store(layout.used + 2, start);
        let mut ring = DriverRing {
            mem,
            layout,
            event_idx,
            free: (0..layout.size).rev().collect(),
            in_flight: HashMap::new(),
            next_avail: start,
            published: start,
            last_used: start,
        };
        ring.arm();
        ring
    }

    /// Returns the ring's addresses.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Returns the number of descriptors not in flight.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Returns the number of chains that the device has not returned.
    pub fn outstanding(&self) -> usize {
        self.in_flight.len()
    }

    /// Adds a chain of direct descriptors; returns its head.
    pub fn add(&mut self, parts: &[Part]) -> Result<u16, RingError> {
        self.add_mixed(parts, None)
    }

    /// Adds a chain in an indirect table at guest address `table` (16 bytes a part).
    pub fn add_indirect(&mut self, parts: &[Part], table: u64) -> Result<u16, RingError> {
        self.add_mixed(&[], Some((table, parts)))
    }

    /// Adds direct descriptors followed by one that points to an indirect table (virtio 1.2, 2.7.5.3.2: the
    /// device must accept both).
    pub fn add_mixed(&mut self, direct: &[Part], table: Option<(u64, &[Part])>) -> Result<u16, RingError> {
        let needed = direct.len() + usize::from(table.is_some());
        if needed == 0 || needed > self.free.len() {
            return Err(RingError::Full { needed, free: self.free.len() });
        }
        let ids = self.free.split_off(self.free.len() - needed);
        let next_of = |at: usize| ids.get(at + 1).copied();
        for (at, part) in direct.iter().enumerate() {
            self.set_desc(ids[at], part.desc(next_of(at)));
        }
        if let Some((address, parts)) = table {
            let last = parts.len().saturating_sub(1);
            let entry = |(at, part): (usize, &Part)| part.desc((at < last).then_some(at as u16 + 1)).encode();
            self.mem.write(address, &parts.iter().enumerate().flat_map(entry).collect::<Vec<_>>());
            let len = 16 * parts.len() as u32;
            let flags = desc_flags::INDIRECT;
            self.set_desc(ids[needed - 1], Desc { addr: address, len, flags, next: 0 });
        }
        let head = ids[0];
        self.in_flight.insert(head, ids);
        self.offer(head);
        Ok(head)
    }

    /// Puts any head into the next entry of the available ring; `publish` makes it visible.
    pub fn offer(&mut self, head: u16) {
        self.set_avail_entry(self.next_avail, head);
        self.next_avail = self.next_avail.wrapping_add(1);
    }

    /// Makes all added chains visible to the device. Returns true if the device wants a kick (2.7.7 and
    /// 2.7.10).
    pub fn publish(&mut self) -> bool {
        let old = std::mem::replace(&mut self.published, self.next_avail);
        self.mem.store(self.layout.avail + 2, self.next_avail);
        // The index must be visible before the suppression field is read, or both sides sleep.
        fence(Ordering::SeqCst);
        if self.event_idx {
            need_event(self.avail_event(), self.next_avail, old)
        } else {
            self.mem.load(self.layout.used) & 1 == 0
        }
    }

    /// Takes the next used chain.
    pub fn pop_used(&mut self) -> Result<Option<Used>, RingError> {
        let used = self.used_idx();
        let ahead = used.wrapping_sub(self.last_used);
        if ahead == 0 {
            return Ok(None);
        }
        if ahead > self.published.wrapping_sub(self.last_used) {
            return Err(RingError::UsedAhead { used, avail: self.published });
        }
        let index = self.last_used;
        let (id, len) = self.used_entry(index);
        let head = u16::try_from(id).unwrap_or(u16::MAX);
        let Some(ids) = self.in_flight.remove(&head).filter(|_| id <= u32::from(u16::MAX)) else {
            return Err(RingError::NotInFlight { index, id });
        };
        self.free.extend(ids.into_iter().rev());
        self.last_used = index.wrapping_add(1);
        self.arm();
        Ok(Some(Used { head, len }))
    }

    /// Returns entry `index` of the used ring, unchecked.
    pub fn used_entry(&self, index: u16) -> (u32, u32) {
        let entry = self.mem.read(self.layout.used + 4 + 8 * u64::from(index % self.layout.size), 8);
        let word = |at: usize| u32::from_le_bytes([entry[at], entry[at + 1], entry[at + 2], entry[at + 3]]);
        (word(0), word(4))
    }

    /// Returns the device's used index.
    pub fn used_idx(&self) -> u16 {
        self.mem.load(self.layout.used + 2)
    }

    /// Returns the driver's published index.
    pub fn avail_idx(&self) -> u16 {
        self.published
    }

    /// Returns the driver's own position in the used ring.
    pub fn last_used(&self) -> u16 {
        self.last_used
    }

    /// With EVENT_IDX: returns the index after which the device wants a kick.
    pub fn avail_event(&self) -> u16 {
        self.mem.load(self.layout.used + 4 + 8 * u64::from(self.layout.size))
    }

    /// Asks for a call at the next used chain (EVENT_IDX only).
    pub fn arm(&mut self) {
        if self.event_idx {
            self.set_used_event(self.last_used);
        }
    }

    /// Asks for a call when the used index passes `event` (EVENT_IDX only).
    pub fn set_used_event(&mut self, event: u16) {
        self.mem.store(self.layout.avail + 4 + 2 * u64::from(self.layout.size), event);
        fence(Ordering::SeqCst);
    }

    /// Without EVENT_IDX: asks for no calls (`VIRTQ_AVAIL_F_NO_INTERRUPT`), or for calls again.
    pub fn set_no_interrupt(&mut self, none: bool) {
        self.mem.store(self.layout.avail, u16::from(none));
        fence(Ordering::SeqCst);
    }

    /// Writes one descriptor of the table, valid or not.
    pub fn set_desc(&self, index: u16, desc: Desc) {
        self.mem.write(self.layout.desc + 16 * u64::from(index), &desc.encode());
    }

    /// Writes one entry of the available ring, valid or not.
    pub fn set_avail_entry(&self, index: u16, head: u16) {
        self.mem.store(self.layout.avail + 4 + 2 * u64::from(index % self.layout.size), head);
    }

    /// Writes the available index, valid or not; the ring's own count stays unchanged.
    pub fn set_avail_idx(&self, index: u16) {
        self.mem.store(self.layout.avail + 2, index);
        fence(Ordering::SeqCst);
    }
}
