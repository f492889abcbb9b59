//! The memory table of the scripted back-end, with the related faults.

use std::io;
use std::os::fd::OwnedFd;

use super::super::fault::Fault;
use super::Connection;
use crate::memory::{GuestMemory, RegionSpec};
use crate::wire::{Message, WireError};

impl Connection {
    pub(super) fn set_mem_table(&mut self, message: &mut Message) -> Result<(), WireError> {
        let told = usize::from(message.body.first().copied().unwrap_or_default());
        let count = if self.has(Fault::SurplusFiles) { told } else { message.fds.len() };
        let mut specs =
            (0..count).map(|at| region_at(message, 8 + 32 * at)).collect::<Result<Vec<_>, _>>()?;
        if self.has(Fault::EmptyRegions) {
            specs.retain(|spec| spec.size > 0);
        }
        if self.has(Fault::OffsetIgnored) {
            specs.iter_mut().for_each(|spec| spec.offset = 0);
        }
        if self.has(Fault::FirstRegion) {
            specs.truncate(1);
        }
        self.regions = specs.into_iter().zip(message.fds.drain(..)).collect();
        self.remap()
    }

    pub(super) fn add_mem_reg(&mut self, message: &mut Message) -> Result<(), WireError> {
        let spec = region_at(message, 8)?;
        let fd = message.fds.pop().ok_or_else(|| message.unexpected("a descriptor"))?;
        self.regions.push((spec, fd));
        self.remap()
    }

    pub(super) fn rem_mem_reg(&mut self, message: &Message) -> Result<(), WireError> {
        let spec = region_at(message, 8)?;
        self.regions.retain(|(region, _)| (region.guest, region.size) != (spec.guest, spec.size));
        self.remap()
    }

    /// Maps all regions again; running rings continue in the new mapping.
    fn remap(&mut self) -> Result<(), WireError> {
        let again = |(spec, fd): &(RegionSpec, OwnedFd)| fd.try_clone().map(|fd| (*spec, fd));
        let memory = GuestMemory::map(self.regions.iter().map(again).collect::<io::Result<_>>()?)?;
        self.memory = Some(memory);
        if self.has(Fault::LogLost) {
            self.log = None;
        }
        for vring in self.vrings.values_mut() {
            if let Some(ring) = vring.ring.take() {
                vring.base = ring.used_idx();
            }
        }
        Ok(())
    }
}

fn region_at(message: &Message, at: usize) -> Result<RegionSpec, WireError> {
    let bytes = message.body.get(at..at + 32).ok_or_else(|| message.unexpected("a memory region"))?;
    let long = |i: usize| u64::from_le_bytes(std::array::from_fn(|b| bytes[8 * i + b]));
    Ok(RegionSpec { guest: long(0), size: long(1), user: long(2), offset: long(3) })
}
