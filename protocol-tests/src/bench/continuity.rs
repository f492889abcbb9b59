//! The interruption when volt-netd is replaced, as seen by a polling front-end.
//!
//! A card and the far end of its TAP send a numbered probe each way every 100 µs. Meanwhile a second thread
//! replaces the daemon: by a hand-over, by killing the worker of a supervisor, or by killing the daemon and
//! starting another one. The gap is the longest time between two arrivals. The numbers show lost and repeated
//! probes.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::net::RecvFlags;
use rustix::process::Signal;

use crate::bench::card::{Card, LIMIT};
use crate::bench::case::plan;
use crate::bench::event::{Event, Kind};
use crate::bench::gap_report::table;
use crate::bench::host::{FarEnd, WIRE_HEADER, add_tap};
use crate::bench::latency::{PROBE, probe};
use crate::bench::process::{Process, own_daemon};
use crate::bench::{BenchError, pin};
use crate::daemon::poll_until;
use crate::frame::NET_HEADER_LEN;
use crate::frontend::Frontend;
use crate::netns::Netns;
use crate::wire::WireError;

/// Time between two probes.
const PERIOD: Duration = Duration::from_micros(100);
/// Duration of probes before and after an event.
const MARGIN: Duration = Duration::from_millis(30);
/// Time after which a replacement has failed.
const PATIENCE: Duration = Duration::from_secs(60);
/// Offset of the number in a probe.
const NUMBER: usize = 14;
const TAP: &str = "gap0";

/// Options of the measurement.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Replacements of each kind
    #[arg(long, default_value_t = 20)]
    events: usize,
    /// Only this kind; may be repeated
    #[arg(long, value_enum)]
    only: Vec<Kind>,
    /// volt-netd to measure (default: the one beside this program)
    #[arg(long, value_name = "PATH")]
    program: Option<PathBuf>,
    /// Processor of front-end and wire
    #[arg(long, default_value_t = 0)]
    front_cpu: usize,
    /// Processor of the daemons
    #[arg(long, default_value_t = 1)]
    back_cpu: usize,
}

/// Measures every kind and returns a table.
pub fn run(options: &Options) -> Result<String, BenchError> {
    pin(options.front_cpu)?;
    let missing =
        || BenchError::Wrong("no volt-netd beside this program: build it, or use --program".to_owned());
    let program = options.program.clone().or_else(own_daemon).ok_or_else(missing)?;
    let mut rows = Vec::new();
    for kind in [Kind::None, Kind::HandOver, Kind::Crash, Kind::Restart] {
        if options.only.is_empty() || options.only.contains(&kind) {
            eprintln!("{kind:?}");
            let mut stage = Stage::new(kind, &program, options.back_cpu)?;
            let mut events = Vec::new();
            while events.len() < options.events {
                // A supervisor waits longer after each crash; a new one makes each crash the first.
                if kind == Kind::Crash && !events.is_empty() {
                    stage = Stage::new(kind, &program, options.back_cpu)?;
                }
                events.push(stage.event()?);
            }
            rows.push((kind, events));
        }
    }
    Ok(table(&rows))
}

/// The current daemon, and its kind of replacement.
struct Served<'a> {
    process: Process,
    netns: &'a Netns,
    program: PathBuf,
    dir: PathBuf,
    cpu: usize,
    kind: Kind,
}

impl Served<'_> {
    fn command(&self) -> std::process::Command {
        command(self.netns, &self.program, &self.dir, self.kind)
    }

    /// Replaces the daemon.
    fn replace(&mut self) -> Result<(), BenchError> {
        let failed = |what: &str| BenchError::Wrong(format!("{:?}: {what} within {PATIENCE:?}", self.kind));
        match self.kind {
            Kind::None => Ok(()),
            Kind::HandOver => {
                // It opens nothing and need not be in the namespace: entering it would occupy the only
                // processor.
                let mut command = std::process::Command::new(&self.program);
                command.arg("--take-over").arg(self.dir.join("control")).args(["--log-level", "warn"]);
                let successor = Process::spawn(command, self.cpu)?;
                let mut old = std::mem::replace(&mut self.process, successor);
                match old.wait(PATIENCE) {
                    Some(0) => Ok(()),
                    Some(code) => Err(BenchError::Wrong(format!("the old daemon ended with {code}, not 0"))),
                    None => Err(failed("the old daemon did not end")),
                }
            }
            Kind::Crash => {
                let worker = |process: &Process| process.children().first().copied();
                let old = worker(&self.process).ok_or_else(|| failed("no worker started"))?;
                Process::of(old)?.signal(Signal::KILL)?;
                let next = poll_until(PATIENCE, || worker(&self.process).filter(|next| *next != old));
                next.map(drop).ok_or_else(|| failed("no new worker started"))
            }
            Kind::Restart => {
                self.process.signal(Signal::KILL)?;
                self.process.wait(PATIENCE).ok_or_else(|| failed("the daemon did not die"))?;
                self.process = Process::spawn(self.command(), self.cpu)?;
                Ok(())
            }
        }
    }
}

