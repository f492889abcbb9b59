//! Rate limits: token buckets for bytes and frames in each direction of a device.
//!
//! A limited device puts a [`LimitedQueue`] in front of each of its port's queues. A device without limits
//! does not have it. An empty bucket looks like a port that is not ready (`WouldBlock`), and a timer in the
//! worker's epoll ends the wait. So nothing is polled. Frames to the guest wait in the interface's queue,
//! which drops the excess. Frames from the guest wait in its ring.
//!
//! A frame passes while the bucket is not empty, and the bucket may go into debt. So a frame may be longer
//! than the burst, and the rate holds over time.

use std::fmt::{self, Debug};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use volt_virtio::part::IoPart;

use crate::counters::PairCounters;
use crate::port::timer::Timer;
use crate::port::{HEADER_LEN, PortQueue};

/// Shortest wait. Shorter waits would cost more wake-ups than their smoothing is worth.
const SHORTEST_WAIT: Duration = Duration::from_millis(1);
/// The default burst is the rate divided by this number.
const BURSTS_PER_SECOND: u64 = 20;

/// One bucket: a rate and a burst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// Bytes or frames a second, at least 1.
    pub per_second: u64,
    /// Bytes or frames that the bucket holds, at least 1.
    pub burst: u64,
}

impl Limit {
    /// Returns a bucket with the default burst: a twentieth of a second.
    pub fn new(per_second: u64) -> Limit {
        Limit { per_second, burst: (per_second / BURSTS_PER_SECOND).max(1) }
    }
}

/// The reason why a text is not a rate.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "'{0}' is not a rate: a number with bit or pps, like 100Mbit or 20kpps, with a burst in bytes or frames \
     after a colon, like 100Mbit:256K, or both kinds, like 100Mbit+20kpps; or none"
)]
pub struct RateError(String);

/// The limits of one direction. Bytes are those of Ethernet frames. A frame that will be segmented counts as
/// one frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    /// Limit in bytes.
    pub bytes: Option<Limit>,
    /// Limit in frames.
    pub frames: Option<Limit>,
}

impl Rate {
    /// Whether there is any limit.
    pub fn is_limited(self) -> bool {
        self.bytes.is_some() || self.frames.is_some()
    }
}

impl FromStr for Rate {
    type Err = RateError;

    fn from_str(text: &str) -> Result<Rate, RateError> {
        let wrong = || RateError(text.to_owned());
        let mut rate = Rate::default();
        if text == "none" {
            return Ok(rate);
        }
        for term in text.split('+') {
            let (amount, burst) = match term.split_once(':') {
                Some((amount, burst)) => (amount, Some(number(burst, 1024).ok_or_else(wrong)?)),
                None => (term, None),
            };
            let (bits, frames) = (amount.strip_suffix("bit"), amount.strip_suffix("pps"));
            let per_second = number(bits.or(frames).ok_or_else(wrong)?, 1000).ok_or_else(wrong)?;
            let per_second = if bits.is_some() { per_second.div_ceil(8) } else { per_second };
            let limit = Limit { burst: burst.unwrap_or(Limit::new(per_second).burst), per_second };
            let slot = if bits.is_some() { &mut rate.bytes } else { &mut rate.frames };
            if slot.replace(limit).is_some() {
                return Err(wrong());
            }
        }
        Ok(rate)
    }
}

impl fmt::Display for Rate {
    /// Writes the syntax that it is parsed from, with all bursts: `12500kbit:78125+20kpps:1000`, or `none`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.bytes.map(|limit| (u128::from(limit.per_second) * 8, "bit", limit.burst));
        let frames = self.frames.map(|limit| (limit.per_second.into(), "pps", limit.burst));
        let mut plus = "";
        for (per_second, unit, burst) in bytes.into_iter().chain(frames) {
            let (number, power) = match per_second {
                n if n % 1_000_000_000 == 0 => (n / 1_000_000_000, "G"),
                n if n % 1_000_000 == 0 => (n / 1_000_000, "M"),
                n if n % 1000 == 0 => (n / 1000, "k"),
                n => (n, ""),
            };
            write!(f, "{plus}{number}{power}{unit}:{burst}")?;
            plus = "+";
        }
        if plus.is_empty() { f.write_str("none") } else { Ok(()) }
    }
}

/// Parses a number of at least 1, with an optional suffix k, M or G for a power of `base`.
fn number(text: &str, base: u64) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let power = match text.get(digits.len()..)? {
        "" => 0,
        "k" | "K" => 1,
        "M" => 2,
        "G" => 3,
        _ => return None,
    };
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
    let number: u64 = digits.parse().ok().filter(|number| *number > 0 && plain)?;
    number.checked_mul(base.pow(power))
}

/// The limits of a device, shared by all its queue pairs. The default is no limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateLimits {
    /// Wire to guest.
    pub rx: Rate,
    /// Guest to wire.
    pub tx: Rate,
}

/// A change of [`RateLimits`] at run time. `None` keeps the limit of a direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitsChange {
    /// Wire to guest.
    pub rx: Option<Rate>,
    /// Guest to wire.
    pub tx: Option<Rate>,
}

impl RateLimits {
    /// Returns these limits with `change` applied.
    #[must_use]
    pub fn changed(self, change: LimitsChange) -> RateLimits {
        RateLimits { rx: change.rx.unwrap_or(self.rx), tx: change.tx.unwrap_or(self.tx) }
    }
}

#[derive(Debug)]
struct Bucket {
    limit: Limit,
    /// A level below 0 is a debt.
    level: f64,
    filled: Instant,
}

