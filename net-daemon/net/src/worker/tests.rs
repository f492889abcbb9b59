//! Tests of running workers, and of attempts to block them.

use std::fmt;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::BorrowedFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use volt_virtio::features::Features;
use volt_virtio::part::IoPart;
use volt_virtio::testing::{BUFFERS, Driver};

use super::*;
use crate::batch::BATCH;
use crate::counters::CounterMemory;
use crate::port::inject::Injector;
use crate::port::socket::SocketPort;
use crate::port::{Port, PortQueue};
use crate::rx::Rx;
use crate::testing::{Rig, Wire, frame, until};
use crate::tx::Tx;

/// Returns a transmit queue with the driver's ends: kick, call, wire.
fn transmitter(driver: &Driver) -> (Pair, File, File, Wire) {
    let (rig, wire) = Rig::new();
    let notifier = || {
        let fd = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let ours = File::from(fd.try_clone().unwrap());
        (ours, Arc::new(Notifier::new(fd).unwrap()))
    };
    let ((kick, kick_end), (call, call_end)) = (notifier(), notifier());
    let vring = Vring { kick: kick_end, call: Some(call_end), ..Rig::vring(driver, 1) };
    let pair = Pair {
        rx: None,
        tx: Some(Tx::new(vring, false)),
        queue: rig.queue,
        counters: CounterMemory::new(1).unwrap().pair(0),
        health: rig.health,
        unshared: None,
        trouble: rig.trouble,
        stash: None,
        announcement: None,
    };
    (pair, kick, call, wire)
}

fn kick(mut kick: &File) {
    kick.write_all(&1u64.to_ne_bytes()).unwrap();
}

#[test]
fn serves_what_waits_at_the_start_and_what_is_kicked_for() {
    let mut driver = Driver::new(16, Features::EVENT_IDX);
    driver.write(BUFFERS, &frame(60, 1));
    driver.add(&[(BUFFERS, 72, false)]);
    let (pair, kick_fd, mut call, wire) = transmitter(&driver);
    let worker = Worker::start("test".to_owned(), pair, Duration::ZERO).unwrap();
    until("the frame that waited", || driver.used_idx() == 1);
    let mut count = [0; 8];
    until("a call", || call.read_exact(&mut count).is_ok());
    driver.add(&[(BUFFERS, 72, false)]);
    kick(&kick_fd);
    until("the frame that was kicked for", || driver.used_idx() == 2);
    let pair = worker.stop().unwrap();
    assert_eq!(pair.tx.unwrap().vring.ring.base(), 2);
    assert_eq!(
        [wire.receive(), wire.receive(), wire.receive()],
        [Some(frame(60, 1)), Some(frame(60, 1)), None]
    );
}

#[test]
fn a_call_descriptor_that_blocks_does_not_keep_a_worker() {
    let mut driver = Driver::new(16, Features::empty());
    driver.write(BUFFERS, &frame(60, 1));
    let (pair, kick_fd, mut call, _wire) = transmitter(&driver);
    // Full, and made blocking again without the worker's knowledge.
    call.write_all(&(u64::MAX - 1).to_ne_bytes()).unwrap();
    fcntl_setfl(&call, OFlags::RDWR).unwrap();
    let worker = Worker::start("test".to_owned(), pair, Duration::ZERO).unwrap();
    driver.add(&[(BUFFERS, 72, false)]);
    kick(&kick_fd);
    thread::sleep(Duration::from_millis(20));
    let start = Instant::now();
    let pair = worker.stop().unwrap();
    assert!(start.elapsed() < LIMIT, "{:?}", start.elapsed());
    // Sent frames are published even though the call failed.
    assert_eq!(pair.tx.unwrap().vring.ring.base(), driver.used_idx());
}

/// A new call descriptor is used at once, even if the old one blocks the worker, and the pair continues to
/// run.
#[test]
fn a_call_descriptor_is_exchanged_while_the_pair_runs() {
    let mut driver = Driver::new(16, Features::empty());
    driver.write(BUFFERS, &frame(60, 1));
    let (pair, kick_fd, mut call, _wire) = transmitter(&driver);
    call.write_all(&(u64::MAX - 1).to_ne_bytes()).unwrap();
    fcntl_setfl(&call, OFlags::RDWR).unwrap();
    let mut worker = Worker::start("test".to_owned(), pair, Duration::ZERO).unwrap();
    let thread = worker.thread.thread().id();
    let next = Arc::new(Notifier::eventfd().unwrap());
    worker.set_call(1, Some(next.clone())).unwrap();
    until("a call for what the one before may have missed", || next.wait(Duration::ZERO));
    next.clear();
    // For another vring, which this pair does not have.
    worker.set_call(0, None).unwrap();
    driver.add(&[(BUFFERS, 72, false)]);
    kick(&kick_fd);
    until("a call by the other descriptor", || next.wait(Duration::ZERO));
    assert_eq!(driver.used_idx(), 1);
    assert_eq!(worker.thread.thread().id(), thread);
    worker.set_call(1, None).unwrap();
    next.clear();
    driver.add(&[(BUFFERS, 72, false)]);
    kick(&kick_fd);
    until("a frame that nobody is called for", || driver.used_idx() == 2);
    worker.stop().unwrap();
    assert!(!next.wait(Duration::ZERO));
}

