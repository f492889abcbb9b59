//! The floor of AF_XDP: a bare loop that copies each frame once, in batches, and nothing else.
//!
//! It is a program of its own (`volt-bench xdp-loop`), which `volt-netd xdp-helper` starts with the
//! descriptors of an interface. It reads orders from standard input, a line each, and answers each with the
//! nanoseconds of processor time that it took:
//! ```text
//! tx SIZE COUNT    sends so many frames
//! rx COUNT         takes so many frames, which have arrived
//! ```
#![expect(unsafe_code, reason = "rings shared with the kernel, in loops with nothing around them")]

use std::io::{self, BufRead, Write};
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU32, AtomicU64};

use rustix::event::epoll;
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap};
use rustix::net::SendFlags;
use rustix::net::sockopt::xdp_mmap_offsets;
use rustix::net::xdp::XdpRingOffset;

use crate::bench::BenchError;
use crate::bench::case::{Case, Direction, FLOWS, plan};
use crate::bench::floor::thread_time;
use crate::memory::GuestMemory;

/// Entries of the rings, and chunks, of `volt-netd xdp-helper`: to receive, and to send.
const RX: u32 = 1024;
const TX: u32 = 2048;
/// The chunks begin at the memory's second page. The first one has the size of a chunk as its third word.
const PAGE: usize = 4096;
/// Frames of a batch, as many as volt-netd's.
const BATCH: u32 = 64;
/// Frames in the memory of the loop, as many as in a ring of 256 entries.
const FRAMES: usize = 256;
const ROOM: usize = 2048;

/// Options of the loop.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Descriptors of the socket, its memory, and the program's attachment
    #[arg(long, value_name = "SOCKET:UMEM:LINK")]
    xsk_fd: String,
    /// Processor of the loop
    #[arg(long, default_value_t = 1)]
    cpu: usize,
}

/// A mapped ring.
struct Ring {
    base: *mut u8,
    at: XdpRingOffset,
    mask: u32,
}

impl Ring {
    fn map(
        socket: BorrowedFd<'_>,
        place: u64,
        at: XdpRingOffset,
        size: u32,
        entry: usize,
    ) -> io::Result<Ring> {
        let len = at.desc as usize + size as usize * entry;
        // SAFETY: a new mapping at an address that the kernel chooses.
        let base = unsafe { map(socket, len, place)? };
        Ok(Ring { base, at, mask: size - 1 })
    }

    fn word(&self, offset: u64) -> &AtomicU32 {
        // SAFETY: the kernel's offset of a word in the mapping, which is never unmapped.
        unsafe { AtomicU32::from_ptr(self.base.add(offset as usize).cast()) }
    }

    fn entry(&self, position: u32, len: usize) -> &AtomicU64 {
        let offset = self.at.desc as usize + (position & self.mask) as usize * len;
        // SAFETY: an entry in the mapping, which is never unmapped.
        unsafe { AtomicU64::from_ptr(self.base.add(offset).cast()) }
    }

    fn descriptor(&self, position: u32) -> (&AtomicU64, &AtomicU64) {
        let first = self.entry(position, 16);
        // SAFETY: the second half of the same entry.
        (first, unsafe { AtomicU64::from_ptr(first.as_ptr().add(1)) })
    }
}

unsafe fn map(fd: BorrowedFd<'_>, len: usize, place: u64) -> io::Result<*mut u8> {
    let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
    // SAFETY: as for this function.
    Ok(unsafe { mmap(std::ptr::null_mut(), len, protection, flags, fd, place)? }.cast())
}

/// The socket with everything mapped.
struct Bare {
    socket: BorrowedFd<'static>,
    /// Waits for frames, as every program that receives must. The kernel looks at it for each frame that was
    /// sent, which takes it 100 ns.
    _waits: OwnedFd,
    chunks: *mut u8,
    chunk: usize,
    rx: Ring,
    tx: Ring,
    fill: Ring,
    done: Ring,
    /// The frames' memory, and its start. Of the same kind as a guest's: copies of a file's pages have
    /// another speed.
    memory: GuestMemory,
    frames: *mut u8,
}

