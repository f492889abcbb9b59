//! All cases, in interleaved rounds: each round measures every case once, directly after its own floor.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::bench::card::Card;
use crate::bench::case::{Case, Direction};
use crate::bench::floor::{Floor, Shape};
use crate::bench::host::{FarEnd, add_tap, frames_taken};
use crate::bench::latency::{self, Times};
use crate::bench::process::{Process, own_daemon, shell};
use crate::bench::run::{Cost, run};
use crate::bench::{BenchError, pin};
use crate::netns::Netns;

/// The measured back-end.
#[derive(Clone, Debug)]
pub enum Target {
    /// volt-netd beside this program.
    Own,
    /// A shell command, see [`shell`].
    Command(String),
    /// A listening back-end, its process, and its TAP in this network namespace.
    Running {
        /// Its socket.
        socket: PathBuf,
        /// Its process.
        pid: u32,
        /// Its interface.
        tap: String,
    },
}

/// Options of the measurement.
#[derive(Clone, Debug)]
pub struct Options {
    /// The back-end.
    pub target: Target,
    /// The cases to measure.
    pub cases: Vec<Case>,
    /// Repetitions of everything.
    pub rounds: usize,
    /// Processor of the front-end and the wire.
    pub front_cpu: usize,
    /// Processor of the back-end and the floor's loops.
    pub back_cpu: usize,
    /// Probes each way in a round.
    pub probes: usize,
}

/// One case in one round; times in nanoseconds of CPU time per frame.
#[derive(Clone, Copy, Debug)]
pub struct Round {
    /// The back-end.
    pub cost: Cost,
    /// Bare loop with the back-end's iovecs.
    pub same: f64,
    /// Bare loop over one buffer.
    pub best: f64,
}

impl Round {
    /// Returns the CPU time of the back-end per frame, in nanoseconds.
    pub fn cpu(&self) -> f64 {
        self.cost.cpu.as_nanos() as f64 / self.cost.frames as f64
    }
}

/// All results.
#[derive(Debug, Default)]
pub struct Results {
    /// Case by case, round by round.
    pub cases: Vec<(Case, Vec<Round>, Option<f64>)>,
    /// Latencies, round by round: floor at idle, back-end at idle, back-end behind a full ring.
    pub latency: Vec<[Times; 3]>,
    /// Milliseconds from the start of the back-end's command to its first answer.
    pub startup_ms: Vec<f64>,
    /// Resident memory in KiB by number of pairs: total and private, in a session.
    pub resident: BTreeMap<usize, (u64, u64)>,
}

/// A back-end with its TAP.
#[derive(Debug)]
struct Bed {
    // Ends before the namespace and the directory.
    process: Process,
    far: FarEnd,
    probes: FarEnd,
    tap: String,
    socket: PathBuf,
    netns: Netns,
    _dir: Option<tempfile::TempDir>,
}

impl Bed {
    fn new(options: &Options, pairs: usize) -> Result<Bed, BenchError> {
        let (netns, tap, socket, dir, process) = match &options.target {
            Target::Running { socket, pid, tap } => {
                (Netns::here()?, tap.clone(), socket.clone(), None, Process::of(*pid)?)
            }
            started => {
                let (netns, tap) = (Netns::new()?, format!("bench{pairs}"));
                add_tap(&netns, &tap, pairs > 1)?;
                let dir = tempfile::tempdir()?;
                let socket = dir.path().join("s");
                let process = start(&netns, started, options.back_cpu, &socket, &tap, pairs)?;
                (netns, tap, socket, Some(dir), process)
            }
        };
        netns.wait_until_up(&tap, super::card::LIMIT)?;
        let far = FarEnd::open(&netns, &tap, 0)?;
        let probes = FarEnd::open(&netns, &tap, latency::PROBE)?;
        Ok(Bed { process, far, probes, tap, socket, netns, _dir: dir })
    }
}

/// Starts the back-end of `target` in `netns`.
pub fn start(
    netns: &Netns,
    target: &Target,
    cpu: usize,
    socket: &Path,
    tap: &str,
    pairs: usize,
) -> Result<Process, BenchError> {
    let missing =
        || BenchError::Wrong("no volt-netd beside this program: build it, or use --command".to_owned());
    let text = match target {
        Target::Command(text) => text.clone(),
        _ => {
            let program = own_daemon().ok_or_else(missing)?;
            format!(
                "{} --tap {{tap}} --queues {{queues}} --socket {{socket}} --log-level warn",
                program.display()
            )
        }
    };
    let mut command = netns.command("sh");
    command.arg("-c").arg(shell(&text, socket, tap, pairs));
    Process::start(command, cpu, socket)
}

