//! The configuration space of a function: a type 0 header, one BAR of 32 bits, and a list of capabilities
//! (PCI 3.0, 6.1 to 6.7). 256 bytes: there are no extended capabilities.

use log::debug;

/// Size of the space in bytes.
pub const SIZE: usize = 256;

const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const BAR_0: usize = 0x10;
const SUBSYSTEM: usize = 0x2c;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;
const HEADER_END: usize = 0x40;

/// The capability of functions whose resources do not move.
const ENHANCED_ALLOCATION: u8 = 0x14;

/// `Command`: the BAR answers.
const MEMORY_SPACE: u16 = 1 << 1;
/// `Command`: the function may access memory. Messages of interrupts are writes to memory.
const BUS_MASTER: u16 = 1 << 2;
/// `Command`: bits that a driver may change. The others are read-only.
const COMMAND_WRITABLE: u16 = MEMORY_SPACE | BUS_MASTER | 1 << 6 | 1 << 8 | 1 << 10;
/// `Status`: there are capabilities.
const HAS_CAPABILITIES: u8 = 1 << 4;

/// The identity of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Vendor of the function.
    pub vendor: u16,
    /// Device number of the function.
    pub device: u16,
    /// Revision of the function.
    pub revision: u8,
    /// Base class, sub-class and programming interface, 24 bits.
    pub class: u32,
    /// Vendor and device of the subsystem.
    pub subsystem: [u16; 2],
}

/// The registers, and the bits of them that a driver may change.
#[derive(Debug)]
pub struct ConfigSpace {
    bytes: [u8; SIZE],
    writable: [u8; SIZE],
    /// Address and mask of BAR 0, if there is one.
    bar: Option<(u32, u32)>,
    /// Offset of the next capability, and of the byte that will point to it.
    next: usize,
    link: usize,
}

impl ConfigSpace {
    /// Creates a function without BAR, capabilities and interrupt pin.
    pub fn new(identity: Identity) -> ConfigSpace {
        let mut space = ConfigSpace {
            bytes: [0; SIZE],
            writable: [0; SIZE],
            bar: None,
            next: HEADER_END,
            link: CAPABILITIES,
        };
        let Identity { vendor, device, revision, class, subsystem: [subsystem_vendor, subsystem] } = identity;
        space.put(0, &vendor.to_le_bytes());
        space.put(2, &device.to_le_bytes());
        space.put(8, &(class << 8 | u32::from(revision)).to_le_bytes());
        space.put(SUBSYSTEM, &subsystem_vendor.to_le_bytes());
        space.put(SUBSYSTEM + 2, &subsystem.to_le_bytes());
        space.writable[COMMAND..COMMAND + 2].copy_from_slice(&COMMAND_WRITABLE.to_le_bytes());
        space.writable[INTERRUPT_LINE] = 0xff;
        space
    }

    /// Makes BAR 0 a memory BAR of `size` bytes, a power of two from 16 on, at `base`, a multiple of the
    /// size.
    ///
    /// A driver may query its size in the way of the specification (6.2.5.1), but cannot move it.
    pub fn set_bar(&mut self, base: u32, size: u32) {
        self.bar = Some((base, !(size - 1)));
        self.put(BAR_0, &base.to_le_bytes());
        self.writable[BAR_0..BAR_0 + 4].fill(0xff);
    }

    /// Appends the capability that fixes the place of the BAR (Enhanced Allocation, PCI Express 6.0, 7.8.5,
    /// valid for every function). Without it, Linux chooses another place for the BAR of a function that is
    /// added at run time.
    pub fn add_fixed_bar(&mut self) {
        /// One entry, with two words after the first: base and length, 32 bits each.
        const ENTRIES: [u8; 2] = [1, 0];
        const WORDS: u32 = 2;
        /// BAR 0 (bits 4 to 7), memory without prefetching (bits 8 to 15), no second property, enabled.
        const PROPERTIES: u32 = 0xff << 16 | 1 << 31;
        let Some((base, mask)) = self.bar else { return };
        // The lowest two bits of the last byte's offset count as set.
        let words = [WORDS | PROPERTIES, base, !mask & !3].map(u32::to_le_bytes);
        self.add_capability(ENHANCED_ALLOCATION, &[&ENTRIES[..], words.as_flattened()].concat(), &[]);
    }