impl Bare {
    fn new(numbers: &str) -> Result<Bare, BenchError> {
        let numbers: Vec<RawFd> = numbers.split(':').filter_map(|number| number.parse().ok()).collect();
        let [socket, memory, _] = *numbers else {
            return Err(BenchError::Wrong("--xsk-fd is not SOCKET:UMEM:LINK".to_owned()));
        };
        // SAFETY: inherited descriptors, which nothing in this program closes.
        let (socket, memory) = unsafe { (BorrowedFd::borrow_raw(socket), BorrowedFd::borrow_raw(memory)) };
        let len = rustix::fs::fstat(memory)?.st_size as usize;
        // SAFETY: a new mapping at an address that the kernel chooses.
        let base = unsafe { map(memory, len, 0)? };
        // SAFETY: the third word of the first page.
        let chunk = unsafe { base.add(16).cast::<u64>().read() } as usize;
        let at = xdp_mmap_offsets(socket)?;
        let waits = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let edge = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&waits, socket, epoll::EventData::new_u64(0), edge)?;
        let memory = GuestMemory::flat(0, (FRAMES * ROOM) as u64)?;
        let frames = memory.pointer(0, FRAMES * ROOM).expect("the memory just made").as_ptr();
        Ok(Bare {
            socket,
            _waits: waits,
            // SAFETY: the second page of the mapping.
            chunks: unsafe { base.add(PAGE) },
            chunk,
            rx: Ring::map(socket, 0, at.rx, RX, 16)?,
            tx: Ring::map(socket, 0x8000_0000, at.tx, TX, 16)?,
            fill: Ring::map(socket, 0x1_0000_0000, at.fr, RX, 8)?,
            done: Ring::map(socket, 0x1_8000_0000, at.cr, TX, 8)?,
            memory,
            frames: frames.cast(),
        })
    }

    /// Writes the frames to send.
    fn prepare(&self, size: usize) {
        let case = Case { direction: Direction::Tx, size, ..plan()[0] };
        for number in 0..FRAMES {
            self.memory.write((number * ROOM) as u64, &case.frame(number % FLOWS));
        }
    }

    fn send(&self, size: usize, count: u32) -> Result<(), Errno> {
        let (mut sent, end) = (self.tx.word(self.tx.at.producer).load(Relaxed), count);
        let mut left = end;
        while left > 0 {
            let now = left.min(BATCH);
            self.wait_for_chunks(sent, now);
            for _ in 0..now {
                let frame = sent as usize % FRAMES * ROOM;
                let address = (RX + sent % TX) as usize * self.chunk;
                // SAFETY: `size` bytes of a frame's room, and of a chunk that the kernel has given back.
                unsafe {
                    let to = self.chunks.add(address);
                    std::ptr::copy_nonoverlapping(self.frames.add(frame), to, size);
                }
                let (first, second) = self.tx.descriptor(sent);
                first.store(address as u64, Relaxed);
                second.store(size as u64, Relaxed);
                sent = sent.wrapping_add(1);
            }
            self.tx.word(self.tx.at.producer).store(sent, Release);
            while self.tx.word(self.tx.at.consumer).load(Acquire) != sent {
                match rustix::net::send(self.socket, &[], SendFlags::DONTWAIT) {
                    Ok(_) | Err(Errno::AGAIN | Errno::BUSY | Errno::NOBUFS) => {}
                    Err(errno) => return Err(errno),
                }
            }
            left -= now;
        }
        Ok(())
    }

    /// Waits until the kernel has given back enough chunks.
    fn wait_for_chunks(&self, sent: u32, now: u32) {
        let (produced, consumed) = (self.done.at.producer, self.done.at.consumer);
        loop {
            let back = self.done.word(produced).load(Acquire);
            self.done.word(consumed).store(back, Release);
            if sent.wrapping_sub(back) <= TX - now {
                return;
            }
        }
    }

    fn receive(&self, count: u32) {
        let mut taken = self.rx.word(self.rx.at.consumer).load(Relaxed);
        let mut left = count;
        while left > 0 {
            let there = self.rx.word(self.rx.at.producer).load(Acquire).wrapping_sub(taken);
            let now = there.min(BATCH).min(left);
            let mut filled = self.fill.word(self.fill.at.producer).load(Relaxed);
            for _ in 0..now {
                let (first, second) = self.rx.descriptor(taken);
                let (address, len) = (first.load(Relaxed), second.load(Relaxed) as u32 as usize);
                let room = taken as usize % FRAMES * ROOM;
                // SAFETY: a frame in its chunk, which the kernel does not touch until it has it back, and as
                // many bytes of room.
                unsafe {
                    let from = self.chunks.add(address as usize);
                    let to = self.frames.add(room);
                    std::ptr::copy_nonoverlapping(from, to, len.min(ROOM));
                }
                self.fill.entry(filled, 8).store(address & !(self.chunk as u64 - 1), Relaxed);
                (taken, filled) = (taken.wrapping_add(1), filled.wrapping_add(1));
            }
            self.fill.word(self.fill.at.producer).store(filled, Release);
            self.rx.word(self.rx.at.consumer).store(taken, Release);
            left -= now;
        }
    }
}

/// Serves orders until standard input ends.
///
/// # Errors
///
/// The descriptors are something else, or the kernel refuses a frame.
pub fn run(options: &Options) -> Result<(), BenchError> {
    crate::bench::pin(options.cpu)?;
    let bare = Bare::new(&options.xsk_fd)?;
    for line in io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split(' ').collect();
        let number = |at: usize| words.get(at).and_then(|word| word.parse::<u32>().ok());
        let took = match (words[0], number(1), number(2)) {
            ("tx", Some(size), Some(count)) => {
                bare.prepare(size as usize);
                let start = thread_time();
                bare.send(size as usize, count)?;
                thread_time() - start
            }
            ("rx", Some(count), None) => {
                let start = thread_time();
                bare.receive(count);
                thread_time() - start
            }
            _ => return Err(BenchError::Wrong(format!("an order like tx SIZE COUNT, not '{line}'"))),
        };
        writeln!(io::stdout(), "{}", took.as_nanos())?;
    }
    Ok(())
}
