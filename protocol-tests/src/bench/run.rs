//! One measured run of a case: frames through the back-end at full speed, one way.

use std::time::{Duration, Instant};

use crate::bench::BenchError;
use crate::bench::card::{Card, LIMIT};
use crate::bench::case::{Case, Direction, FLOWS};
use crate::bench::host::FarEnd;
use crate::bench::process::Process;
use crate::bench::ring::PollRing;
use crate::frame::NET_HEADER_LEN;

/// The cost of a run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    /// Frames that arrived.
    pub frames: usize,
    /// Time from the first to the last frame.
    pub elapsed: Duration,
    /// CPU time of the back-end.
    pub cpu: Duration,
    /// Notifications to the back-end.
    pub kicks: u64,
    /// Notifications from the back-end.
    pub calls: u64,
}

/// Sends `frames` frames: transmit keeps the card full; receive delivers bursts that wait in the interface's
/// queue until the card has buffers.
pub fn run(
    case: &Case,
    card: &mut Card,
    far: &FarEnd,
    process: &Process,
    frames: usize,
) -> Result<Cost, BenchError> {
    match case.direction {
        Direction::Tx => transmit(card, process, frames),
        Direction::Rx => Receive::new(case, card, far)?.run(process, frames),
    }
}

/// Runs `work` and measures the clocks before and after it, while the back-end sleeps.
fn measured(
    card: &mut Card,
    process: &Process,
    work: impl FnOnce(&mut Card) -> Result<(), BenchError>,
) -> Result<Cost, BenchError> {
    process.settle();
    let (kicks, _) = card.notifications();
    let (cpu, start) = (process.cpu_time()?, Instant::now());
    work(card)?;
    let elapsed = start.elapsed();
    process.settle();
    let cpu = process.cpu_time()? - cpu;
    let (after, calls) = card.notifications();
    Ok(Cost { frames: 0, elapsed, cpu, kicks: after - kicks, calls })
}

fn transmit(card: &mut Card, process: &Process, frames: usize) -> Result<Cost, BenchError> {
    let pairs = card.measured().count();
    let share = frames / pairs;
    let cost = measured(card, process, |card| {
        let mut rings: Vec<(&mut PollRing, usize, usize)> =
            card.measured().map(|ring| (ring, 0, 0)).collect();
        let mut idle = Idle::new();
        while rings.iter().any(|(_, _, done)| *done < share) {
            let mut came = 0;
            for (ring, sent, done) in &mut rings {
                *sent += ring.offer(share - *sent);
                let reaped = ring.reap();
                (*done, came) = (*done + reaped, came + reaped);
            }
            idle.poll(came, || format!("of {share} transmit chains {:?} came back", rings_done(&rings)))?;
        }
        Ok(())
    })?;
    Ok(Cost { frames: share * pairs, ..cost })
}

fn rings_done(rings: &[(&mut PollRing, usize, usize)]) -> Vec<usize> {
    rings.iter().map(|(_, _, done)| *done).collect()
}

/// Distinguishes a slow back-end from a stuck one.
struct Idle {
    last: Instant,
    polls: u32,
}

impl Idle {
    fn new() -> Idle {
        Idle { last: Instant::now(), polls: 0 }
    }

    #[inline]
    fn poll(&mut self, came: usize, what: impl FnOnce() -> String) -> Result<(), BenchError> {
        if came > 0 {
            self.polls = 0;
            return Ok(());
        }
        // Not all the time: the cache line of the index belongs to the device.
        for _ in 0..64 {
            std::hint::spin_loop();
        }
        self.polls += 1;
        if self.polls == 1 {
            self.last = Instant::now();
        } else if self.polls.is_multiple_of(4096) && self.last.elapsed() > LIMIT {
            return Err(BenchError::Wrong(format!("{} within {LIMIT:?}", what())));
        }
        Ok(())
    }
}

/// Bursts to the guest. A burst first waits in the interface; then chains for exactly its frames are made
/// available. So the back-end sleeps at the start and at the end, and works at full speed in between.
struct Receive<'a> {
    case: &'a Case,
    card: &'a mut Card,
    far: &'a FarEnd,
    /// Number of frames that each pair gets of [`FLOWS`] frames, one of each flow.
    share: Vec<usize>,
}

