//! The address space of port or memory-mapped I/O: ranges, and the devices behind them.

/// A device that a vCPU reaches by port I/O or memory-mapped I/O.
///
/// Called on a vCPU's thread, so it must return quickly and may never wait for another process.
pub trait BusDevice: Send {
    /// Fills `data` with what the guest reads at `offset` bytes from the start of the device's range.
    fn read(&mut self, offset: u64, data: &mut [u8]);

    /// Takes `data` that the guest writes at `offset` bytes from the start of the device's range.
    fn write(&mut self, offset: u64, data: &[u8]);
}