/// Injected frames wake a worker that sleeps.
#[test]
fn an_injected_frame_wakes_a_worker() {
    let driver = Driver::new(16, Features::empty());
    let (mut pair, _kick, _call, _wire) = transmitter(&driver);
    let mut receiver = Driver::new(16, Features::empty());
    receiver.add(&[(BUFFERS, 2000, true)]);
    receiver.add(&[(BUFFERS, 2000, true)]);
    pair.rx = Some(Rx::new(Rig::vring(&receiver, 0), Features::empty()));
    let injector = Injector::new(4).unwrap();
    pair.queue = injector.before(pair.queue.clone());
    let worker = Worker::start("inject-test".to_owned(), pair, Duration::ZERO).unwrap();
    for number in 1..=2 {
        sleeps("inject-test");
        injector.push(frame(60, 1)).unwrap();
        until("an injected frame", || receiver.used_idx() == number);
    }
    worker.stop().unwrap();
}

#[test]
fn a_ring_that_is_broken_ends_alone() {
    let mut driver = Driver::new(16, Features::empty());
    let (mut pair, kick_fd, _call, _wire) = transmitter(&driver);
    let mut receiver = Driver::new(16, Features::empty());
    receiver.add(&[(BUFFERS, 2000, true)]);
    pair.rx = Some(Rx::new(Rig::vring(&receiver, 0), Features::empty()));
    let (rig, wire) = Rig::new();
    pair.queue = rig.queue;
    let worker = Worker::start("test".to_owned(), pair, Duration::ZERO).unwrap();
    driver.offer(500);
    kick(&kick_fd);
    wire.send(&frame(60, 1));
    until("a frame for the other ring", || receiver.used_idx() == 1);
    until("the end of the kicked ring", || {
        kick(&kick_fd);
        driver.used_idx() == 0
    });
    let pair = worker.stop().unwrap();
    assert_eq!(pair.trouble.take_broken(), [1]);
    assert!(pair.tx.is_none() && pair.rx.is_some());
}

/// A worker that polls finds chains without kicks. Then it asks for kicks, and sleeps until one arrives.
#[test]
fn a_polling_worker_needs_kicks_only_when_it_sleeps() {
    const POLLING: Duration = Duration::from_millis(150);
    for features in [Features::empty(), Features::EVENT_IDX] {
        let mut driver = Driver::new(16, features);
        driver.write(BUFFERS, &frame(60, 1));
        let (pair, kick_fd, _call, wire) = transmitter(&driver);
        let worker = Worker::start("test".to_owned(), pair, POLLING).unwrap();
        let (mut frames, mut kicks, mut unkicked) = (0, 0, 0);
        // It may sleep in between if one of the two threads gets no CPU time for as long as the polling
        // takes.
        while unkicked < 20 {
            driver.add(&[(BUFFERS, 72, false)]);
            if driver.wants_kick_for(frames) {
                kick(&kick_fd);
                kicks += 1;
            } else {
                unkicked += 1;
            }
            frames += 1;
            until("a frame that was kicked for where that was wanted", || driver.used_idx() == frames);
            assert_eq!(wire.receive(), Some(frame(60, 1)));
            assert!(frames < 100, "{kicks} kicks were wanted for {frames} frames");
        }
        // An event on the wire makes it poll once more, with kicks enabled. Then it sleeps.
        loop {
            let mut wanted = None;
            until("a worker that wants kicks for longer than it polls", || {
                let wants = driver.wants_kick_for(frames);
                wanted = wanted.or_else(|| wants.then(Instant::now)).filter(|_| wants);
                wanted.is_some_and(|since| since.elapsed() > 2 * POLLING)
            });
            driver.add(&[(BUFFERS, 72, false)]);
            frames += 1;
            thread::sleep(Duration::from_millis(50));
            if driver.used_idx() != frames {
                break;
            }
            assert!(frames < 100, "it never sleeps");
            assert_eq!(wire.receive(), Some(frame(60, 1)));
        }
        kick(&kick_fd);
        until("a frame that was kicked for", || driver.used_idx() == frames);
        let pair = worker.stop().unwrap();
        assert_eq!(pair.tx.unwrap().vring.ring.base(), frames);
        assert_eq!(pair.counters.kicks.get(), kicks + 1);
    }
}

/// A wire that always has a frame. At the hundredth, the driver makes a chain of its other ring available.
struct Busy {
    queue: Arc<dyn PortQueue>,
    driver: Mutex<Driver>,
    received: AtomicUsize,
    sent_after: AtomicUsize,
}

const HUNDREDTH: usize = 100;

