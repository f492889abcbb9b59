//! The driver's side of a split ring for polling at full speed. It uses plain pointers, and checks nothing
//! that a back-end proves with `volt-conform`.
//!
//! All chains are laid out once. [`PollRing::offer`] writes the descriptor and the available entry of each
//! again, like a driver, so that the device finds its cache lines as a driver leaves them.
#![expect(unsafe_code, reason = "ring fields in memory shared with the device")]

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU16, Ordering, fence};

use crate::memory::GuestMemory;
use crate::nic::eventfd;
use crate::ring::{Desc, Layout, desc_flags, need_event};

use super::BenchError;

/// One ring, its chains and its two descriptors.
#[derive(Debug)]
pub struct PollRing {
    /// Kicks the device.
    pub kick: OwnedFd,
    /// Signalled by the device's calls.
    pub call: OwnedFd,
    /// Kicks sent.
    pub kicks: u64,
    /// Chains returned.
    pub used: u64,
    /// Bytes that the device wrote into them.
    pub written: u64,
    layout: Layout,
    // Keeps the pointers below valid.
    mem: GuestMemory,
    desc: *mut [u8; 16],
    avail: *mut u16,
    used_ring: *mut u16,
    /// Each head's encoded descriptor.
    chains: Vec<[u8; 16]>,
    free: Vec<u16>,
    next_avail: u16,
    last_used: u16,
    event_idx: bool,
    calls: bool,
}

impl PollRing {
    /// Makes a ring at `layout` whose chain n is descriptor n alone, over the `n`-th of `chains`.
    pub fn new(
        mem: &GuestMemory,
        layout: Layout,
        chains: Vec<Desc>,
        event_idx: bool,
        calls: bool,
    ) -> Result<PollRing, BenchError> {
        let len = (layout.end() - layout.desc) as usize;
        let at = |guest, len| {
            mem.pointer(guest, len).ok_or_else(|| BenchError::Wrong("a ring outside memory".to_owned()))
        };
        at(layout.desc, len)?;
        let mut ring = PollRing {
            kick: eventfd()?,
            call: eventfd()?,
            kicks: 0,
            used: 0,
            written: 0,
            layout,
            desc: at(layout.desc, len)?.as_ptr().cast(),
            avail: at(layout.avail, 0)?.as_ptr().cast(),
            used_ring: at(layout.used, 0)?.as_ptr().cast(),
            mem: mem.clone(),
            free: (0..chains.len() as u16).rev().collect(),
            chains: chains.iter().map(Desc::encode).collect(),
            next_avail: 0,
            last_used: 0,
            event_idx,
            calls,
        };
        ring.arm();
        Ok(ring)
    }

    /// Returns its addresses.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Returns its memory.
    pub fn memory(&self) -> &GuestMemory {
        &self.mem
    }

    /// Returns the number of chains that the device does not own.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Returns the chain that is offered next.
    pub fn next_free(&self) -> Option<u16> {
        self.free.last().copied()
    }

    /// Returns whether the device does not own chain `head`.
    pub fn is_free(&self, head: u16) -> bool {
        self.free.contains(&head)
    }

    /// Like [`PollRing::offer`], without chain `head`.
    pub fn offer_but(&mut self, head: u16, count: usize) {
        let kept = self.free.iter().position(|free| *free == head).map(|at| self.free.remove(at));
        self.offer(count);
        self.free.extend(kept);
    }

    /// Returns the device's used index, at which a ring continues after a reconnect.
    pub fn used_idx(&self) -> u16 {
        self.used_field(1).load(Ordering::Acquire)
    }

    fn avail_field(&self, index: usize) -> &AtomicU16 {
        // SAFETY: callers' indices are inside the available ring, which `new` checked to be in `mem`, and
        // aligned.
        unsafe { AtomicU16::from_ptr(self.avail.add(index)) }
    }

    fn used_field(&self, index: usize) -> &AtomicU16 {
        // SAFETY: callers' indices are inside the used ring, which `new` checked to be in `mem`, and aligned.
        unsafe { AtomicU16::from_ptr(self.used_ring.add(index)) }
    }

