use std::fs;
use std::thread;

use rustix::event::{PollFd, PollFlags, poll};
use volt_virtio::features::Features;
use volt_virtio::testing::{BUFFERS, Driver};

use super::*;
use crate::counters::CounterMemory;
use crate::pair::Pair;
use crate::rx::Rx;
use crate::testing::{Rig, frame};
use crate::tx::Tx;
use crate::worker::Worker;

/// For operations that take a second on a quiet machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn rate(text: &str) -> Rate {
    text.parse().unwrap()
}

fn readable(timer: BorrowedFd<'_>, within: Duration) -> bool {
    let within = rustix::time::Timespec::try_from(within).unwrap();
    poll(&mut [PollFd::new(&timer, PollFlags::IN)], Some(&within)) == Ok(1)
}

#[test]
fn rates_have_units_and_bursts() {
    let bytes = |per_second, burst| Rate { bytes: Some(Limit { per_second, burst }), frames: None };
    assert_eq!(rate("100Mbit"), bytes(12_500_000, 625_000));
    assert_eq!(rate("1Gbit:256K"), bytes(125_000_000, 262_144));
    assert_eq!(rate("9bit"), bytes(2, 1));
    let frames = Some(Limit { per_second: 20_000, burst: 64 });
    assert_eq!(rate("8kbit+20kpps:64"), Rate { frames, ..bytes(1000, 50) });
    for wrong in [
        "",
        "100",
        "100M",
        "0bit",
        "-1bit",
        "+1bit",
        "1.5Gbit",
        "1Tbit",
        "1bit+2bit",
        "1pps:0",
        "1bit:",
        "bit",
        "99999999999999999999Gbit",
        "9999999999999Gbit",
    ] {
        assert!(wrong.parse::<Rate>().is_err(), "{wrong}");
    }
}

#[test]
fn a_bucket_lets_its_burst_pass_and_then_the_rate() {
    let start = Instant::now();
    let mut bucket = Bucket::new(Limit { per_second: 1000, burst: 100 }, start);
    assert_eq!(bucket.wait(start), None);
    bucket.level -= 1099.0;
    assert_eq!(bucket.wait(start), Some(Duration::from_secs(1)));
    assert_eq!(bucket.wait(start + Duration::from_millis(600)), Some(Duration::from_millis(400)));
    assert_eq!(bucket.wait(start + Duration::from_millis(1001)), None);
    // Time without frames refills the bucket, up to the burst.
    assert_eq!(bucket.wait(start + Duration::from_secs(100)), None);
    assert_eq!(bucket.level, 100.0);
}

#[test]
fn nothing_to_limit_is_no_limiter() {
    assert!(Limiter::new(RateLimits::default()).is_none());
    let rx = RateLimits { rx: rate("1pps"), ..RateLimits::default() };
    assert!(Limiter::new(rx).is_some());
}

/// A port with an empty bucket is not ready, and a timer ends the wait.
#[test]
fn a_timer_ends_the_wait() {
    let (rig, wire) = Rig::new();
    let limits = RateLimits { tx: rate("2pps:1"), ..RateLimits::default() };
    let counters = CounterMemory::new(1).unwrap().pair(0);
    let queue = Limiter::new(limits).unwrap().limit(rig.queue.clone(), counters.clone()).unwrap();
    let mut bytes = frame(60, 1);
    let parts = [IoPart::from_slice(&mut bytes)];
    assert_eq!(queue.send(&parts).unwrap(), 72);
    let error = queue.send(&parts).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EAGAIN));
    assert!(queue.send(&parts).is_err(), "still");
    assert_eq!((counters.tx_limited.get(), counters.rx_limited.get()), (1, 0));
    assert!(!readable(queue.wakers()[1], Duration::from_millis(10)));
    assert!(readable(queue.wakers()[1], PATIENCE));
    assert_eq!(queue.send(&parts).unwrap(), 72);
    assert_eq!(
        (wire.receive(), wire.receive(), wire.receive()),
        (Some(frame(60, 1)), Some(frame(60, 1)), None)
    );
    wire.send(&frame(60, 2));
    assert_eq!(queue.recv(&parts).unwrap(), 72, "the other direction is free");
}

/// CPU time of this process's thread called `name`, in clock ticks.
fn ticks(name: &str) -> u64 {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let stats = tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("stat")).ok());
    let stat = stats.into_iter().find(|stat| stat.contains(&format!("({name})"))).unwrap();
    let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// A port that records when frames pass, in front of a limited one.
