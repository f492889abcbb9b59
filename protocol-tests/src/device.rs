//! The device's side of a split ring (virtio 1.2, 2.7), for the scripted back-end.
//!
//! Simple, not fast: each access uses a guest address through [`GuestMemory`]. [`DeviceRing::pop`] takes
//! chains, [`DeviceRing::push`] returns them, [`DeviceRing::publish`] makes all pushed chains visible to the
//! driver.

use std::sync::atomic::{Ordering, fence};

use crate::memory::GuestMemory;
use crate::ring::{Desc, Layout, Part, desc_flags, need_event};

/// An available chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Its head, for returning it.
    pub head: u16,
    /// Its buffers, with indirect tables expanded.
    pub parts: Vec<Part>,
}

impl Chain {
    /// Returns the bytes of the parts that the device reads.
    pub fn read(&self, mem: &GuestMemory) -> Vec<u8> {
        let out = self.parts.iter().filter(|part| !part.write);
        out.flat_map(|part| mem.read(part.addr, part.len as usize)).collect()
    }

    /// Writes bytes to the parts that the device writes; returns the number written.
    pub fn write(&self, mem: &GuestMemory, bytes: &[u8]) -> usize {
        let mut done = 0;
        for part in self.parts.iter().filter(|part| part.write) {
            let len = (part.len as usize).min(bytes.len() - done);
            mem.write(part.addr, &bytes[done..done + len]);
            done += len;
        }
        done
    }

    /// Returns the number of bytes that the device may write.
    pub fn room(&self) -> usize {
        self.parts.iter().filter(|part| part.write).map(|part| part.len as usize).sum()
    }
}

/// A violation of the ring rules by the driver.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DriverFault {
    /// More available entries than the ring has.
    #[error("avail.idx {avail} is {ahead} ahead of {next}")]
    Jump {
        /// The driver's index.
        avail: u16,
        /// The device's index.
        next: u16,
        /// Their difference.
        ahead: u16,
    },
    /// A descriptor index beyond its table.
    #[error("descriptor {0} is beyond the table")]
    Index(u16),
    /// A chain longer than the ring, such as a loop.
    #[error("chain from head {0} is longer than the ring")]
    Loop(u16),
    /// A buffer or table outside guest memory, or without a valid length.
    #[error("{0:#x}+{1:#x} is no guest memory")]
    Address(u64, u32),
}

/// The device of one split ring.
#[derive(Debug)]
pub struct DeviceRing {
    mem: GuestMemory,
    layout: Layout,
    event_idx: bool,
    next_avail: u16,
    next_used: u16,
    published: u16,
    indirect: bool,
    /// Written ranges of the used ring: offset and length.
    written: Vec<(u64, u64)>,
}

impl DeviceRing {
    /// Starts at the used ring's index, whatever base a front-end sent.
    pub fn start(mem: GuestMemory, layout: Layout, event_idx: bool) -> DeviceRing {
        let used = mem.load(layout.used + 2);
        DeviceRing {
            mem,
            layout,
            event_idx,
            next_avail: used,
            next_used: used,
            published: used,
            indirect: true,
            written: Vec::new(),
        }
    }

    /// Starts at the given index, valid or not.
    pub fn begin_at(&mut self, index: u16) {
        (self.next_avail, self.next_used, self.published) = (index, index, index);
    }

    /// A deliberate fault: uses indirect tables as buffers.
    pub fn ignore_indirect(&mut self) {
        self.indirect = false;
    }

    /// A deliberate fault: publishes `count` used entries before they are written.
    pub fn show_early(&self, count: u16) {
        self.mem.store(self.layout.used + 2, self.next_used.wrapping_add(count));
    }

    /// A deliberate fault: asks to be kicked much later than at the next chain.
    pub fn misplace_avail_event(&self) {
        if self.event_idx {
            let far = self.next_avail.wrapping_add(0x4000);
            self.mem.store(self.layout.used + 4 + 8 * u64::from(self.layout.size), far);
        }
    }

    /// Returns the driver's `used_event`, with EVENT_IDX.
    pub fn used_event(&self) -> Option<u16> {
        self.event_idx.then(|| self.mem.load(self.layout.avail + 4 + 2 * u64::from(self.layout.size)))
    }

