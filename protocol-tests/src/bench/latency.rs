//! Latency: the time of single frames through the back-end each way, at idle and behind a full ring.
//!
//! One thread plays guest and wire, so one clock gives all times: it puts a probe into the ring and polls the
//! interface for it, or the reverse. The floor is a thread that waits for the TAP and an eventfd and makes
//! the bare calls.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};

use crate::bench::card::{Card, LIMIT};
use crate::bench::floor::Floor;
use crate::bench::host::FarEnd;
use crate::bench::{BenchError, pin};
use crate::frame::NET_HEADER_LEN;
use crate::nic::eventfd;

/// Ethertype of probes (local experimental).
pub const PROBE: u16 = 0x88b6;
/// Time between two probes: long enough for the other side to sleep.
const PAUSE: Duration = Duration::from_micros(100);
const LEN: usize = 64;

/// Times of both ways in nanoseconds, one for each probe.
#[derive(Clone, Debug, Default)]
pub struct Times {
    /// Guest to wire.
    pub tx: Vec<u64>,
    /// Wire to guest.
    pub rx: Vec<u64>,
}

impl Times {
    /// Returns the round-trip times: the sum of the two ways, probe by probe.
    pub fn round_trip(&self) -> Vec<u64> {
        self.tx.iter().zip(&self.rx).map(|(tx, rx)| tx + rx).collect()
    }
}

/// Returns the value below which a `share` of the sorted times lies.
pub fn percentile(times: &[u64], share: f64) -> u64 {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let at = (sorted.len() as f64 * share) as usize;
    sorted.get(at.min(sorted.len().saturating_sub(1))).copied().unwrap_or(0)
}

/// Returns a frame for the other end, with the probes' Ethertype.
pub fn probe() -> [u8; LEN] {
    let mut frame = [0; LEN];
    frame[..12].copy_from_slice(&[0x02, 0, 0, 0, 0, 0x11, 0x02, 0, 0, 0, 0, 0x12]);
    frame[12..14].copy_from_slice(&PROBE.to_be_bytes());
    frame
}

/// Sends `count` probes each way through the back-end of `card`. If `load`, other frames keep its transmit
/// ring full.
pub fn through(card: &mut Card, far: &FarEnd, count: usize, load: bool) -> Result<Times, BenchError> {
    let mut times = Times::default();
    let mut into = [0; 256];
    for _ in 0..count {
        times.tx.push(transmit(card, far, &mut into, load)?);
        rest(card, load);
        times.rx.push(receive(card, far, load)?);
        rest(card, load);
    }
    while card.rings[1].free() < usize::from(card.rings[1].layout().size) {
        card.rings[1].reap();
    }
    Ok(times)
}

fn load_up(card: &mut Card, load: bool) {
    card.rings[1].reap();
    if load {
        card.rings[1].offer(usize::MAX);
    }
}

fn rest(card: &mut Card, load: bool) {
    let start = Instant::now();
    while start.elapsed() < PAUSE {
        load_up(card, load);
    }
}

fn late() -> BenchError {
    BenchError::Wrong(format!("a probe did not come within {LIMIT:?}"))
}

fn transmit(card: &mut Card, far: &FarEnd, into: &mut [u8], load: bool) -> Result<u64, BenchError> {
    let deadline = Instant::now() + LIMIT;
    let head = loop {
        card.rings[1].reap();
        match card.rings[1].next_free() {
            Some(head) => break head,
            None if Instant::now() > deadline => return Err(late()),
            None => {}
        }
    };
    let ethertype = card.buffers[1][usize::from(head)] + NET_HEADER_LEN as u64 + 12;
    let usual = card.read(ethertype, 2);
    card.write(ethertype, &PROBE.to_be_bytes());
    let start = Instant::now();
    card.rings[1].offer(1);
    while far.take(into)?.is_none() {
        // The probe's chain may return before its frame is seen; it is not offered again until then.
        if load && card.rings[1].free() > 1 {
            let free = card.rings[1].free();
            card.rings[1].offer_but(head, free);
        }
        card.rings[1].reap();
        if Instant::now() > deadline {
            return Err(late());
        }
    }
    let time = start.elapsed();
    // The chain must return before its buffer may change.
    while !card.rings[1].is_free(head) {
        card.rings[1].reap();
    }
    card.write(ethertype, &usual);
    Ok(time.as_nanos() as u64)
}

fn receive(card: &mut Card, far: &FarEnd, load: bool) -> Result<u64, BenchError> {
    card.rings[0].offer(usize::MAX);
    let (deadline, start) = (Instant::now() + LIMIT, Instant::now());
    far.send(&probe())?;
    while card.rings[0].reap() == 0 {
        load_up(card, load);
        if Instant::now() > deadline {
            return Err(late());
        }
    }
    Ok(start.elapsed().as_nanos() as u64)
}

/// Sends the probes through a bare echo: a thread on processor `cpu` that waits in `poll`, and reads or
/// writes one frame.
pub fn floor(floor: &Floor, cpu: usize, count: usize) -> Result<Times, BenchError> {
    let (kick, end, received) = (eventfd()?, AtomicBool::new(false), AtomicU64::new(0));
    let far = floor.far_end(PROBE)?;
    std::thread::scope(|scope| {
        let echo = scope.spawn(|| echo(cpu, floor.tap(), &kick, &end, &received));
        let times = probes(&far, &kick, &received, count);
        end.store(true, Ordering::Relaxed);
        rustix::io::write(&kick, &1u64.to_ne_bytes())?;
        echo.join().map_err(|_| BenchError::Wrong("the echo panicked".to_owned()))??;
        times
    })
}

fn probes(far: &FarEnd, kick: &OwnedFd, received: &AtomicU64, count: usize) -> Result<Times, BenchError> {
    let (mut times, mut into) = (Times::default(), [0; 256]);
    let pause = || {
        let start = Instant::now();
        while start.elapsed() < PAUSE {}
    };
    for _ in 0..count {
        let start = Instant::now();
        rustix::io::write(kick, &1u64.to_ne_bytes())?;
        let came = far.poll(&mut into, LIMIT)?.ok_or_else(late)?;
        times.tx.push((came - start).as_nanos() as u64);
        pause();
        let (before, start) = (received.load(Ordering::Acquire), Instant::now());
        far.send(&probe())?;
        while received.load(Ordering::Acquire) == before {
            if start.elapsed() > LIMIT {
                return Err(late());
            }
        }
        times.rx.push(start.elapsed().as_nanos() as u64);
        pause();
    }
    Ok(times)
}

fn echo(
    cpu: usize,
    tap: &OwnedFd,
    kick: &OwnedFd,
    end: &AtomicBool,
    received: &AtomicU64,
) -> Result<(), BenchError> {
    pin(cpu)?;
    let frame = [&[0; NET_HEADER_LEN][..], &probe()].concat();
    let mut bytes = vec![0; 2048];
    while !end.load(Ordering::Relaxed) {
        let mut fds =
            [PollFd::new(tap, PollFlags::IN), PollFd::from_borrowed_fd(kick.as_fd(), PollFlags::IN)];
        rustix::event::poll(&mut fds, None)?;
        let [from_tap, from_kick] = fds.map(|fd| fd.revents().contains(PollFlags::IN));
        if from_tap && rustix::io::read(tap, &mut bytes).is_ok() {
            received.fetch_add(1, Ordering::Release);
        }
        if from_kick && !end.load(Ordering::Relaxed) {
            rustix::io::read(kick, &mut [0; 8])?;
            rustix::io::write(tap, &frame)?;
        }
    }
    Ok(())
}
