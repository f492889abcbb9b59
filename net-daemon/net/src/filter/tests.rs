//! Tests of the filter's queue between a driver and a socket pair.

use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Mutex;

use volt_filter::Way;
use volt_filter::reason::Reason;
use volt_filter::setup::FLOWS;
use volt_filter::verdict::JUDGED;
use volt_virtio::features::Features;
use volt_virtio::part::{IoPart, read_parts, write_parts};
use volt_virtio::testing::{BUFFERS, Driver};

use super::*;
use crate::batch::{BATCH, Turn};
use crate::capture::ring::{Captured, Fate, readers};
use crate::capture::{Capture, CaptureOptions};
use crate::counters::{CounterMemory, PairCounters};
use crate::port::inject::Injector;
use crate::port::{ETHERNET_LEN, FILTERED, HEADER_LEN, MAX_FRAME_LEN, PortQueue};
use crate::rx::Rx;
use crate::testing::{Rig, frame};
use crate::tx::Tx;

mod device;

const MAC: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];
const PEER: [u8; 6] = [0x52, 0x54, 0, 9, 9, 9];

fn setup() -> Setup {
    let addresses = vec![Ipv4Addr::new(192, 0, 2, 10).into()];
    Setup { mac: MAC, addresses, learn: None, flows: FLOWS, policy: None }
}

/// Returns a frame of `len` bytes after its header: a UDP datagram from this address. Its payload differs for
/// each `seed`.
fn udp(from: [u8; 6], len: usize, seed: usize) -> Vec<u8> {
    let to = if from == MAC { PEER } else { MAC };
    let hosts = if from == MAC { [10, 1] } else { [1, 10] };
    let packet = u16::try_from(len - ETHERNET_LEN).unwrap();
    let mut ip = [0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 192, 0, 2, hosts[0], 192, 0, 2, hosts[1]];
    ip[2..4].copy_from_slice(&packet.to_be_bytes());
    let sum: u32 = ip.as_chunks().0.iter().map(|word| u32::from(u16::from_be_bytes(*word))).sum();
    ip[10..12].copy_from_slice(&(!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes());
    let datagram = [0x80, 0, 0x80, 1].into_iter().chain((packet - 20).to_be_bytes()).chain([0; 2]);
    let headers = to.into_iter().chain(from).chain([0x08, 0]).chain(ip).chain(datagram);
    let mut bytes = frame(len, seed);
    bytes[HEADER_LEN..].iter_mut().zip(headers).for_each(|(byte, header)| *byte = header);
    bytes
}

fn counters() -> PairCounters {
    CounterMemory::new(1).unwrap().pair(0)
}

/// A queue pair with a filter.
struct Guarded {
    /// Its counters are those of the pair without a filter.
    rig: Rig,
    filtered: PairCounters,
    wire: crate::testing::Wire,
    filter: DeviceFilter,
    queue: Arc<dyn PortQueue>,
}

impl Guarded {
    fn new() -> Guarded {
        let (rig, wire) = Rig::new();
        let filter = DeviceFilter::new(setup()).unwrap();
        let filtered = counters();
        let queue = Arc::new(FilterQueue::new(&filter, rig.queue.clone(), filtered.clone(), None, None));
        Guarded { rig, filtered, wire, filter, queue }
    }

    fn tx(&mut self, tx: &mut Tx) -> Turn {
        tx.run(&*self.queue, &mut self.rig.health, &self.rig.counters).unwrap()
    }

    fn rx(&mut self, rx: &mut Rx) -> Turn {
        rx.run(&*self.queue, &mut self.rig.health, &self.rig.counters).unwrap()
    }

    fn sent(&self) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| self.wire.receive()).collect()
    }

    fn counts(&self) -> [u64; 4] {
        let (passed, refused) = (&self.rig.counters, &self.filtered);
        [&passed.tx_frames, &refused.tx_filtered, &passed.rx_frames, &refused.rx_filtered]
            .map(|counter| counter.get())
    }
}

fn tx(driver: &Driver) -> Tx {
    Tx::new(Rig::vring(driver, 1), false)
}

