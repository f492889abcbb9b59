//! The dirty log of the scripted back-end: it marks the pages of guest memory that the back-end writes, with
//! the related faults ("Migration", vhost-user specification). [`super::vring::Vring`] calls it after each
//! write.

use std::os::fd::OwnedFd;

use super::fault::Fault;
use crate::device::Chain;
use crate::dirty_log::{PAGE, pages};
use crate::memory::{GuestMemory, RegionSpec};

/// Bytes of a frame's header before `num_buffers`, and of `num_buffers`.
const NUM_BUFFERS: (u64, u64) = (10, 2);

/// Maps the log of SET_LOG_BASE, whose byte 0 is then at guest address 0 of the returned memory.
///
/// # Errors
///
/// Returns what a log for guest addresses below `end` should have.
pub(super) fn map(
    body: &[u8],
    file: Option<OwnedFd>,
    end: u64,
    fault: Option<Fault>,
) -> Result<Option<GuestMemory>, &'static str> {
    let Ok(body): Result<[u8; 16], _> = body.try_into() else { return Err("size and offset of a log") };
    let (size, offset) = ((u128::from_le_bytes(body)) as u64, (u128::from_le_bytes(body) >> 64) as u64);
    let Some(file) = file else {
        return if fault == Some(Fault::LogNoFile) { Ok(None) } else { Err("the descriptor of a log") };
    };
    if u128::from(size) * 8 * u128::from(PAGE) < u128::from(end) && fault != Some(Fault::LogTooSmall) {
        return Err("a log of all guest memory");
    }
    let len = rustix::fs::fstat(&file).map_or(0, |stat| stat.st_size as u64);
    if offset.checked_add(size).is_none_or(|end| end > len) {
        return if fault == Some(Fault::LogBeyondFile) { Ok(None) } else { Err("a log inside its file") };
    }
    let offset = if fault == Some(Fault::LogOffset) { 0 } else { offset };
    let region = RegionSpec { guest: 0, size, user: 0, offset };
    GuestMemory::map(vec![(region, file)]).map(Some).map_err(|_| "a log that can be mapped")
}

/// The marks of a back-end.
#[derive(Clone, Debug)]
pub(super) struct Dirty {
    /// The log, while writes are logged.
    pub(super) log: Option<GuestMemory>,
    pub(super) fault: Option<Fault>,
}

impl Dirty {
    /// Marks the pages that `len` bytes at a guest address are in. A page beyond the log has no bit.
    pub(super) fn mark(&self, at: u64, len: u64) {
        let Some(log) = &self.log else { return };
        let off = u64::from(self.fault == Some(Fault::LogNextPage));
        for page in pages(at, len).map(|page| page + off) {
            log.set_bits(page / 8, 1 << (page % 8));
        }
    }

    /// Marks the first `len` bytes of a receive chain, which is the first of its frame or a further one.
    pub(super) fn mark_received(&self, chain: &Chain, len: usize, first: bool) {
        if self.fault == Some(Fault::LogFirstBuffer) && !first {
            return;
        }
        let mut done = 0;
        for part in chain.parts.iter().filter(|part| part.write) {
            let count = u64::from(part.len).min(len as u64 - done);
            for (from, to) in self.noticed(done, done + count, first) {
                self.mark(part.addr + from - done, to - from);
            }
            done += count;
        }
    }

    /// Returns the pieces of bytes `from` to `to` of a chain that the back-end marks: all, without a fault.
    fn noticed(&self, from: u64, to: u64, first: bool) -> Vec<(u64, u64)> {
        let (begin, end) = (NUM_BUFFERS.0, NUM_BUFFERS.0 + NUM_BUFFERS.1);
        let pieces = match self.fault {
            Some(Fault::LogNoPayload) if first => vec![(from, to.min(end))],
            Some(Fault::LogNoNumBuffers) if first => vec![(from, to.min(begin)), (from.max(end), to)],
            _ => vec![(from, to)],
        };
        pieces.into_iter().filter(|(from, to)| from < to).collect()
    }

    /// Marks the answer of a control queue.
    pub(super) fn mark_answer(&self, chain: &Chain, len: usize) {
        if self.fault != Some(Fault::LogNoAnswer) {
            self.mark_received(chain, len, true);
        }
    }

    /// Marks written ranges (offset, length) of a used ring of `size` entries that is logged at `at`.
    pub(super) fn mark_used(&self, at: u64, size: u16, written: &[(u64, u64)]) {
        let event = 4 + 8 * u64::from(size);
        for (offset, len) in written {
            let forgotten = match self.fault {
                Some(Fault::LogNoElements) => (4..event).contains(offset),
                Some(Fault::LogNoIndex) => *offset < 4,
                Some(Fault::LogNoEvent) => *offset == event,
                _ => false,
            };
            if !forgotten {
                self.mark(at.wrapping_add(*offset), *len);
            }
        }
    }
}
