//! The MSI-X capability of a function: its table of messages, masks and pending bits (PCI 3.0, 6.8.2).
//!
//! This module has only the state that the driver wrote. The owner of a [`Msix`] calls [`Msix::message`]
//! after each change, and connects its interrupts accordingly ([`crate::pci::msi`]).

/// The capability's number.
pub const CAPABILITY: u8 = 0x11;
/// Bytes of a table entry.
pub const ENTRY_SIZE: usize = 16;
/// The largest number of entries of a table.
pub const MAX_VECTORS: u16 = 2048;

/// Message Control: MSI-X is enabled.
const ENABLE: u16 = 1 << 15;
/// Message Control: all vectors are masked.
const FUNCTION_MASK: u16 = 1 << 14;
/// Vector Control: this vector is masked.
const MASK: u8 = 1;
/// Offset of Vector Control in an entry.
const VECTOR_CONTROL: usize = 12;

/// An interrupt as a write to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// The address, in a local APIC.
    pub address: u64,
    /// The value.
    pub data: u32,
}

/// A function's vectors.
#[derive(Debug)]
pub struct Msix {
    control: u16,
    table: Vec<u8>,
}

impl Msix {
    /// Creates `vectors` vectors, 1 to [`MAX_VECTORS`], all masked as after a reset.
    pub fn new(vectors: u16) -> Msix {
        let mut entry = [0; ENTRY_SIZE];
        entry[VECTOR_CONTROL] = MASK;
        Msix { control: 0, table: entry.repeat(vectors.into()) }
    }

    /// Returns the number of vectors.
    pub fn vectors(&self) -> u16 {
        (self.table.len() / ENTRY_SIZE) as u16
    }

    /// Returns the capability's body, with table and pending bits at these offsets of BAR 0 (multiples of 8),
    /// and its writable bits.
    pub fn capability(&self, table: u32, pending: u32) -> ([u8; 10], [u8; 2]) {
        let mut body = [0; 10];
        body[..2].copy_from_slice(&(self.vectors() - 1).to_le_bytes());
        body[2..6].copy_from_slice(&table.to_le_bytes());
        body[6..].copy_from_slice(&pending.to_le_bytes());
        (body, (ENABLE | FUNCTION_MASK).to_le_bytes())
    }

    /// Sets Message Control to the driver's value.
    pub fn set_control(&mut self, control: u16) {
        self.control = control;
    }

    /// Returns whether MSI-X is enabled.
    pub fn is_enabled(&self) -> bool {
        self.control & ENABLE != 0
    }

    /// Returns the message to send for `vector` now: none if it is masked or does not exist.
    pub fn message(&self, vector: u16) -> Option<Message> {
        if self.control & (ENABLE | FUNCTION_MASK) != ENABLE {
            return None;
        }
        let entry: &[u8; ENTRY_SIZE] =
            self.table.chunks_exact(ENTRY_SIZE).nth(vector.into())?.try_into().ok()?;
        let [a0, a1, a2, a3, a4, a5, a6, a7, d0, d1, d2, d3, control, ..] = *entry;
        (control & MASK == 0).then_some(Message {
            // The lowest two bits of an address are reserved.
            address: u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]) & !3,
            data: u32::from_le_bytes([d0, d1, d2, d3]),
        })
    }

    /// Fills `data` from byte `offset` of the table, with zeroes after its end.
    pub fn read_table(&self, offset: usize, data: &mut [u8]) {
        let rest = self.table.get(offset..).unwrap_or(&[]);
        for (at, byte) in data.iter_mut().enumerate() {
            *byte = rest.get(at).copied().unwrap_or(0);
        }
    }

    /// Handles a write to byte `offset` of the table.
    pub fn write_table(&mut self, offset: usize, data: &[u8]) {
        for (at, value) in (offset..).zip(data) {
            if let Some(byte) = self.table.get_mut(at) {
                *byte = match at % ENTRY_SIZE {
                    VECTOR_CONTROL => value & MASK,
                    // The rest of Vector Control is reserved.
                    place if place > VECTOR_CONTROL => 0,
                    _ => *value,
                };
            }
        }
    }

    /// Fills `data` from byte `offset` of the pending bits. `is_pending` returns each vector's.
    pub fn read_pending(&self, offset: usize, data: &mut [u8], is_pending: impl Fn(u16) -> bool) {
        for (at, byte) in (offset..).zip(data) {
            let vectors = at.saturating_mul(8)..at.saturating_add(1).saturating_mul(8);
            let bits = vectors.map(|vector| match u16::try_from(vector) {
                Ok(vector) if vector < self.vectors() => is_pending(vector),
                _ => false,
            });
            *byte = bits.enumerate().fold(0, |byte, (bit, set)| byte | u8::from(set) << bit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SENT: Message = Message { address: 0xfee0_1000, data: 0x4021 };

    fn enabled() -> Msix {
        let mut msix = Msix::new(3);
        msix.set_control(ENABLE);
        msix.write_table(16, &SENT.address.to_le_bytes());
        msix.write_table(24, &SENT.data.to_le_bytes());
        msix
    }

    #[test]
    fn a_vector_is_silent_until_all_three_switches_are_on() {
        let mut msix = enabled();
        assert_eq!(msix.message(1), None, "masked from the start");
        msix.write_table(28, &[0; 4]);
        assert_eq!(msix.message(1), Some(SENT));
        msix.set_control(ENABLE | FUNCTION_MASK);
        assert_eq!(msix.message(1), None);
        msix.set_control(0);
        assert_eq!(msix.message(1), None);
        msix.set_control(ENABLE);
        msix.write_table(28, &[1, 0, 0, 0]);
        assert_eq!(msix.message(1), None);
    }

    #[test]
    fn there_are_no_vectors_behind_the_table() {
        let mut msix = enabled();
        msix.write_table(48, &[0; 16]);
        msix.write_table(40, &[0xff; 64]);
        msix.write_table(0xfff, &[0xff]);
        for absent in [3, MAX_VECTORS, u16::MAX] {
            assert_eq!(msix.message(absent), None);
        }
        let mut data = [9; 4];
        msix.read_table(46, &mut data);
        assert_eq!(data, [0; 4], "reserved, then behind the end");
        msix.read_table(0xfff, &mut data);
        assert_eq!(data, [0; 4]);
    }

    #[test]
    fn the_capability_tells_how_many_and_where() {
        let (body, writable) = Msix::new(3).capability(0x4000, 0x5000);
        assert_eq!(body, [2, 0, 0, 0x40, 0, 0, 0, 0x50, 0, 0]);
        assert_eq!(writable, [0, 0xc0]);
    }

    #[test]
    fn pending_bits_are_by_vector() {
        let msix = Msix::new(10);
        let mut data = [0; 4];
        msix.read_pending(0, &mut data, |vector| vector % 3 == 0);
        assert_eq!(data, [0b0100_1001, 0b10, 0, 0]);
        msix.read_pending(0xfff, &mut data[..1], |_| true);
        assert_eq!(data[0], 0);
    }
}
