//! A guest played by the fuzzer: its memory, its side of one ring, and the expected reading of a chain.
//!
//! The chain reader here is a second one, slow, written from the specification over plain copies of memory.
//! The device's result is compared with it.

use std::sync::Arc;

use arbitrary::Arbitrary;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, MmapRegion, VolatileMemory};
use volt_virtio::features::Features;
use volt_virtio::memory::{GuestMemory, Region};
use volt_virtio::ring::RingLayout;

/// Bytes of guest addresses, possibly with a hole.
pub(super) const MEMORY: u64 = 0x8_0000;
/// Addresses in steps: sometimes beyond the end of memory.
pub(super) const END: u64 = MEMORY + 0x1000;
/// Indirect tables of well-formed chains.
const TABLES: u64 = 0x5000;
/// Buffers of well-formed chains, up to the end.
pub(super) const BUFFERS: u64 = 0x8000;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// The border between two memory regions.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(super) struct Borders {
    first: u32,
    second: u32,
    /// 256 bytes after the second border are no memory.
    hole: bool,
}

struct Piece {
    guest: u64,
    offset: usize,
    len: u64,
    mapping: Arc<MmapRegion>,
}

/// The memory of a guest.
pub(super) struct Guest {
    pieces: Vec<Piece>,
    /// The device's mapping of the same memory.
    pub(super) memory: Arc<GuestMemory>,
}

impl Guest {
    /// Makes memory in up to three regions, all zero.
    pub(super) fn new(borders: Borders) -> Guest {
        let mut cuts = [borders.first, borders.second].map(|at| u64::from(at) % MEMORY);
        cuts.sort_unstable();
        let behind = (cuts[1] + if borders.hole { 0x100 } else { 0 }).min(MEMORY);
        let ranges = [(0, cuts[0]), (cuts[0], cuts[1]), (behind, MEMORY)];
        let piece = |(guest, end): (u64, u64)| {
            let offset = (guest % 16) as usize;
            let len = end - guest;
            let mapping = Arc::new(MmapRegion::new(offset + len as usize).expect("memory for a region"));
            Piece { guest, offset, len, mapping }
        };
        let pieces: Vec<Piece> = ranges.into_iter().filter(|(from, to)| from < to).map(piece).collect();
        let region = |piece: &Piece| {
            Region::new(piece.mapping.clone(), piece.offset, piece.guest, piece.guest, piece.len).unwrap()
        };
        let memory = Arc::new(GuestMemory::new(pieces.iter().map(region).collect()).unwrap());
        Guest { pieces, memory }
    }

    /// Returns the lengths of the pieces of `len` bytes at `at`; `None` if some of them are no memory.
    pub(super) fn pieces(&self, mut at: u64, mut len: u64) -> Option<Vec<(&MmapRegion, usize, usize)>> {
        let mut found = Vec::new();
        while len > 0 {
            let inside = |piece: &&Piece| at >= piece.guest && at - piece.guest < piece.len;
            let piece = self.pieces.iter().find(inside)?;
            let now = len.min(piece.guest + piece.len - at);
            found.push((&*piece.mapping, piece.offset + (at - piece.guest) as usize, now as usize));
            at += now;
            len -= now;
        }
        Some(found)
    }

    /// Writes those of `bytes` that are memory.
    pub(super) fn write(&self, at: u64, bytes: &[u8]) {
        match self.pieces(at, bytes.len() as u64) {
            Some(pieces) => {
                let mut rest = bytes;
                for (mapping, offset, len) in pieces {
                    let (now, later) = rest.split_at(len);
                    mapping.get_slice(offset, len).expect("a piece of the mapping").copy_from(now);
                    rest = later;
                }
            }
            // Across the hole or the end.
            None if bytes.len() > 1 => {
                bytes.iter().zip(at..).for_each(|(byte, at)| self.write(at, &[*byte]));
            }
            None => {}
        }
    }