impl Bucket {
    fn new(limit: Limit, now: Instant) -> Bucket {
        Bucket { limit, level: limit.burst as f64, filled: now }
    }

    /// Returns how long to wait until something may pass.
    fn wait(&mut self, now: Instant) -> Option<Duration> {
        let rate = self.limit.per_second as f64;
        let gained = now.saturating_duration_since(self.filled).as_secs_f64() * rate;
        self.level = (self.level + gained).min(self.limit.burst as f64);
        self.filled = now;
        (self.level < 1.0).then(|| Duration::from_secs_f64(((1.0 - self.level) / rate).min(3600.0)))
    }
}

/// The buckets of one direction.
#[derive(Debug)]
struct Direction(Mutex<(Option<Bucket>, Option<Bucket>)>);

impl Direction {
    fn new(rate: Rate) -> Direction {
        let now = Instant::now();
        let bucket = |limit: Option<Limit>| limit.map(|limit| Bucket::new(limit, now));
        Direction(Mutex::new((bucket(rate.bytes), bucket(rate.frames))))
    }

    /// Returns how long to wait until something may pass.
    fn wait(&self, now: Instant) -> Option<Duration> {
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (bytes, frames) = &mut *buckets;
        let waits = [bytes, frames].map(|bucket| bucket.as_mut().and_then(|bucket| bucket.wait(now)));
        waits.into_iter().flatten().max()
    }

    /// Charges one frame of `len` bytes, header included.
    fn charge(&self, len: usize) {
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (bytes, frames) = &mut *buckets;
        if let Some(bucket) = bytes {
            bucket.level -= len.saturating_sub(HEADER_LEN) as f64;
        }
        if let Some(bucket) = frames {
            bucket.level -= 1.0;
        }
    }
}

/// The buckets of a device, shared by all its queue pairs.
#[derive(Clone, Debug)]
pub struct Limiter {
    rx: Arc<Direction>,
    tx: Arc<Direction>,
}

impl Limiter {
    /// Creates full buckets. Returns `None` if nothing is limited.
    pub fn new(limits: RateLimits) -> Option<Limiter> {
        let RateLimits { rx, tx } = limits;
        let limited = rx.is_limited() || tx.is_limited();
        limited.then(|| Limiter { rx: Arc::new(Direction::new(rx)), tx: Arc::new(Direction::new(tx)) })
    }

    /// Puts these limits in front of `queue`. The pair's worker counts the waits in `counters`.
    ///
    /// # Errors
    ///
    /// Fails if the process has no descriptor left.
    pub fn limit(&self, queue: Arc<dyn PortQueue>, counters: PairCounters) -> io::Result<Arc<dyn PortQueue>> {
        let timers = [Timer::new()?, Timer::new()?];
        let (began, armed) = (Instant::now(), Default::default());
        Ok(Arc::new(LimitedQueue { queue, limiter: self.clone(), counters, timers, began, armed }))
    }
}

/// A port's queue behind a device's limits.
#[derive(Debug)]
struct LimitedQueue {
    queue: Arc<dyn PortQueue>,
    limiter: Limiter,
    counters: PairCounters,
    /// The timers for rx and tx.
    timers: [Timer; 2],
    began: Instant,
    /// When each timer expires, in nanoseconds after `began`. A worker that polls asks repeatedly.
    armed: [AtomicU64; 2],
}

impl LimitedQueue {
    fn pass(
        &self,
        direction: &Direction,
        timer: usize,
        frame: impl FnOnce() -> io::Result<usize>,
    ) -> io::Result<usize> {
        let now = Instant::now();
        if let Some(wait) = direction.wait(now) {
            self.arm(timer, now, wait.max(SHORTEST_WAIT))?;
            // The kernel's error for a port that is not ready, unlike `io::ErrorKind::WouldBlock`.
            return Err(io::Error::from_raw_os_error(libc::EAGAIN));
        }
        let len = frame()?;
        direction.charge(len);
        Ok(len)
    }

    /// Makes timer number `timer` readable `wait` after `now`, unless it expires earlier. Counts each wait.
    fn arm(&self, timer: usize, now: Instant, wait: Duration) -> io::Result<()> {
        let now = now.duration_since(self.began);
        if u128::from(self.armed[timer].load(Ordering::Relaxed)) > now.as_nanos() {
            return Ok(());
        }
        self.timers[timer].arm(wait)?;
        self.armed[timer].store((now + wait).as_nanos() as u64, Ordering::Relaxed);
        [&self.counters.rx_limited, &self.counters.tx_limited][timer].add(1);
        Ok(())
    }
}

impl AsFd for LimitedQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.queue.as_fd()
    }
}

impl PortQueue for LimitedQueue {
    fn send(&self, parts: &[IoPart<'_>]) -> io::Result<usize> {
        self.pass(&self.limiter.tx, 1, || self.queue.send(parts))
    }

    fn recv(&self, parts: &[IoPart<'_>]) -> io::Result<usize> {
        self.pass(&self.limiter.rx, 0, || self.queue.recv(parts))
    }

    fn flush(&self) -> io::Result<()> {
        self.queue.flush()
    }

    fn release(&self) {
        self.queue.release();
    }

    fn probe(&self) -> io::Result<()> {
        self.queue.probe()
    }

    fn tells_room(&self) -> bool {
        self.queue.tells_room()
    }

    fn wakers(&self) -> Vec<BorrowedFd<'_>> {
        let own = self.timers.iter().map(AsFd::as_fd);
        self.queue.wakers().into_iter().chain(own).collect()
    }
}

#[cfg(test)]
mod tests;
