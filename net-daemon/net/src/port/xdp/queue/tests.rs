//! Queues whose rings are memfds, and whose kernel is the test: what a process that dies at a given line
//! leaves to the next one.

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::net::xdp::XdpRingOffset;

use super::super::ring::Ring;
use super::*;

const AT: XdpRingOffset = XdpRingOffset { producer: 0, consumer: 64, desc: 192, flags: Some(128) };
const FRAME: usize = 60;

/// The descriptors of a queue.
struct Kernel([OwnedFd; 4], OwnedFd);

impl Kernel {
    fn new() -> Kernel {
        let file = |bytes: u64| {
            let file = memfd_create("ring", MemfdFlags::CLOEXEC).unwrap();
            ftruncate(&file, bytes).unwrap();
            file
        };
        let umem = Umem::new(0, 1522).unwrap().file().unwrap().try_clone().unwrap();
        let kernel = Kernel([(); 4].map(|()| file(1 << 16)), umem.into());
        kernel.process().fill_up();
        kernel
    }

    fn rings(&self) -> Rings {
        let map = |file: &OwnedFd, size, entry| Ring::map(file, 0, AT, size, entry).unwrap();
        let [rx, tx, fill, done] = &self.0;
        Rings { rx: map(rx, RX, 16), tx: map(tx, TX, 16), fill: map(fill, RX, 8), done: map(done, TX, 8) }
    }

    /// Returns a queue as another process has it, before it continues.
    fn process(&self) -> XdpQueue {
        let rings = self.rings();
        XdpQueue {
            // No calls are made: the flags say that the kernel looks by itself, as drivers without copies do.
            socket: Numbered::fresh(self.0[0].try_clone().unwrap()),
            umem: Umem::open(self.1.try_clone().unwrap()).unwrap(),
            umem_id: FdId::fresh(),
            received: AtomicU32::new(rings.rx.consumed()),
            sent: AtomicU32::new(rings.tx.produced()),
            rings: Some(rings),
            refuses: AtomicI32::new(0),
            too_long: AtomicBool::new(false),
            timer: Timer::new().unwrap(),
        }
    }

    /// The next process, after the last one has died.
    fn next(&self) -> XdpQueue {
        let queue = self.process();
        queue.resume();
        queue
    }

    /// Puts a frame of `fill` into the receive ring, in the next chunk of the fill ring.
    fn receives(&self, queue: &XdpQueue, fill: u8) {
        let rings = self.rings();
        let (from, to) = (rings.fill.consumed(), rings.rx.produced());
        assert_ne!(from, rings.fill.produced(), "a chunk");
        let address = rings.fill.address(from) + 256;
        write_parts(&[queue.umem.part(address, FRAME as u32)], 0, &[fill; FRAME]);
        rings.fill.consume(from.wrapping_add(1));
        rings.rx.set_descriptor(to, address, FRAME as u32);
        rings.rx.produce(to.wrapping_add(1));
    }

    /// Takes all frames to send, and returns the first byte of each.
    fn takes(&self, queue: &XdpQueue) -> Vec<u8> {
        let rings = self.rings();
        let frames = rings.tx.consumed()..rings.tx.produced();
        rings.tx.consume(frames.end);
        frames.map(|position| first(queue.umem.part(rings.tx.descriptor(position).0, 1))).collect()
    }

    /// Gives the chunk at this position of the transmit ring back.
    fn gives_back(&self, queue: &XdpQueue, position: u32) {
        let done = self.rings().done;
        done.set_address(done.produced(), queue.umem.tx_address(position));
        done.produce(done.produced().wrapping_add(1));
    }
}

fn first(part: IoPart<'_>) -> u8 {
    let mut byte = [0];
    volt_virtio::part::copy_out(&[part], &mut byte);
    byte[0]
}

fn got(queue: &XdpQueue) -> Option<u8> {
    let mut frame = [0xee; HEADER_LEN + FRAME];
    let (head, rest) = frame.split_at_mut(20);
    let len = queue.recv(&[IoPart::from_slice(head), IoPart::from_slice(rest)]).ok()?;
    assert_eq!((len, &frame[..HEADER_LEN]), (frame.len(), &[0; HEADER_LEN][..]));
    assert!(frame[HEADER_LEN..].iter().all(|byte| *byte == frame[HEADER_LEN]));
    Some(frame[HEADER_LEN])
}