    /// Returns the bytes at `at`, if all of them are memory.
    pub(super) fn read(&self, at: u64, len: usize) -> Option<Vec<u8>> {
        let mut bytes = Vec::with_capacity(len);
        for (mapping, offset, len) in self.pieces(at, len as u64)? {
            let mut part = vec![0; len];
            mapping.get_slice(offset, len).unwrap().copy_to(&mut part);
            bytes.extend(part);
        }
        Some(bytes)
    }

    /// Returns a 16-bit field.
    pub(super) fn u16(&self, at: u64) -> Option<u16> {
        self.read(at, 2).map(|bytes| u16::from_le_bytes([bytes[0], bytes[1]]))
    }

    /// Returns a 32-bit field.
    pub(super) fn u32(&self, at: u64) -> Option<u32> {
        Some(u32::from(self.u16(at)?) | u32::from(self.u16(at + 2)?) << 16)
    }
}

/// One part of a chain: guest address, bytes, and whether the device writes it.
pub(super) type Part = (u64, u32, bool);

/// Reads a chain by the specification (virtio 1.2, 2.7.5): returns its non-empty parts, or `None` for an
/// invalid chain. `memory` reads guest memory.
pub(super) fn chain(
    memory: impl Fn(u64, usize) -> Option<Vec<u8>>,
    (table, size): (u64, u16),
    indirect: bool,
    head: u16,
) -> Option<Vec<Part>> {
    let (mut table, mut size, mut inside) = (table, size, false);
    let (mut number, mut seen, mut bytes, mut parts) = (head, 0u32, 0u64, Vec::new());
    loop {
        let raw = memory(table.checked_add(u64::from(number) * 16)?, 16)?;
        let addr = u64::from_le_bytes(raw[..8].try_into().ok()?);
        let len = u32::from_le_bytes(raw[8..12].try_into().ok()?);
        let [flags, next] = [12, 14].map(|at| u16::from_le_bytes([raw[at], raw[at + 1]]));
        seen += 1;
        if seen > u32::from(size) {
            return None;
        }
        if flags & INDIRECT != 0 {
            let entries = len / 16;
            if !indirect || inside || flags & NEXT != 0 || len % 16 != 0 || !(1..=32768).contains(&entries) {
                return None;
            }
            (table, size, inside, number, seen) = (addr, entries as u16, true, 0, 0);
            continue;
        }
        bytes += u64::from(len);
        if bytes > 1 << 32 {
            return None;
        }
        if len > 0 {
            memory(addr, len as usize)?;
            parts.push((addr, len, flags & WRITE != 0));
        }
        if flags & NEXT == 0 {
            return Some(parts);
        }
        if next >= size {
            return None;
        }
        number = next;
    }
}

/// An action of the fuzzer's driver on its ring.
#[derive(Arbitrary, Clone, Debug)]
pub(super) enum DriverStep {
    /// Makes a well-formed chain available: lengths, device-writable or not.
    Offer { parts: Vec<(u16, bool)>, indirect: bool },
    /// Writes a descriptor of the ring's table, or of an indirect table.
    Descriptor { slot: u16, addr: u32, len: u16, flags: u8, next: u8, in_table: bool },
    /// Makes any `head` available.
    Head(u16),
    /// Sets the available index.
    Index(u16),
    /// Sets `used_event`.
    Event(u16),
    /// Sets the flags of the available ring.
    Flags(u8),
    /// Writes anywhere.
    Poke { at: u32, byte: u8 },
}

/// The driver's side of a ring at `layout`, for chains of up to 64 parts.
pub(super) struct Driver {
    pub(super) layout: RingLayout,
    pub(super) features: Features,
    free: u16,
    buffer: u64,
}

impl Driver {
    /// Makes the ring of 2 to the power of `log` (0 to 8) entries, in the memory's first pages.
    pub(super) fn new(log: u8, features: Features) -> Driver {
        let size = 1 << (log % 9);
        Driver {
            layout: RingLayout { size, desc: 0, avail: 0x2000, used: 0x3000 },
            features,
            free: 0,
            buffer: BUFFERS,
        }
    }