/// Returns the frames of one run: enough for the clocks, few enough for a round of a second or two.
pub fn frames(case: &Case) -> usize {
    let few = match case.size {
        0..=1500 => 1,
        1501..=9014 => 4,
        _ => 16,
    };
    match case.direction {
        Direction::Tx => 200_000 / few,
        Direction::Rx => 40_000 / few,
    }
}

/// Measures all cases; calls `progress` with each next step.
pub fn measure(options: &Options, mut progress: impl FnMut(&str)) -> Result<Results, BenchError> {
    pin(options.front_cpu)?;
    let floor = Floor::new(options.back_cpu)?;
    let mut beds = BTreeMap::new();
    let cases = options.cases.iter().map(|case| (*case, Vec::new(), None)).collect();
    let mut results = Results { cases, ..Results::default() };
    for pairs in options.cases.iter().map(|case| case.pairs) {
        if let std::collections::btree_map::Entry::Vacant(entry) = beds.entry(pairs) {
            entry.insert(Bed::new(options, pairs)?);
        }
    }
    for (case, _, calls) in &mut results.cases {
        progress(&format!("checking {}", case.name()));
        *calls = warm_up(case, &beds[&case.pairs])?;
    }
    for round in 1..=options.rounds {
        for (case, rounds, _) in &mut results.cases {
            progress(&format!("round {round} of {}: {}", options.rounds, case.name()));
            rounds.push(one(case, &floor, &beds[&case.pairs])?);
        }
        if let Some(bed) = beds.get(&1).filter(|_| options.probes > 0) {
            progress(&format!("round {round} of {}: latency", options.rounds));
            results.latency.push(latencies(options, &floor, bed)?);
        }
    }
    for (pairs, bed) in &beds {
        let case = options.cases.iter().find(|case| case.pairs == *pairs);
        let _session = case.map(|case| Card::connect(case, &bed.socket)).transpose()?;
        results.resident.insert(*pairs, bed.process.resident()?);
    }
    drop(beds);
    if !matches!(options.target, Target::Running { .. }) {
        progress("start-up");
        for _ in 0..options.rounds {
            let startup = Bed::new(options, 1)?.process.startup;
            results.startup_ms.extend(startup.map(|time| time.as_secs_f64() * 1e3));
        }
    }
    Ok(results)
}

/// Runs briefly to check that every frame arrives; then runs under strace to count system calls per frame.
fn warm_up(case: &Case, bed: &Bed) -> Result<Option<f64>, BenchError> {
    let mut card = Card::connect(case, &bed.socket)?;
    let before = frames_taken(&bed.netns, &bed.tap)?;
    let sent = run(case, &mut card, &bed.far, &bed.process, 2048)?.frames as u64;
    let after = frames_taken(&bed.netns, &bed.tap)?;
    if case.direction == Direction::Tx && after - before != sent {
        return Err(BenchError::Wrong(format!(
            "{}: {sent} frames sent, {} arrived",
            case.name(),
            after - before
        )));
    }
    let mut frames = 0;
    let calls = bed.process.system_calls(|| {
        frames = run(case, &mut card, &bed.far, &bed.process, 8192)?.frames;
        Ok(())
    })?;
    Ok(calls.filter(|_| frames > 0).map(|calls| calls as f64 / frames as f64))
}

fn one(case: &Case, floor: &Floor, bed: &Bed) -> Result<Round, BenchError> {
    let count = frames(case);
    let same = floor.measure(case, Shape::Same, count)?.as_nanos() as f64;
    let mut card = Card::connect(case, &bed.socket)?;
    // The first frames after a start find cold caches and untouched pages.
    run(case, &mut card, &bed.far, &bed.process, 2 * usize::from(case.ring))?;
    let cost = run(case, &mut card, &bed.far, &bed.process, count)?;
    drop(card);
    let best = floor.measure(case, Shape::Best, count)?.as_nanos() as f64;
    Ok(Round { cost, same, best })
}

fn latencies(options: &Options, floor: &Floor, bed: &Bed) -> Result<[Times; 3], BenchError> {
    let bare = latency::floor(floor, options.back_cpu, options.probes)?;
    let case = Case { direction: Direction::Tx, size: 64, ..crate::bench::case::plan()[0] };
    let mut card = Card::connect(&case, &bed.socket)?;
    let idle = latency::through(&mut card, &bed.probes, options.probes, false)?;
    let load = latency::through(&mut card, &bed.probes, options.probes / 4, true)?;
    Ok([bare, idle, load])
}