    /// Returns the ring's addresses.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Returns the ranges of the used ring written since the last query, by offset and length.
    pub fn take_written(&mut self) -> Vec<(u64, u64)> {
        std::mem::take(&mut self.written)
    }

    /// Returns the next available index to take.
    pub fn next_avail(&self) -> u16 {
        self.next_avail
    }

    /// Returns the published used index.
    pub fn used_idx(&self) -> u16 {
        self.published
    }

    /// Takes the next available chain. If there is none, asks for a kick at the next one.
    pub fn pop(&mut self) -> Result<Option<Chain>, DriverFault> {
        if self.available()? == 0 {
            if !self.event_idx {
                return Ok(None);
            }
            let event = 4 + 8 * u64::from(self.layout.size);
            self.mem.store(self.layout.used + event, self.next_avail);
            self.written.push((event, 2));
            // The request for a kick must be visible before the index is read again, or both sides sleep.
            fence(Ordering::SeqCst);
            if self.available()? == 0 {
                return Ok(None);
            }
        }
        let slot = u64::from(self.next_avail % self.layout.size);
        let head = self.mem.load(self.layout.avail + 4 + 2 * slot);
        self.next_avail = self.next_avail.wrapping_add(1);
        let mut parts = Vec::new();
        self.walk(self.layout.desc, self.layout.size, head, true, &mut parts)?;
        Ok(Some(Chain { head, parts }))
    }

    fn available(&self) -> Result<u16, DriverFault> {
        let (avail, next) = (self.mem.load(self.layout.avail + 2), self.next_avail);
        let ahead = avail.wrapping_sub(next);
        if ahead > self.layout.size { Err(DriverFault::Jump { avail, next, ahead }) } else { Ok(ahead) }
    }

    fn walk(
        &self,
        table: u64,
        len: u16,
        head: u16,
        top: bool,
        parts: &mut Vec<Part>,
    ) -> Result<(), DriverFault> {
        let mut index = head;
        for _ in 0..len {
            if index >= len {
                return Err(DriverFault::Index(index));
            }
            let mut bytes = [0; 16];
            if !self.mem.try_read(table + 16 * u64::from(index), &mut bytes) {
                return Err(DriverFault::Address(table, u32::from(len) * 16));
            }
            let desc = Desc::decode(&bytes);
            if self.indirect && top && desc.flags & desc_flags::INDIRECT != 0 {
                let count = u16::try_from(desc.len / 16)
                    .ok()
                    .filter(|count| *count > 0 && desc.len.is_multiple_of(16));
                let count = count.ok_or(DriverFault::Address(desc.addr, desc.len))?;
                return self.walk(desc.addr, count, 0, false, parts);
            }
            if !self.mem.try_read(desc.addr, &mut vec![0; desc.len as usize]) {
                return Err(DriverFault::Address(desc.addr, desc.len));
            }
            parts.push(Part { addr: desc.addr, len: desc.len, write: desc.flags & desc_flags::WRITE != 0 });
            if desc.flags & desc_flags::NEXT == 0 {
                return Ok(());
            }
            index = desc.next;
        }
        Err(DriverFault::Loop(head))
    }

    /// Returns a chain with `len` written bytes; visible after [`DeviceRing::publish`].
    pub fn push(&mut self, head: u16, len: u32) {
        let at = 4 + 8 * u64::from(self.next_used % self.layout.size);
        let entry = [u32::from(head).to_le_bytes(), len.to_le_bytes()].concat();
        self.mem.write(self.layout.used + at, &entry);
        self.written.push((at, 8));
        self.next_used = self.next_used.wrapping_add(1);
    }

    /// Makes all pushed chains visible to the driver. Returns true if the driver wants a call (2.7.7).
    pub fn publish(&mut self) -> bool {
        let old = std::mem::replace(&mut self.published, self.next_used);
        if old == self.next_used {
            return false;
        }
        self.mem.store(self.layout.used + 2, self.next_used);
        self.written.push((2, 2));
        fence(Ordering::SeqCst);
        if self.event_idx {
            let event = self.mem.load(self.layout.avail + 4 + 2 * u64::from(self.layout.size));
            need_event(event, self.next_used, old)
        } else {
            self.mem.load(self.layout.avail) & 1 == 0
        }
    }
}