    /// Makes up to `count` chains available and kicks if the device wants it; returns their number.
    #[inline]
    pub fn offer(&mut self, count: usize) -> usize {
        let count = count.min(self.free.len());
        if count == 0 {
            return 0;
        }
        let old = self.next_avail;
        for head in self.free.drain(self.free.len() - count..).rev() {
            // SAFETY: a head is below the ring's size, so its descriptor is inside the table.
            unsafe { self.desc.add(usize::from(head)).write_volatile(self.chains[usize::from(head)]) };
            let slot = 2 + usize::from(self.next_avail & (self.layout.size - 1));
            // SAFETY: as for `avail_field`; the slot is masked.
            unsafe { self.avail.add(slot).write_volatile(head.to_le()) };
            self.next_avail = self.next_avail.wrapping_add(1);
        }
        self.avail_field(1).store(self.next_avail.to_le(), Ordering::Release);
        fence(Ordering::SeqCst);
        let wanted = if self.event_idx {
            let event = self.used_field(2 + 4 * usize::from(self.layout.size)).load(Ordering::Relaxed);
            need_event(u16::from_le(event), self.next_avail, old)
        } else {
            self.used_field(0).load(Ordering::Relaxed) & 1 == 0
        };
        if wanted {
            self.kick();
        }
        count
    }

    /// Kicks, even if the device does not want it.
    pub fn kick(&mut self) {
        self.kicks += 1;
        let _ = rustix::io::write(&self.kick, &1u64.to_ne_bytes());
    }

    /// Takes back the used chains; returns their number.
    #[inline]
    pub fn reap(&mut self) -> usize {
        self.reap_each(|_, _| {})
    }

    /// Like `reap`, but passes each chain and the bytes written to `each`.
    #[inline]
    pub fn reap_each(&mut self, mut each: impl FnMut(u16, u32)) -> usize {
        let idx = u16::from_le(self.used_field(1).load(Ordering::Acquire));
        let count = idx.wrapping_sub(self.last_used);
        for _ in 0..count {
            let slot = usize::from(self.last_used & (self.layout.size - 1));
            // SAFETY: as for `used_field`; the slot is masked, and elements are aligned to 4.
            let (id, len) = unsafe {
                let element = self.used_ring.add(2 + 4 * slot).cast::<u32>();
                (u32::from_le(element.read_volatile()), u32::from_le(element.add(1).read_volatile()))
            };
            // An invalid head would be written through later.
            let id = id as u16 % self.chains.len() as u16;
            each(id, len);
            self.free.push(id);
            self.written += u64::from(len);
            self.last_used = self.last_used.wrapping_add(1);
        }
        if count > 0 {
            self.used += u64::from(count);
            self.arm();
        }
        usize::from(count)
    }

    /// Tells the device whether to call for the next chains.
    fn arm(&mut self) {
        let event = self.avail_field(2 + usize::from(self.layout.size));
        match (self.event_idx, self.calls) {
            (true, true) => event.store(self.last_used.to_le(), Ordering::Relaxed),
            // An index just passed: the device reaches it only after 65,535 more.
            (true, false) => event.store(self.last_used.wrapping_sub(1).to_le(), Ordering::Relaxed),
            (false, calls) => self.avail_field(0).store(u16::from(!calls).to_le(), Ordering::Relaxed),
        }
    }

    /// Returns the calls since the last query.
    pub fn take_calls(&self) -> u64 {
        let mut count = [0; 8];
        match rustix::io::read(&self.call, &mut count) {
            Ok(8) => u64::from_ne_bytes(count),
            _ => 0,
        }
    }
}

/// Returns a descriptor over one buffer, or over a table of `parts` (address, length) at guest address
/// `table`.
pub fn chain(mem: &GuestMemory, parts: &[(u64, usize)], table: u64, write: bool) -> Desc {
    let flags = if write { desc_flags::WRITE } else { 0 };
    let entry = |at: usize, next: u16| {
        let more = if at + 1 < parts.len() { desc_flags::NEXT } else { 0 };
        Desc { addr: parts[at].0, len: parts[at].1 as u32, flags: flags | more, next }
    };
    if parts.len() == 1 {
        return entry(0, 0);
    }
    for at in 0..parts.len() {
        mem.write(table + 16 * at as u64, &entry(at, at as u16 + 1).encode());
    }
    Desc { addr: table, len: 16 * parts.len() as u32, flags: desc_flags::INDIRECT, next: 0 }
}