#[test]
fn refused_frames_come_back_and_the_batch_goes_on() {
    let mut pair = Guarded::new();
    let mut driver = Driver::new(16, Features::empty());
    for (number, from) in [MAC, PEER, PEER, MAC].into_iter().enumerate() {
        let at = BUFFERS + number as u64 * 0x1000;
        driver.write(at, &udp(from, 60, number));
        driver.add(&[(at, 72, false)]);
    }
    let mut tx = tx(&driver);
    assert_eq!(pair.tx(&mut tx), Turn::Idle);
    assert_eq!(driver.take_used(), [(0, 0), (1, 0), (2, 0), (3, 0)]);
    assert_eq!(pair.sent(), [udp(MAC, 60, 0), udp(MAC, 60, 3)]);
    assert_eq!(pair.counts(), [2, 2, 0, 0]);
    let refused: Vec<_> = pair.filter.filter().refused().filter(|(_, _, count)| *count > 0).collect();
    assert_eq!(refused, [(Way::Out, Reason::SourceMac, 2)]);
    let listed = pair.filter.log().entries();
    assert_eq!((listed.len(), listed[0].count, listed[0].subject.reason), (1, 2, Reason::SourceMac));
}

/// Whatever the shape of a chain, the frame arrives as a whole, with a rest of any number of parts.
#[test]
fn the_rest_follows_what_was_judged() {
    let mut pair = Guarded::new();
    for (len, parts) in [(1500, 3), (JUDGED - HEADER_LEN, 1), (2037, 1), (9000, 1), (9000, 20), (60_000, 200)]
    {
        let mut driver = Driver::new(256, Features::empty());
        let bytes = udp(MAC, len, parts);
        driver.write(BUFFERS, &bytes);
        let each = bytes.len().div_ceil(parts);
        let piece = |at: usize| (BUFFERS + at as u64, each.min(bytes.len() - at) as u32, false);
        driver.add(&(0..bytes.len()).step_by(each).map(piece).collect::<Vec<_>>());
        pair.tx(&mut tx(&driver));
        assert!(pair.sent() == [bytes], "{len} bytes in {parts} parts");
    }
    // The longest packet, in more parts than are passed on.
    let port = Arc::new(Recorder::default());
    let queue = FilterQueue::new(&pair.filter, port.clone(), counters(), None, None);
    let mut bytes = udp(MAC, ETHERNET_LEN + 65_535, 9);
    let expected = bytes.clone();
    let parts: Vec<_> = bytes.chunks_mut(100).map(IoPart::from_slice).collect();
    assert_eq!(queue.send(&parts).unwrap(), expected.len());
    assert!(port.0.lock().unwrap().pop() == Some((2, expected)));
}

/// Keeps the number of parts and the bytes of frames.
#[derive(Debug)]
struct Recorder(Mutex<Vec<(usize, Vec<u8>)>>, std::fs::File);

impl Default for Recorder {
    fn default() -> Recorder {
        Recorder(Mutex::default(), std::fs::File::open("/dev/null").unwrap())
    }
}

impl AsFd for Recorder {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.1.as_fd()
    }
}

