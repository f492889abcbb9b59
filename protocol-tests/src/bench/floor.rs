//! The floor: bare loops of the system calls that a frame needs at least, on a TAP like the back-end's.
//!
//! Two shapes. *Same*: the iovecs that a daemon makes of the case's chains. *Best*: one contiguous buffer.
//! Both touch as much memory as the case's ring has buffers.
#![expect(unsafe_code, reason = "readv and writev in loops with nothing around them")]

use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use crate::bench::case::{Case, Direction, FLOWS, MTU};
use crate::bench::host::{FarEnd, QUEUE_LEN, add_tap, open_tap};
use crate::bench::{BenchError, pin};
use crate::memory::GuestMemory;
use crate::netns::Netns;

/// Name of the floor's TAP.
pub const TAP: &str = "floor0";

/// The shape of the calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Like a daemon that leaves the guest's buffers in place.
    Same,
    /// One buffer of any length.
    Best,
}

/// The TAP of the bare loops.
#[derive(Debug)]
pub struct Floor {
    netns: Netns,
    far: FarEnd,
    // Keeps the interface's carrier.
    _tap: OwnedFd,
    cpu: usize,
}

impl Floor {
    /// Makes a TAP in a separate namespace; loops run on processor `cpu`.
    pub fn new(cpu: usize) -> Result<Floor, BenchError> {
        let netns = Netns::new()?;
        add_tap(&netns, TAP, false)?;
        let tap = open_tap(&netns, TAP, false, true)?;
        netns.wait_until_up(TAP, super::card::LIMIT)?;
        let far = FarEnd::open(&netns, TAP, 0)?;
        Ok(Floor { netns, far, _tap: tap, cpu })
    }

    /// Returns another far end, which receives `ethertype`.
    pub fn far_end(&self, ethertype: u16) -> Result<FarEnd, BenchError> {
        FarEnd::open(&self.netns, TAP, ethertype)
    }

    /// The TAP.
    pub fn tap(&self) -> &OwnedFd {
        &self._tap
    }

    /// Returns the CPU time per frame of `frames` frames of `case`.
    pub fn measure(&self, case: &Case, shape: Shape, frames: usize) -> Result<Duration, BenchError> {
        let parts = iovec_lens(case, shape);
        let mut buffers = Buffers::new(case, &parts)?;
        let mut total = Duration::ZERO;
        let mut done = 0;
        while done < frames {
            let now = (frames - done).min(QUEUE_LEN / 2).min((64 << 20) / case.size);
            if case.direction == Direction::Rx {
                self.far.burst(case, now)?;
            }
            total += std::thread::scope(|scope| {
                let work = || self.run(&mut buffers, case.direction, now);
                let result = scope.spawn(work).join();
                result.map_err(|_| BenchError::Wrong("the floor's loop panicked".to_owned()))?
            })?;
            done += now;
        }
        Ok(total / frames as u32)
    }

    fn run(&self, buffers: &mut Buffers, direction: Direction, count: usize) -> Result<Duration, BenchError> {
        pin(self.cpu)?;
        let fd = self._tap.as_raw_fd();
        let start = thread_time();
        for number in 0..count {
            let parts = buffers.frame(number);
            // SAFETY: the parts lie in `buffers`, which is borrowed exclusively.
            let done = unsafe {
                match (direction, parts) {
                    (Direction::Tx, [one]) => libc::write(fd, one.iov_base, one.iov_len),
                    (Direction::Tx, many) => libc::writev(fd, many.as_ptr(), many.len() as i32),
                    (Direction::Rx, [one]) => libc::read(fd, one.iov_base, one.iov_len),
                    (Direction::Rx, many) => libc::readv(fd, many.as_ptr(), many.len() as i32),
                }
            };
            if done < 0 {
                return Err(std::io::Error::last_os_error().into());
            }
        }
        Ok(thread_time() - start)
    }
}

/// Lengths of the iovecs for one frame. A receiver cannot know the length of the next frame, so room for the
/// longest one follows the guest's buffers.
fn iovec_lens(case: &Case, shape: Shape) -> Vec<usize> {
    let whole = crate::frame::NET_HEADER_LEN + case.size;
    match (shape, case.direction) {
        (Shape::Best, Direction::Tx) => vec![whole],
        (Shape::Best, Direction::Rx) => vec![whole.max(if case.size > MTU { 65_600 } else { 2048 })],
        (Shape::Same, Direction::Tx) => case.parts(),
        (Shape::Same, Direction::Rx) => {
            let mut parts = case.parts().repeat(case.chains_per_frame());
            parts.push(65_600);
            parts
        }
    }
}

/// One set of buffers for each frame of the ring.
struct Buffers {
    // Owns the memory of the vectors.
    _bytes: GuestMemory,
    vectors: Vec<libc::iovec>,
    per_frame: usize,
}

// SAFETY: the vectors point into the mapping that `_bytes` keeps.
unsafe impl Send for Buffers {}

impl Buffers {
    fn new(case: &Case, parts: &[usize]) -> Result<Buffers, BenchError> {
        let sets = usize::from(case.ring) / case.chains_per_frame();
        let spill = usize::from(parts.len() > 1 && case.direction == Direction::Rx);
        let (own, shared) = parts.split_at(parts.len() - spill);
        let stride: usize = own.iter().map(|len| (len + 64).next_multiple_of(64)).sum();
        // The same kind of memory as a guest's: the kernel copies a file's pages and its own at different
        // speeds.
        let bytes = GuestMemory::flat(0, (stride * sets + 65_600) as u64)?;
        let place = |at: usize, len: usize| {
            let outside = || BenchError::Wrong("a buffer outside memory".to_owned());
            bytes
                .pointer(at as u64, len)
                .ok_or_else(outside)
                .map(|pointer| libc::iovec { iov_base: pointer.as_ptr().cast(), iov_len: len })
        };
        let mut vectors = Vec::new();
        for set in 0..sets {
            let frame = [&case.header().encode()[..], &case.frame(set % FLOWS)].concat();
            let (mut at, mut done) = (set * stride, 0);
            for len in own {
                let end = frame.len().min(done + len);
                bytes.write(at as u64, &frame[done..end]);
                vectors.push(place(at, *len)?);
                (at, done) = (at + (len + 64).next_multiple_of(64), end);
            }
            // All sets end with one shared buffer.
            for len in shared {
                vectors.push(place(stride * sets, *len)?);
            }
        }
        Ok(Buffers { _bytes: bytes, vectors, per_frame: parts.len() })
    }

    #[inline(always)]
    fn frame(&self, number: usize) -> &[libc::iovec] {
        let sets = self.vectors.len() / self.per_frame;
        let at = number % sets * self.per_frame;
        &self.vectors[at..at + self.per_frame]
    }
}

/// Returns the processor time of this thread.
pub fn thread_time() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}
