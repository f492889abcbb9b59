//! The address space of port or memory-mapped I/O: ranges, and the devices behind them.
//!
//! The builder fills a [`Bus`]. Devices that are added and removed while the guest runs change it. An access
//! locks the ranges only for the look-up, and then the device. So a change of the ranges waits for no device,
//! however long a reset takes, and no vCPU waits for the change. The cost is an uncontended read lock and a
//! reference count, in an exit that costs a hundred times as much. Notifications and interrupts, and
//! therefore frames, bypass the bus.
//!
//! So an access may reach a device that was removed just before. A device that can be removed is stored here
//! in an `Option`, which its owner empties.

use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use thiserror::Error;

/// A device that vCPUs access by port I/O or memory-mapped I/O.
///
/// Called on a vCPU's thread, so it must return quickly and must not wait for another process.
pub trait BusDevice: Send {
    /// Reads: fills `data` from `offset` bytes after the start of the device's range.
    fn read(&mut self, offset: u64, data: &mut [u8]);

    /// Writes `data` at `offset` bytes after the start of the device's range.
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// A device that was removed answers no access.
impl<D: BusDevice> BusDevice for Option<D> {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        match self {
            Some(device) => device.read(offset, data),
            None => data.fill(0xff),
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some(device) = self {
            device.write(offset, data);
        }
    }
}

/// Why a range cannot be added to a bus.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("the range of {len:#x} at {base:#x} is empty, too long or already taken")]
pub struct RangeError {
    /// First address.
    pub base: u64,
    /// Number of addresses.
    pub len: u64,
}

struct Range {
    base: u64,
    len: u64,
    device: Arc<Mutex<dyn BusDevice>>,
}

/// Devices by address. Reads without an answer return ones, and such writes are ignored, as on a PC.
#[derive(Default)]
pub struct Bus {
    /// In order of their base, without overlaps.
    ranges: RwLock<Vec<Range>>,
}

impl Bus {
    /// Creates an empty address space.
    pub fn new() -> Bus {
        Bus::default()
    }

    /// Adds `device` at `len` addresses from `base` on.
    ///
    /// # Errors
    ///
    /// Fails if the range is empty, ends beyond 2^64 or overlaps another.
    pub fn insert(&self, base: u64, len: u64, device: Arc<Mutex<dyn BusDevice>>) -> Result<(), RangeError> {
        let error = RangeError { base, len };
        let end = base.checked_add(len).filter(|&end| end > base).ok_or(error)?;
        let mut ranges = self.write_ranges();
        let at = ranges.partition_point(|range| range.base < base);
        let before = at.checked_sub(1).and_then(|at| ranges.get(at));
        if before.is_some_and(|r| r.base + r.len > base) || ranges.get(at).is_some_and(|r| r.base < end) {
            return Err(RangeError { base, len });
        }
        ranges.insert(at, Range { base, len, device });
        Ok(())
    }

    /// Removes the device whose range begins at `base`, if there is one. Accesses in progress continue.
    pub fn remove(&self, base: u64) {
        let mut ranges = self.write_ranges();
        ranges.retain(|range| range.base != base);
    }

    /// Carries out the guest's read at `address`.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        let found = find(&self.read_ranges(), address);
        match found {
            Some((device, offset)) => {
                device.lock().unwrap_or_else(PoisonError::into_inner).read(offset, data);
            }
            None => data.fill(0xff),
        }
    }

    /// Carries out the guest's write at `address`.
    pub fn write(&self, address: u64, data: &[u8]) {
        let found = find(&self.read_ranges(), address);
        if let Some((device, offset)) = found {
            device.lock().unwrap_or_else(PoisonError::into_inner).write(offset, data);
        }
    }