fn send(queue: &XdpQueue, fill: u8) -> io::Result<usize> {
    let mut frame = [fill; HEADER_LEN + FRAME];
    frame[..HEADER_LEN].fill(0);
    queue.send(&[IoPart::from_slice(&mut frame)])
}

/// No chunk is lost, and none is in the fill ring twice, whenever the process dies.
#[test]
fn every_chunk_is_somewhere_once() {
    let kernel = Kernel::new();
    let mut queue = kernel.next();
    let mut number = 0;
    // Several times around the rings.
    for round in 0..400_u32 {
        for _ in 0..10 {
            kernel.receives(&queue, number);
            assert_eq!(got(&queue), Some(number));
            number = number.wrapping_add(1);
        }
        match round % 4 {
            0 => queue.release(),
            // Before the release: the frames come again.
            1 => {
                queue = kernel.next();
                assert_eq!(got(&queue), Some(number.wrapping_sub(10)));
                while got(&queue).is_some() {}
                queue.release();
            }
            // After the chunks went to the fill ring, and before the entries were given back.
            2 => {
                let rings = kernel.rings();
                let before = rings.rx.consumed();
                queue.release();
                rings.rx.consume(before);
                queue = kernel.next();
                assert_eq!((got(&queue), rings.rx.consumed()), (None, before.wrapping_add(10)));
            }
            _ => queue.release(),
        }
        let fill = kernel.rings().fill;
        let mut there: Vec<u64> = (0..RX).map(|at| fill.address(fill.consumed().wrapping_add(at))).collect();
        there.sort_unstable();
        there.dedup();
        assert_eq!((there.len(), fill.produced() - fill.consumed()), (RX as usize, RX), "round {round}");
    }
}

/// What was not published is sent by the next process, in the same chunks. What was is not sent again.
#[test]
fn a_batch_is_published_or_is_not() {
    let kernel = Kernel::new();
    let queue = kernel.next();
    send(&queue, 1).unwrap();
    queue.flush().unwrap();
    assert_eq!(kernel.takes(&queue), [1]);
    // Dies before the batch is published.
    send(&queue, 2).unwrap();
    let queue = kernel.next();
    send(&queue, 3).unwrap();
    // Dies after the kernel's chunks are noted, and before they are published.
    queue.umem.give(1, 2);
    assert!(queue.umem.is_with_kernel(1));
    let queue = kernel.next();
    assert!(!queue.umem.is_with_kernel(1) && queue.umem.is_with_kernel(0));
    send(&queue, 4).unwrap();
    queue.flush().unwrap();
    assert_eq!(kernel.takes(&queue), [4]);
    assert!(kernel.takes(&kernel.next()).is_empty());
}

/// A chunk is used again only after the kernel has given back this one, in whatever order.
#[test]
fn a_chunk_waits_for_the_kernel() {
    let kernel = Kernel::new();
    let queue = kernel.next();
    for number in 0..TX {
        send(&queue, number as u8).unwrap();
    }
    assert_eq!(send(&queue, 0).unwrap_err().kind(), io::ErrorKind::WouldBlock, "full: it is passed on");
    assert_eq!(kernel.takes(&queue).len(), TX as usize);
    kernel.gives_back(&queue, 1);
    assert_eq!(send(&queue, 9).unwrap_err().kind(), io::ErrorKind::WouldBlock, "its chunk is not back");
    kernel.gives_back(&queue, 0);
    // Dies after the bits were cleared, and before the entries were given back.
    queue.umem.has_back(queue.umem.tx_address(0));
    let queue = kernel.next();
    let done = kernel.rings().done;
    assert_eq!(done.consumed(), done.produced(), "no old entry frees a chunk later");
    send(&queue, 9).unwrap();
    send(&queue, 9).unwrap();
    assert_eq!(send(&queue, 9).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    assert_eq!(kernel.takes(&queue), [9, 9]);
}