impl<'a> Receive<'a> {
    /// Finds out how the interface spreads flows over pairs.
    fn new(case: &'a Case, card: &'a mut Card, far: &'a FarEnd) -> Result<Receive<'a>, BenchError> {
        let per_frame = case.chains_per_frame();
        let mut receive = Receive { case, card, far, share: vec![FLOWS; case.pairs] };
        if case.pairs > 1 {
            receive.share = vec![0; case.pairs];
            let mut posted: Vec<usize> =
                receive.card.measured().map(|ring| ring.offer(FLOWS * per_frame)).collect();
            far.burst(case, FLOWS)?;
            let mut idle = Idle::new();
            while receive.share.iter().sum::<usize>() < FLOWS * per_frame {
                let mut came = 0;
                for (ring, share) in receive.card.measured().zip(&mut receive.share) {
                    let reaped = ring.reap();
                    (*share, came) = (*share + reaped, came + reaped);
                }
                idle.poll(came, || "the frames of 64 flows did not all come".to_owned())?;
            }
            posted.iter_mut().zip(&receive.share).for_each(|(posted, used)| *posted -= used);
            receive.share.iter_mut().for_each(|share| *share /= per_frame);
            receive.spend(&posted)?;
        }
        Ok(receive)
    }

    /// Uses up the available chains, so that later bursts wait.
    fn spend(&mut self, posted: &[usize]) -> Result<(), BenchError> {
        let per_frame = self.case.chains_per_frame();
        let enough = |(posted, share): (&usize, &usize)| match share {
            0 => 0,
            share => posted.div_ceil(per_frame).div_ceil(*share),
        };
        let rounds = posted.iter().zip(&self.share).map(enough).max().unwrap_or(0);
        let share = self.share.clone();
        let wanted: Vec<usize> = share.iter().map(|share| share * rounds * per_frame).collect();
        self.drain(rounds * FLOWS, posted, &wanted)
    }

    fn run(mut self, process: &Process, frames: usize) -> Result<Cost, BenchError> {
        let mut total = Cost::default();
        let burst = self.far.room().min((64 << 20) / self.case.size) / FLOWS * FLOWS;
        while total.frames < frames {
            let cost = self.burst(process, burst.min((frames - total.frames).next_multiple_of(FLOWS)))?;
            total.frames += cost.frames;
            total.elapsed += cost.elapsed;
            total.cpu += cost.cpu;
            total.kicks += cost.kicks;
            total.calls += cost.calls;
        }
        Ok(total)
    }

    fn burst(&mut self, process: &Process, frames: usize) -> Result<Cost, BenchError> {
        let per_frame = self.case.chains_per_frame();
        self.far.burst(self.case, frames)?;
        let wanted: Vec<usize> =
            self.share.iter().map(|share| share * (frames / FLOWS) * per_frame).collect();
        let before: u64 = self.card.measured().map(|ring| ring.written).sum();
        let cost =
            measured(self.card, process, |card| offer_and_reap(card, &vec![0; wanted.len()], &wanted))?;
        let written = self.card.measured().map(|ring| ring.written).sum::<u64>() - before;
        let due = (frames * (self.case.size + NET_HEADER_LEN)) as u64;
        if written != due {
            return Err(BenchError::Wrong(format!("{written} bytes came in place of {due}")));
        }
        Ok(Cost { frames, ..cost })
    }

    fn drain(&mut self, frames: usize, posted: &[usize], wanted: &[usize]) -> Result<(), BenchError> {
        self.far.burst(self.case, frames)?;
        offer_and_reap(self.card, posted, wanted)
    }
}

/// Offers chains until `wanted` (of which `posted` are already offered) have returned, on each ring.
fn offer_and_reap(card: &mut Card, posted: &[usize], wanted: &[usize]) -> Result<(), BenchError> {
    let mut left = Vec::from_iter(wanted.iter().zip(posted).map(|(wanted, posted)| wanted - posted));
    let mut due = wanted.to_vec();
    let mut idle = Idle::new();
    while due.iter().any(|due| *due > 0) {
        let mut came = 0;
        for ((ring, left), due) in card.measured().zip(&mut left).zip(&mut due) {
            *left -= ring.offer(*left);
            let reaped = ring.reap();
            (*due, came) = (*due - reaped, came + reaped);
        }
        idle.poll(came, || format!("{due:?} receive chains are due"))?;
    }
    Ok(())
}