    fn read_ranges(&self) -> RwLockReadGuard<'_, Vec<Range>> {
        self.ranges.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_ranges(&self) -> RwLockWriteGuard<'_, Vec<Range>> {
        self.ranges.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn find(ranges: &[Range], address: u64) -> Option<(Arc<Mutex<dyn BusDevice>>, u64)> {
    let at = ranges.partition_point(|range| range.base <= address).checked_sub(1)?;
    let range = ranges.get(at)?;
    let offset = address - range.base;
    (offset < range.len).then(|| (range.device.clone(), offset))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use super::*;

    /// Reads as its number, and records the last write.
    struct Probe(u8, Vec<(u64, Vec<u8>)>);

    impl BusDevice for Probe {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(self.0 + u8::try_from(offset).unwrap());
        }

        fn write(&mut self, offset: u64, data: &[u8]) {
            self.1.push((offset, data.to_vec()));
        }
    }

    fn probe(number: u8) -> Arc<Mutex<Probe>> {
        Arc::new(Mutex::new(Probe(number, Vec::new())))
    }

    fn read(bus: &Bus, address: u64) -> u8 {
        let mut data = [0];
        bus.read(address, &mut data);
        data[0]
    }

    #[test]
    fn accesses_reach_the_device_of_the_range_and_no_other() {
        let (low, high) = (probe(10), probe(50));
        let bus = Bus::new();
        bus.insert(0x20, 8, high.clone()).unwrap();
        bus.insert(0x10, 4, low.clone()).unwrap();
        assert_eq!(
            [0x0f, 0x10, 0x13, 0x14, 0x1f, 0x20, 0x27, 0x28].map(|a| read(&bus, a)),
            [255, 10, 13, 255, 255, 50, 57, 255]
        );
        bus.write(0x12, &[1, 2]);
        bus.write(0x14, &[3]);
        bus.write(u64::MAX, &[4]);
        assert_eq!(low.lock().unwrap().1, [(2, vec![1, 2])]);
        assert!(high.lock().unwrap().1.is_empty());
    }

    #[test]
    fn ranges_do_not_overlap() {
        let bus = Bus::new();
        bus.insert(0x10, 0x10, probe(0)).unwrap();
        for (base, len) in [(0x10, 1), (0x1f, 1), (0x8, 9), (0, 0x100), (0x30, 0), (u64::MAX, 2)] {
            assert_eq!(bus.insert(base, len, probe(0)), Err(RangeError { base, len }));
        }
        bus.insert(0x20, 1, probe(0)).unwrap();
        bus.insert(0xf, 1, probe(0)).unwrap();
    }

    /// After a device was removed and emptied during vCPUs' accesses, its owner has it alone.
    #[test]
    fn a_removed_device_is_nobodys() {
        let bus = Bus::new();
        bus.insert(0x14, 4, probe(8)).unwrap();
        let run = AtomicBool::new(true);
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while run.load(Ordering::Relaxed) {
                        assert!([7, 255].contains(&read(&bus, 0x10)));
                    }
                });
            }
            for _ in 0..500 {
                let device = Arc::new(Mutex::new(Some(Probe(7, Vec::new()))));
                bus.insert(0x10, 4, device.clone()).unwrap();
                bus.remove(0x10);
                assert_eq!(device.lock().unwrap().take().map(|probe| probe.0), Some(7));
            }
            bus.remove(0x11);
            run.store(false, Ordering::Relaxed);
        });
        assert_eq!([0x10, 0x14].map(|address| read(&bus, address)), [255, 8]);
    }

    /// A slow device delays only its own accesses. It delays neither a new device nor other accesses.
    #[test]
    fn a_slow_device_holds_up_nobody_else() {
        let (bus, slow) = (Bus::new(), probe(7));
        bus.insert(0x10, 4, slow.clone()).unwrap();
        bus.insert(0x14, 4, probe(8)).unwrap();
        let busy = slow.lock().unwrap();
        thread::scope(|scope| {
            let access = scope.spawn(|| read(&bus, 0x10));
            // In the access: a third reference to the device, besides the test's and the bus's.
            while Arc::strong_count(&slow) < 3 {
                thread::yield_now();
            }
            bus.insert(0x18, 4, probe(9)).unwrap();
            assert_eq!([0x14, 0x18].map(|address| read(&bus, address)), [8, 9]);
            bus.remove(0x18);
            drop(busy);
            assert_eq!(access.join().unwrap(), 7);
        });
    }
}