fn command(netns: &Netns, program: &Path, dir: &Path, kind: Kind) -> std::process::Command {
    let mut command = netns.command(program);
    command.args(["--tap", TAP, "--log-level", "warn", "--socket"]).arg(dir.join("socket"));
    if matches!(kind, Kind::HandOver | Kind::Crash) {
        command.arg("--control").arg(dir.join("control"));
    }
    if kind == Kind::Crash {
        command.arg("--supervise");
    }
    command
}

/// Probes of one direction.
#[derive(Debug)]
struct Way {
    /// Number of arrivals of each probe.
    seen: Vec<u8>,
    last: Instant,
    gap: Duration,
}

impl Way {
    fn new() -> Way {
        Way { seen: Vec::new(), last: Instant::now(), gap: Duration::ZERO }
    }

    /// Returns the next number to send.
    fn next(&mut self) -> u32 {
        self.seen.push(0);
        self.seen.len() as u32 - 1
    }

    fn arrived(&mut self, bytes: &[u8]) {
        let number = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        if let Some(seen) = self.seen.get_mut(number as usize) {
            *seen = seen.saturating_add(1);
            let now = Instant::now();
            self.gap = self.gap.max(now - self.last);
            self.last = now;
        }
    }

    fn lost(&self) -> usize {
        self.seen.iter().filter(|seen| **seen == 0).count()
    }

    fn repeated(&self) -> usize {
        self.seen.iter().filter(|seen| **seen > 1).map(|seen| usize::from(*seen) - 1).sum()
    }
}

/// A daemon with its probes.
struct Stage {
    card: Card,
    far: FarEnd,
    kind: Kind,
    cpu: usize,
    program: PathBuf,
    // The daemon ends before the things it uses; only `event` takes it.
    process: Option<Process>,
    netns: Netns,
    dir: tempfile::TempDir,
}

impl Stage {
    fn new(kind: Kind, program: &Path, cpu: usize) -> Result<Stage, BenchError> {
        let (netns, dir) = (Netns::new()?, tempfile::tempdir()?);
        add_tap(&netns, TAP, false)?;
        let process =
            Process::start(command(&netns, program, dir.path(), kind), cpu, &dir.path().join("socket"))?;
        netns.wait_until_up(TAP, PATIENCE)?;
        let far = FarEnd::open(&netns, TAP, PROBE)?;
        let mut card = Card::connect(&plan()[0], &dir.path().join("socket"))?;
        for buffer in card.buffers[1].clone() {
            card.write(buffer + NET_HEADER_LEN as u64, &probe());
        }
        card.rings[0].offer(usize::MAX);
        Ok(Stage { card, far, kind, cpu, program: program.to_owned(), process: Some(process), netns, dir })
    }

    /// Sends probes, replaces the daemon meanwhile, and returns the cost.
    fn event(&mut self) -> Result<Event, BenchError> {
        let process = self.process.take().ok_or_else(|| BenchError::Wrong("no daemon".to_owned()))?;
        let done = AtomicBool::new(false);
        let mut served = Served {
            process,
            netns: &self.netns,
            program: self.program.clone(),
            dir: self.dir.path().to_owned(),
            cpu: self.cpu,
            kind: self.kind,
        };
        let (mut probes, socket) = (Probes::new(&mut self.card, &self.far), self.dir.path().join("socket"));
        let result = std::thread::scope(|scope| {
            let replacing = scope.spawn(|| {
                let result = pin(self.cpu).map_err(BenchError::from).and_then(|()| {
                    std::thread::sleep(MARGIN);
                    served.replace()
                });
                done.store(true, Ordering::Release);
                result
            });
            let probed = probes.run(&done, &socket);
            replacing.join().map_err(|_| BenchError::Wrong("replacing panicked".to_owned()))??;
            probed
        });
        self.process = Some(served.process);
        result
    }
}