impl fmt::Debug for Busy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} of {:?}", self.sent_after, self.received)
    }
}

impl AsFd for Busy {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.queue.as_fd()
    }
}

impl PortQueue for Busy {
    fn send(&self, parts: &[IoPart<'_>]) -> io::Result<usize> {
        self.sent_after.store(self.received.load(Ordering::SeqCst), Ordering::SeqCst);
        self.queue.send(parts)
    }

    fn recv(&self, _: &[IoPart]) -> io::Result<usize> {
        if self.received.fetch_add(1, Ordering::SeqCst) + 1 == HUNDREDTH {
            self.driver.lock().unwrap().add(&[(BUFFERS, 72, false)]);
        }
        Ok(72)
    }
}

/// Nobody kicks a polled ring, so the worker also looks at it between batches of the other one.
#[test]
fn a_polling_worker_that_always_receives_sends_too() {
    const RING: u16 = 1024;
    let driver = Driver::new(16, Features::empty());
    driver.write(BUFFERS, &frame(60, 1));
    let (mut pair, _kick, _call, wire) = transmitter(&driver);
    let mut receiver = Driver::new(RING, Features::empty());
    for number in 0..RING {
        receiver.add(&[(BUFFERS + u64::from(number) * 128, 128, true)]);
    }
    pair.rx = Some(Rx::new(Rig::vring(&receiver, 0), Features::empty()));
    let (queue, driver) = (pair.queue.clone(), Mutex::new(driver));
    let busy = Arc::new(Busy { queue, driver, received: Default::default(), sent_after: Default::default() });
    pair.queue = busy.clone();
    let worker = Worker::start("test".to_owned(), pair, Duration::from_micros(200)).unwrap();
    until("the frame of the other ring", || wire.receive() == Some(frame(60, 1)));
    worker.stop().unwrap();
    let after = busy.sent_after.load(Ordering::SeqCst);
    assert!((HUNDREDTH..=HUNDREDTH + BATCH).contains(&after), "sent after {after} frames");
}

#[test]
fn nothing_that_nobody_drains_makes_a_worker_spin() {
    does_not_spin("spin-test", Duration::ZERO);
    does_not_spin("poll-test", Duration::from_micros(200));
}

/// A packet socket whose other end is closed is always readable.
#[test]
fn a_port_that_has_come_to_its_end_does_not_make_a_worker_spin() {
    let (near, far) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    let driver = Driver::new(16, Features::empty());
    let (mut pair, _kick, _call, _wire) = transmitter(&driver);
    let mut receiver = Driver::new(16, Features::empty());
    receiver.add(&[(BUFFERS, 2000, true)]);
    pair.rx = Some(Rx::new(Rig::vring(&receiver, 0), Features::empty()));
    pair.queue = SocketPort::new(vec![near]).unwrap().queue(0);
    drop(far);
    let worker = Worker::start("end-test".to_owned(), pair, Duration::ZERO).unwrap();
    sleeps("end-test");
    worker.stop().unwrap();
}

fn does_not_spin(name: &str, polling: Duration) {
    let mut driver = Driver::new(16, Features::empty());
    let (mut pair, kick_fd, _call, _wire) = transmitter(&driver);
    let receiver = Driver::new(16, Features::empty());
    pair.rx = Some(Rx::new(Rig::vring(&receiver, 0), Features::empty()));
    let (rig, wire) = Rig::new();
    pair.queue = rig.queue;
    let counters = pair.counters.clone();
    // Frames without a buffer, a kick descriptor whose other end is closed, a kick that remains.
    wire.send(&frame(60, 1));
    let (end, other) = std::os::unix::net::UnixStream::pair().unwrap();
    drop(other);
    pair.rx.as_mut().unwrap().vring.kick = Arc::new(Notifier::new(end.into()).unwrap());
    let worker = Worker::start(name.to_owned(), pair, polling).unwrap();
    kick(&kick_fd);
    driver.add(&[(BUFFERS, 72, false)]);
    thread::sleep(Duration::from_millis(50));
    sleeps(name);
    assert!(counters.kicks.get() < 10);
    worker.stop().unwrap();
}

/// Waits until the thread `name` uses no CPU time.
fn sleeps(name: &str) {
    // A listing can miss a thread while threads of other tests end.
    let mut task = None;
    until("the worker's thread", || {
        let paths = std::fs::read_dir("/proc/self/task").unwrap().flatten().map(|task| task.path());
        let is_ours = |path: &std::path::PathBuf| {
            std::fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim() == name)
        };
        task = paths.into_iter().find(is_ours);
        task.is_some()
    });
    let stat = task.unwrap().join("schedstat");
    let cpu =
        || -> u64 { std::fs::read_to_string(&stat).unwrap().split(' ').next().unwrap().parse().unwrap() };
    let before = cpu();
    thread::sleep(Duration::from_millis(200));
    let used = Duration::from_nanos(cpu() - before);
    assert!(used < Duration::from_millis(5), "{used:?} of CPU time in 200 ms");
}
