//! The device's side of a split ring (virtio 1.2, 2.7), for the scripted back-end.
//!
//! Straightforward rather than fast: each access goes by guest address through [`GuestMemory`].
//! [`DeviceRing::pop`] takes chains, [`DeviceRing::push`] returns them, [`DeviceRing::publish`] shows the
//! driver all that was pushed.

use std::sync::atomic::{Ordering, fence};

use crate::memory::GuestMemory;
use crate::ring::{Desc, Layout, Part, desc_flags, need_event};

/// A chain that the driver made available.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Its head, to return it by.
    pub head: u16,
    /// Its buffers, indirect ones in place.
    pub parts: Vec<Part>,
}

impl Chain {
    /// The bytes of the parts that the device reads.
    pub fn read(&self, mem: &GuestMemory) -> Vec<u8> {
        let out = self.parts.iter().filter(|part| !part.write);
        out.flat_map(|part| mem.read(part.addr, part.len as usize)).collect()
    }

    /// Writes bytes over the parts that the device writes; gives how many fitted.
    pub fn write(&self, mem: &GuestMemory, bytes: &[u8]) -> usize {
        let mut done = 0;
        for part in self.parts.iter().filter(|part| part.write) {
            let len = (part.len as usize).min(bytes.len() - done);
            mem.write(part.addr, &bytes[done..done + len]);
            done += len;
        }
        done
    }

    /// Bytes that the device may write.
    pub fn room(&self) -> usize {
        self.parts.iter().filter(|part| part.write).map(|part| part.len as usize).sum()
    }
}

/// What a driver put into its ring that no driver may.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DriverFault {
    /// More available entries than the ring has.
    #[error("avail.idx {avail} is {ahead} ahead of {next}")]
    Jump {
        /// The driver's index.
        avail: u16,
        /// The device's.
        next: u16,
        /// Their difference.
        ahead: u16,
    },
    /// A descriptor index beyond its table.
    #[error("descriptor {0} is beyond the table")]
    Index(u16),
    /// A chain that is longer than the ring, as a loop is.
    #[error("chain from head {0} is longer than the ring")]
    Loop(u16),
    /// A buffer or table that is not guest memory, or has no valid length.
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
}

impl DeviceRing {
    /// Begins where the used ring stands, whatever base a front-end named.
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
        }
    }

    /// Begins at an index of the caller's, right or wrong.
    pub fn begin_at(&mut self, index: u16) {
        (self.next_avail, self.next_used, self.published) = (index, index, index);
    }

    /// A deliberate fault: takes indirect tables for buffers.
    pub fn ignore_indirect(&mut self) {
        self.indirect = false;
    }

    /// A deliberate fault: shows `count` used entries that are not written yet.
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

    /// The driver's `used_event`, with EVENT_IDX.
    pub fn used_event(&self) -> Option<u16> {
        self.event_idx.then(|| self.mem.load(self.layout.avail + 4 + 2 * u64::from(self.layout.size)))
    }

    /// The next available index to be taken.
    pub fn next_avail(&self) -> u16 {
        self.next_avail
    }

    /// The used index as published.
    pub fn used_idx(&self) -> u16 {
        self.published
    }

    /// Takes the next available chain. When there is none, asks to be kicked for the next.
    pub fn pop(&mut self) -> Result<Option<Chain>, DriverFault> {
        if self.available()? == 0 {
            if !self.event_idx {
                return Ok(None);
            }
            self.mem.store(self.layout.used + 4 + 8 * u64::from(self.layout.size), self.next_avail);
            // The wish must be visible before the index is read again, or both sides sleep.
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

    /// Returns a chain, of which `len` bytes were written; not visible before [`DeviceRing::publish`].
    pub fn push(&mut self, head: u16, len: u32) {
        let slot = u64::from(self.next_used % self.layout.size);
        let entry = [u32::from(head).to_le_bytes(), len.to_le_bytes()].concat();
        self.mem.write(self.layout.used + 4 + 8 * slot, &entry);
        self.next_used = self.next_used.wrapping_add(1);
    }

    /// Shows the driver all that was pushed. True: it wants a call (2.7.7).
    pub fn publish(&mut self) -> bool {
        let old = std::mem::replace(&mut self.published, self.next_used);
        if old == self.next_used {
            return false;
        }
        self.mem.store(self.layout.used + 2, self.next_used);
        fence(Ordering::SeqCst);
        if self.event_idx {
            let event = self.mem.load(self.layout.avail + 4 + 2 * u64::from(self.layout.size));
            need_event(event, self.next_used, old)
        } else {
            self.mem.load(self.layout.avail) & 1 == 0
        }
    }
}