    /// Appends a capability: its number, the bytes after the pointer to the next one, and the bits of them
    /// that a driver may change (none after the end of `writable`). Returns its offset.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> u16 {
        let at = self.next;
        self.bytes[self.link] = at as u8;
        self.bytes[STATUS] |= HAS_CAPABILITIES;
        self.put(at, &[id, 0]);
        self.put(at + 2, body);
        self.writable[at + 2..][..writable.len()].copy_from_slice(writable);
        self.link = at + 1;
        self.next = (at + 2 + body.len()).next_multiple_of(4);
        at as u16
    }

    /// Fills `data` from `offset` on, with zeroes after the end.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        for (at, byte) in (usize::from(offset)..).zip(data) {
            *byte = self.bytes.get(at).copied().unwrap_or(0);
        }
    }

    /// Writes the bytes from `offset` on. Changes only the bits that a driver may change.
    pub fn write(&mut self, offset: u16, data: &[u8]) {
        for (at, value) in (usize::from(offset)..).zip(data) {
            if let (Some(byte), Some(mask)) = (self.bytes.get_mut(at), self.writable.get(at)) {
                *byte = *byte & !mask | value & mask;
            }
        }
        if usize::from(offset) < BAR_0 + 4
            && usize::from(offset) + data.len() > BAR_0
            && let Some((base, mask)) = self.bar
        {
            let asked = self.u32(BAR_0 as u16);
            if asked & !0xf != base && asked != u32::MAX {
                debug!("PCI: the guest wants to move the BAR at {base:#x} to {asked:#x}; it stays");
            }
            self.put(BAR_0, &if asked == u32::MAX { mask } else { base }.to_le_bytes());
        }
    }

    /// Returns whether the BAR answers.
    pub fn memory_enabled(&self) -> bool {
        self.u32(COMMAND as u16) as u16 & MEMORY_SPACE != 0
    }

    /// Returns whether the function may write to memory and read from it.
    pub fn is_bus_master(&self) -> bool {
        self.u32(COMMAND as u16) as u16 & BUS_MASTER != 0
    }

    /// Returns the 32 bits at `offset`.
    pub fn u32(&self, offset: u16) -> u32 {
        let mut data = [0; 4];
        self.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    /// Writes `bytes` at `at`, even if a driver may not. Callers guarantee that they are inside.
    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..][..bytes.len()].copy_from_slice(bytes);
    }

    /// Writes `data`, which a device has read, to the register at `offset` of a capability.
    pub fn set(&mut self, offset: u16, data: [u8; 4]) {
        self.put(offset.into(), &data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space() -> ConfigSpace {
        let identity =
            Identity { vendor: 0x1af4, device: 0x1042, revision: 1, class: 0x01_0000, subsystem: [3, 4] };
        ConfigSpace::new(identity)
    }

    #[test]
    fn the_header_tells_what_it_is_and_stays() {
        let mut space = space();
        space.write(0, &[0xff; SIZE]);
        assert_eq!(space.u32(0), 0x1042_1af4);
        assert_eq!(space.u32(8), 0x0100_0001);
        assert_eq!(space.u32(0x2c), 0x0004_0003);
        assert_eq!(space.u32(0x3c), 0xff, "interrupt line; no pin");
        assert_eq!(space.u32(4), u32::from(COMMAND_WRITABLE));
    }

    #[test]
    fn a_bar_tells_its_size_and_goes_back_to_where_it_is() {
        let mut space = space();
        space.set_bar(0xe000_8000, 0x8000);
        assert!(!space.memory_enabled());
        space.write(4, &[2, 0]);
        assert!(space.memory_enabled());
        space.write(0x10, &[0xff; 4]);
        assert_eq!(space.u32(0x10), 0xffff_8000);
        for elsewhere in [0xe000_8000u32, 0, 0xd000_0000, 0x7fff_ffff] {
            space.write(0x10, &elsewhere.to_le_bytes());
            assert_eq!(space.u32(0x10), 0xe000_8000);
        }
        space.write(0x12, &[0xff, 0xff]);
        assert_eq!(space.u32(0x10), 0xe000_8000, "a part of it");
        space.write(0x14, &[0xff; 4]);
        assert_eq!(space.u32(0x14), 0, "there is no second BAR");
    }

    #[test]
    fn a_fixed_bar_says_where_it_is() {
        let mut space = space();
        space.set_bar(0xe000_8000, 0x8000);
        space.add_fixed_bar();
        assert_eq!(
            [0x40, 0x44, 0x48, 0x4c].map(|at| space.u32(at)),
            [0x0001_0014, 0x80ff_0002, 0xe000_8000, 0x7ffc]
        );
    }

    #[test]
    fn capabilities_are_a_list() {
        let mut space = space();
        assert_eq!(space.u32(4) >> 16, 0);
        let first = space.add_capability(9, &[7, 1, 2, 3, 4], &[0, 0, 0xf0]);
        let second = space.add_capability(0x11, &[5], &[]);
        assert_eq!((first, second), (0x40, 0x48));
        assert_eq!(space.u32(4) >> 16, 0x10);
        assert_eq!(space.u32(0x34), 0x40);
        assert_eq!(space.u32(0x40), 0x0107_4809);
        assert_eq!(space.u32(0x48), 0x0005_0011);
        space.write(0x40, &[0xff; 8]);
        assert_eq!((space.u32(0x40), space.u32(0x44)), (0x0107_4809, 0x0004_03f2));
    }

    #[test]
    fn behind_the_end_there_is_nothing() {
        let mut space = space();
        space.write(254, &[0xff; 16]);
        space.write(u16::MAX, &[0xff; 16]);
        let mut data = [9; 8];
        space.read(252, &mut data);
        assert_eq!(data, [0; 8]);
        space.read(u16::MAX, &mut data);
        assert_eq!(data, [0; 8]);
    }
}