    /// Executes `step`.
    pub(super) fn step(&mut self, guest: &Guest, step: &DriverStep) {
        let RingLayout { size, desc, avail, .. } = self.layout;
        match step {
            DriverStep::Offer { parts, indirect } => {
                self.offer(guest, &parts[..parts.len().min(64)], *indirect);
            }
            DriverStep::Descriptor { slot, addr, len, flags, next, in_table } => {
                let at = if *in_table { TABLES } else { desc } + u64::from(slot % size) * 16;
                write_descriptor(
                    guest,
                    at,
                    (u64::from(*addr) % END, u32::from(*len), false),
                    (*flags).into(),
                );
                guest.write(at + 14, &u16::from(*next).to_le_bytes());
            }
            DriverStep::Head(head) => self.publish(guest, *head),
            DriverStep::Index(index) => guest.write(avail + 2, &index.to_le_bytes()),
            DriverStep::Event(event) => guest.write(avail + 4 + u64::from(size) * 2, &event.to_le_bytes()),
            DriverStep::Flags(flags) => guest.write(avail, &u16::from(*flags).to_le_bytes()),
            DriverStep::Poke { at, byte } => guest.write(u64::from(*at) % MEMORY, &[*byte]),
        }
    }

    fn publish(&self, guest: &Guest, head: u16) {
        let RingLayout { size, avail, .. } = self.layout;
        let index = guest.u16(avail + 2).unwrap_or(0);
        guest.write(avail + 4 + u64::from(index % size) * 2, &head.to_le_bytes());
        guest.write(avail + 2, &index.wrapping_add(1).to_le_bytes());
    }

    /// Allocates buffers through memory in sequence, then from the beginning again.
    fn take(&mut self, len: u16, write: bool) -> Part {
        if self.buffer + u64::from(len) > MEMORY {
            self.buffer = BUFFERS;
        }
        let at = self.buffer;
        self.buffer += u64::from(len);
        (at, len.into(), write)
    }

    /// Makes a chain with existing parts available, in the ring's table.
    pub(super) fn offer_at(&mut self, guest: &Guest, parts: &[Part]) {
        let RingLayout { size, desc, .. } = self.layout;
        let head = self.free;
        for (n, part) in parts.iter().enumerate() {
            let number = (head + n as u16) % size;
            let at = desc + u64::from(number) * 16;
            write_descriptor(guest, at, *part, u16::from(n + 1 < parts.len()));
            guest.write(at + 14, &((number + 1) % size).to_le_bytes());
        }
        self.free = (head + parts.len() as u16) % size;
        self.publish(guest, head);
    }

    /// Makes a chain of buffers available.
    pub(super) fn offer(&mut self, guest: &Guest, parts: &[(u16, bool)], indirect: bool) {
        let RingLayout { size, desc, .. } = self.layout;
        let parts: Vec<Part> = parts.iter().map(|(len, write)| self.take(*len, *write)).collect();
        if !indirect {
            return self.offer_at(guest, &parts);
        }
        for (n, part) in parts.iter().enumerate() {
            let at = TABLES + n as u64 * 16;
            write_descriptor(guest, at, *part, u16::from(n + 1 < parts.len()));
            guest.write(at + 14, &(n as u16 + 1).to_le_bytes());
        }
        let head = self.free;
        let table = (TABLES, parts.len() as u32 * 16, false);
        write_descriptor(guest, desc + u64::from(head) * 16, table, INDIRECT);
        self.free = (head + 1) % size;
        self.publish(guest, head);
    }
}

fn write_descriptor(guest: &Guest, at: u64, (addr, len, write): Part, flags: u16) {
    guest.write(at, &addr.to_le_bytes());
    guest.write(at + 8, &len.to_le_bytes());
    guest.write(at + 12, &(flags | if write { WRITE } else { 0 }).to_le_bytes());
}

/// A reader of [`GuestMemoryMmap`] for [`chain`].
pub(super) fn reader(memory: &GuestMemoryMmap) -> impl Fn(u64, usize) -> Option<Vec<u8>> + '_ {
    move |at, len| {
        let mut bytes = vec![0; len];
        memory.read_slice(&mut bytes, GuestAddress(at)).ok()?;
        Some(bytes)
    }
}