#[derive(Debug)]
struct Watched {
    queue: Arc<dyn PortQueue>,
    /// Received and sent.
    passed: [Mutex<Vec<Instant>>; 2],
    refused: AtomicU64,
}

impl Watched {
    fn pass(&self, direction: usize, result: io::Result<usize>) -> io::Result<usize> {
        match result {
            Ok(_) => self.passed[direction].lock().unwrap().push(Instant::now()),
            Err(_) => _ = self.refused.fetch_add(1, Ordering::Relaxed),
        }
        result
    }
}

impl AsFd for Watched {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.queue.as_fd()
    }
}

impl PortQueue for Watched {
    fn recv(&self, parts: &[IoPart]) -> io::Result<usize> {
        self.pass(0, self.queue.recv(parts))
    }

    fn send(&self, parts: &[IoPart]) -> io::Result<usize> {
        self.pass(1, self.queue.send(parts))
    }

    fn wakers(&self) -> Vec<BorrowedFd<'_>> {
        self.queue.wakers()
    }
}

/// Both halves of a worker at their limits never exceed the rate, keep it as far as they get CPU time, lose
/// no frame from the guest, and sleep.
#[test]
fn a_limited_worker_keeps_the_rate_and_sleeps() {
    const FRAMES: usize = 100;
    const GAP: Duration = Duration::from_millis(10);
    let (mut tx_driver, mut rx_driver) =
        (Driver::new(128, Features::empty()), Driver::new(128, Features::empty()));
    tx_driver.write(BUFFERS, &frame(88, 1));
    for _ in 0..FRAMES {
        tx_driver.add(&[(BUFFERS, 100, false)]);
        rx_driver.add(&[(BUFFERS, 100, true)]);
    }
    let (rig, wire) = Rig::new();
    let limit = rate("100pps:1");
    let start = Instant::now();
    let counters = CounterMemory::new(1).unwrap().pair(0);
    let limiter = Limiter::new(RateLimits { rx: limit, tx: limit }).unwrap();
    let queue = limiter.limit(rig.queue, counters.clone()).unwrap();
    let watched = Arc::new(Watched { queue, passed: Default::default(), refused: Default::default() });
    let pair = Pair {
        rx: Some(Rx::new(Rig::vring(&rx_driver, 0), Features::empty())),
        tx: Some(Tx::new(Rig::vring(&tx_driver, 1), false)),
        queue: watched.clone(),
        counters,
        health: rig.health,
        unshared: None,
        trouble: rig.trouble,
        stash: None,
        announcement: None,
    };
    let worker = Worker::start("limited".to_owned(), pair, Duration::ZERO).unwrap();
    let (mut sent, mut received) = (0, 0);
    while received < FRAMES || usize::from(rx_driver.used_idx()) < FRAMES {
        // A socket pair has limited room.
        if sent < FRAMES && sent < usize::from(rx_driver.used_idx()) + 5 {
            wire.send(&frame(88, sent));
            sent += 1;
        }
        received += usize::from(wire.receive().is_some());
        assert!(start.elapsed() < PATIENCE, "{received} frames in {PATIENCE:?}");
        thread::sleep(Duration::from_millis(1));
    }
    let spent = ticks("limited");
    worker.stop().unwrap();
    for (name, passed) in ["received", "sent"].into_iter().zip(&watched.passed) {
        let passed = passed.lock().unwrap();
        let took = *passed.last().unwrap() - start;
        assert!(took >= GAP * (FRAMES as u32 - 1), "{name}: {FRAMES} frames in {took:?}");
        // A worker that gets CPU time late is late. The shortest tenth of the gaps shows its intended
        // wake-ups.
        let mut gaps: Vec<_> = passed.windows(2).map(|pair| pair[1] - pair[0]).collect();
        gaps.sort_unstable();
        let quick = gaps[FRAMES / 10];
        assert!(quick <= GAP * 21 / 20, "{name}: a frame each {quick:?} at best");
    }
    // A wake-up for one direction wakes the other half, too.
    let refused = watched.refused.load(Ordering::Relaxed);
    assert!(refused <= 8 * FRAMES as u64, "{refused} attempts too early for {FRAMES} frames each way");
    assert!(spent <= 20, "{spent} of 100 ticks of CPU time for a second of waiting");
}