impl PortQueue for Recorder {
    fn send(&self, parts: &[IoPart<'_>]) -> std::io::Result<usize> {
        let mut bytes = vec![0; parts.iter().map(|part| part.len()).sum()];
        read_parts(parts, &mut bytes);
        self.0.lock().unwrap().push((parts.len(), bytes));
        Ok(self.0.lock().unwrap()[0].1.len())
    }

    fn recv(&self, parts: &[IoPart<'_>]) -> std::io::Result<usize> {
        let Some((_, bytes)) = self.0.lock().unwrap().pop() else {
            return Err(std::io::ErrorKind::WouldBlock.into());
        };
        write_parts(parts, 0, &bytes);
        Ok(bytes.len())
    }
}

/// A port whose frames change in the guest's memory while they are sent.
#[derive(Debug)]
struct Changing {
    port: Recorder,
    guest: Mutex<*mut u8>,
}

#[expect(unsafe_code, reason = "plays a guest that changes its memory")]
mod changing {
    // SAFETY: the pointer is used by the thread of the test alone.
    unsafe impl Send for super::Changing {}
    // SAFETY: the same.
    unsafe impl Sync for super::Changing {}

    impl super::Changing {
        /// Overwrites the guest's first bytes.
        pub(super) fn change(&self) {
            // SAFETY: the test keeps so many bytes there.
            unsafe { self.guest.lock().unwrap().write_bytes(0xee, super::JUDGED) };
        }
    }
}

impl AsFd for Changing {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.port.as_fd()
    }
}

impl PortQueue for Changing {
    fn send(&self, parts: &[IoPart<'_>]) -> std::io::Result<usize> {
        self.change();
        self.port.send(parts)
    }

    fn recv(&self, parts: &[IoPart<'_>]) -> std::io::Result<usize> {
        self.port.recv(parts)
    }
}

#[test]
fn what_was_judged_is_sent_although_the_guest_changes_it() {
    for len in [60, 5000] {
        let filter = DeviceFilter::new(setup()).unwrap();
        let expected = udp(MAC, len, 1);
        let mut guest = expected.clone();
        guest.resize(MAX_FRAME_LEN, 0);
        let port = Arc::new(Changing { port: Recorder::default(), guest: Mutex::new(guest.as_mut_ptr()) });
        let queue = FilterQueue::new(&filter, port.clone(), counters(), None, None);
        let sent = queue.send(&[IoPart::from_slice(&mut guest[..HEADER_LEN + len])]).unwrap();
        assert_eq!(sent, HEADER_LEN + len);
        assert!(port.port.0.lock().unwrap().pop().unwrap().1 == expected, "{len}");
        assert!(guest[..60].iter().all(|byte| *byte == 0xee), "the guest's memory has changed");
    }
}

#[test]
fn frames_of_every_length_are_delivered() {
    let mut pair = Guarded::new();
    let mut driver = Driver::new(64, Features::NET_MRG_RXBUF);
    for number in 0..60 {
        driver.add(&[(BUFFERS + number * 0x1000, 0x1000, true)]);
    }
    let mut rx = Rx::new(Rig::vring(&driver, 0), Features::NET_MRG_RXBUF);
    let mut next = 0;
    for (len, buffers) in [(60, 1), (5000, 2), (65_000, 16), (60, 1)] {
        let bytes = udp(PEER, len, buffers);
        pair.wire.send(&bytes);
        pair.rx(&mut rx);
        let used = driver.take_used();
        assert_eq!(used.len(), buffers);
        let read = |(number, (_, len)): (usize, &(u32, u32))| {
            driver.read_vec(BUFFERS + (next + number as u64) * 0x1000, *len as usize)
        };
        let mut got: Vec<u8> = used.iter().enumerate().flat_map(read).collect();
        got[10..12].fill(0);
        assert!(got == bytes, "{len}");
        next += buffers as u64;
    }
    assert_eq!(pair.counts(), [0, 0, 4, 0]);
}

/// Refuses every frame to the guest: those of a filter that judges by the source address, seen from the port.
#[derive(Debug)]
struct Reversed(FilterQueue);

impl AsFd for Reversed {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl PortQueue for Reversed {
    fn send(&self, parts: &[IoPart<'_>]) -> std::io::Result<usize> {
        self.0.send(parts)
    }

    fn recv(&self, parts: &[IoPart<'_>]) -> std::io::Result<usize> {
        self.0.receive(Way::Out, parts)
    }
}

/// More refused frames than a batch has: the worker comes back for those behind them without an event.
#[test]
fn refused_frames_to_the_guest_leave_its_memory_alone_and_hide_nothing() {
    let mut pair = Guarded::new();
    let port = Arc::new(Recorder::default());
    {
        let mut frames = port.0.lock().unwrap();
        // The last one is received first.
        frames.push((1, udp(MAC, 60, 7)));
        frames.extend((0..BATCH + 5).map(|seed| (1, udp(PEER, 60, seed))));
    }
    pair.queue = Arc::new(Reversed(FilterQueue::new(&pair.filter, port, pair.filtered.clone(), None, None)));
    let mut driver = Driver::new(8, Features::empty());
    driver.add(&[(BUFFERS, 2000, true)]);
    let mut rx = Rx::new(Rig::vring(&driver, 0), Features::empty());
    driver.write(BUFFERS, &[0x77; 2000]);
    assert_eq!(pair.rx(&mut rx), Turn::More);
    assert_eq!(pair.filtered.tx_filtered.get(), BATCH as u64);
    assert_eq!(driver.read_vec(BUFFERS, 2000), [0x77; 2000], "nothing of them reached the guest");
    assert_eq!(driver.take_used(), []);
    assert_eq!(pair.rx(&mut rx), Turn::NoBuffers);
    assert_eq!(pair.filtered.tx_filtered.get(), BATCH as u64 + 5);
    assert_eq!(pair.rig.counters.rx_frames.get(), 1);
    assert_eq!(driver.take_used(), [(0, 72)]);
}

#[test]
fn errors_of_the_port_pass() {
    let mut pair = Guarded::new();
    let mut driver = Driver::new(8, Features::empty());
    driver.add(&[(BUFFERS, 2000, true)]);
    let mut rx = Rx::new(Rig::vring(&driver, 0), Features::empty());
    assert_eq!(pair.rx(&mut rx), Turn::Idle, "nothing to receive");
    let (gone, whole) = Rig::new();
    drop(whole);
    pair.queue = Arc::new(FilterQueue::new(&pair.filter, gone.queue.clone(), counters(), None, None));
    let mut driver = Driver::new(8, Features::empty());
    driver.write(BUFFERS, &udp(MAC, 60, 1));
    driver.add(&[(BUFFERS, 72, false)]);
    pair.tx(&mut tx(&driver));
    assert_eq!(pair.rig.counters.tx_no_port.get(), 1);
    assert_eq!(pair.counts(), [0; 4]);
}

/// A capture has what was judged and sent, each frame once, with the reason of a refused one.
#[test]
fn a_capture_shows_what_was_judged() {
    let (mut rig, wire) = Rig::new();
    let filter = DeviceFilter::new(setup()).unwrap();
    let capture = Capture::new(CaptureOptions { pair: None, snap: 65_536, rx: true, tx: true }, 1).unwrap();
    let memory = capture.file().unwrap().try_clone().unwrap();
    let mut reader = readers(memory.into(), 1).unwrap().remove(0);
    let queue = FilterQueue::new(&filter, rig.queue.clone(), counters(), None, capture.judged(0));
    let queue = capture.before_filter(0, Arc::new(queue));
    let mut driver = Driver::new(8, Features::empty());
    for (number, (from, len)) in [(MAC, 60), (PEER, 60), (PEER, 5000)].into_iter().enumerate() {
        let at = BUFFERS + number as u64 * 0x2000;
        driver.write(at, &udp(from, len, number));
        driver.add(&[(at, (HEADER_LEN + len) as u32, false)]);
    }
    tx(&driver).run(&*queue, &mut rig.health, &rig.counters).unwrap();
    wire.send(&udp(PEER, 60, 4));
    let mut driver = Driver::new(8, Features::empty());
    driver.add(&[(BUFFERS, 2000, true)]);
    let mut rx = Rx::new(Rig::vring(&driver, 0), Features::empty());
    rx.run(&*queue, &mut rig.health, &rig.counters).unwrap();
    let next = || reader.next_time(true).map(|_| reader.take().unwrap());
    let captured: Vec<Captured> = std::iter::from_fn(next).collect();
    let refused = Fate::Refused(Reason::SourceMac);
    let fates: Vec<_> = captured.iter().map(|one| (one.is_rx, one.fate, one.len)).collect();
    let expected =
        [(false, Fate::Passed, 72), (false, refused, 72), (false, refused, 5012), (true, Fate::Passed, 72)];
    assert_eq!(fates, expected);
    assert_eq!((&captured[0].bytes, &captured[1].bytes), (&udp(MAC, 60, 0), &udp(PEER, 60, 1)));
    assert!(captured[2].bytes == udp(PEER, 5000, 2)[..JUDGED], "as far as it was judged");
    assert_eq!(captured[3].bytes, udp(PEER, 60, 4));
}

/// The answer to a refused frame is a frame for the guest. Without room for it, only the answer is lost.
#[test]
fn refused_frames_are_answered() {
    let policy = Some(String::new());
    let filter = DeviceFilter::new(Setup { policy, ..setup() }).unwrap();
    let (injector, port) = (Injector::new(1).unwrap(), Arc::new(Recorder::default()));
    let queue = FilterQueue::new(&filter, port.clone(), counters(), Some(injector.clone()), None);
    let queue = injector.before(Arc::new(queue));
    for _ in 0..3 {
        let error = queue.send(&[IoPart::from_slice(&mut udp(MAC, 60, 1))]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(FILTERED));
    }
    let mut answer = [0; 1024];
    let len = queue.recv(&[IoPart::from_slice(&mut answer)]).unwrap();
    assert!(len > 26 && answer[HEADER_LEN..][..6] == MAC, "{:02x?}", &answer[..len]);
    assert_eq!(injector.dropped(), 2);
    assert!(port.0.lock().unwrap().is_empty(), "nothing was sent");
}