/// The probes of one event.
struct Probes<'a> {
    card: &'a mut Card,
    far: &'a FarEnd,
    tx: Way,
    rx: Way,
}

impl<'a> Probes<'a> {
    fn new(card: &'a mut Card, far: &'a FarEnd) -> Probes<'a> {
        Probes { card, far, tx: Way::new(), rx: Way::new() }
    }

    /// Sends probes until the event is over and probes arrive again, then waits for the last ones.
    fn run(&mut self, done: &AtomicBool, socket: &Path) -> Result<Event, BenchError> {
        let (start, mut end, mut next) = (Instant::now(), None, Instant::now());
        let (mut stall, mut before) = (Duration::ZERO, Instant::now());
        let tried = &mut Instant::now();
        loop {
            let now = Instant::now();
            (stall, before) = (stall.max(now - before), now);
            if now - start > PATIENCE + LIMIT {
                return Err(BenchError::Wrong("probes no longer arrive".to_owned()));
            }
            if end.is_none() && done.load(Ordering::Acquire) {
                end = Some(now);
            }
            match end {
                // Both ways have had time to show that they work again.
                Some(end) if now - end > MARGIN && self.tx.last > end && self.rx.last > end + MARGIN / 2 => {
                    break;
                }
                _ if now >= next => {
                    next = now + PERIOD;
                    self.send();
                    self.mend(socket, tried)?;
                }
                _ => {}
            }
            self.receive()?;
        }
        let drained = Instant::now() + MARGIN;
        while Instant::now() < drained {
            self.receive()?;
        }
        Ok(Event {
            gaps: [self.tx.gap, self.rx.gap],
            lost: [self.tx.lost(), self.rx.lost()],
            repeated: [self.tx.repeated(), self.rx.repeated()],
            sent: [self.tx.seen.len(), self.rx.seen.len()],
            stall,
        })
    }

    fn send(&mut self) {
        // A full ring is no loss: a guest waits in that case.
        if let Some(head) = self.card.rings[1].next_free() {
            let number = self.tx.next();
            let at = self.card.buffers[1][usize::from(head)] + (NET_HEADER_LEN + NUMBER) as u64;
            self.card.write(at, &number.to_be_bytes());
            self.card.rings[1].offer(1);
        }
        let mut frame = probe();
        frame[NUMBER..NUMBER + 4].copy_from_slice(&self.rx.next().to_be_bytes());
        // An interface without a reader refuses the probe: that one is lost.
        let _ = self.far.send(&frame);
    }

    fn receive(&mut self) -> Result<(), BenchError> {
        let mut bytes = [0; 256];
        if self.far.take(&mut bytes)?.is_some() {
            self.tx.arrived(&bytes[WIRE_HEADER + NUMBER..]);
        }
        self.card.rings[1].reap();
        let mut heads = Vec::new();
        self.card.rings[0].reap_each(|head, _| heads.push(head));
        for head in heads {
            let at = self.card.buffers[0][usize::from(head)] + (NET_HEADER_LEN + NUMBER) as u64;
            self.rx.arrived(&self.card.read(at, 4));
            self.card.rings[0].offer(1);
        }
        Ok(())
    }

    /// Reconnects after the connection has ended, at most once in a millisecond.
    fn mend(&mut self, socket: &Path, tried: &mut Instant) -> Result<(), BenchError> {
        let connection = self.card.frontend.channel().socket();
        let mut byte = [0];
        let ended = match rustix::net::recv(connection, &mut byte, RecvFlags::PEEK | RecvFlags::DONTWAIT) {
            Ok((_, len)) => len == 0,
            Err(errno) => errno != rustix::io::Errno::AGAIN,
        };
        if ended && tried.elapsed() > Duration::from_millis(1) {
            *tried = Instant::now();
            if let Ok(frontend) = Frontend::connect(socket, Duration::ZERO) {
                match self.card.reconnect(frontend) {
                    // A killed process may close its connection before its listening socket: a client that
                    // reconnects at once then waits on a socket that nobody accepts from.
                    Err(BenchError::Wire(WireError::Closed(_))) => {}
                    result => result?,
                }
            }
        }
        Ok(())
    }
}
