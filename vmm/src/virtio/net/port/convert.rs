//! Conversion between the types of the VMM's crates and those of `volt_net`.
#![expect(unsafe_code, reason = "an EventFd gives its descriptor up only as a number")]

use std::io;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::sync::Arc;

use vm_memory::{Address, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;
use volt_virtio::memory::{GuestMemory, Region};
use volt_virtio::notify::Notifier;

/// Returns the same mappings as a table of `volt_net`. It has guest addresses only, because no front-end has
/// an address space of its own here.
pub(super) fn guest_memory(memory: &GuestMemoryMmap) -> io::Result<Arc<GuestMemory>> {
    let regions = memory.iter().map(|region| {
        let start = region.start_addr().raw_value();
        Region::new(region.get_mmap(), 0, start, start, region.len())
    });
    let regions: Option<Vec<_>> = regions.collect();
    let regions = regions.ok_or(io::ErrorKind::InvalidInput)?;
    GuestMemory::new(regions).map(Arc::new).map_err(io::Error::other)
}

/// Duplicates an eventfd's descriptor.
pub(super) fn notifier(eventfd: &EventFd) -> io::Result<Arc<Notifier>> {
    // SAFETY: `into_raw_fd` gives up the only owner of the copy.
    let copy = unsafe { OwnedFd::from_raw_fd(eventfd.try_clone()?.into_raw_fd()) };
    Notifier::new(copy).map(Arc::new).map_err(io::Error::other)
}
