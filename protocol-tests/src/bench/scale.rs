//! Many daemons on one host: the cost of each with all that an operator enables (supervisor, sandbox,
//! metrics, control socket).
//!
//! Each daemon has a TAP in one shared namespace. The order of measurements: start time of all; memory and
//! descriptors before and in a session with a scripted front-end; wake-ups at idle; CPU time of light traffic
//! through all of them at once.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::bench::BenchError;
use crate::bench::process::{Process, own_daemon};
use crate::frame::{NetHeader, numbered};
use crate::frontend::Frontend;
use crate::netns::{Netns, TapWire};
use crate::rig::LIMIT;
use crate::session::{Session, Setup};

/// Bytes of a frame.
const FRAME: usize = 500;
/// Time before the first measurement, for the host's own frames on its new interfaces.
const SETTLE: Duration = Duration::from_secs(3);

/// Options of the measurement.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Number of daemons
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=500))]
    daemons: u16,
    /// Seconds at idle, and seconds with traffic
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=600))]
    seconds: u16,
    /// Frames a second each way for each daemon
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=1000))]
    frames: u16,
    /// volt-netd to measure (default: the one beside this program)
    #[arg(long, value_name = "PATH")]
    program: Option<PathBuf>,
    /// Arguments of each daemon, instead of '--supervise --metrics unix:...'
    #[arg(long, value_name = "ARGUMENTS", allow_hyphen_values = true)]
    arguments: Option<String>,
}

/// One daemon, with its processes.
struct Daemon {
    process: Process,
    socket: PathBuf,
    tap: String,
}

/// The resources of processes, in KiB and numbers.
#[derive(Clone, Copy, Default)]
struct Use {
    private: u64,
    proportional: u64,
    descriptors: u64,
    threads: u64,
}

impl Daemon {
    fn pids(&self) -> Vec<u32> {
        std::iter::once(self.process.pid()).chain(self.process.children()).collect()
    }
}

/// Sums over all processes of all daemons.
fn sum(daemons: &[Daemon], of: impl Fn(u32) -> Result<u64, BenchError>) -> Result<u64, BenchError> {
    daemons.iter().flat_map(Daemon::pids).map(of).sum()
}

/// Sums the numbers of `fields` in a file of /proc/PID.
fn fields(pid: u32, file: &str, fields: &[&str]) -> Result<u64, BenchError> {
    let text = fs::read_to_string(format!("/proc/{pid}/{file}"))?;
    let number = |line: &str| {
        let (name, rest) = line.split_once(':')?;
        fields.contains(&name).then(|| rest.split_whitespace().next()?.parse::<u64>().ok())?
    };
    Ok(text.lines().filter_map(number).sum())
}

fn usage(daemons: &[Daemon]) -> Result<Use, BenchError> {
    let memory = |names: &'static [&str]| move |pid| fields(pid, "smaps_rollup", names);
    let entries =
        |what: &'static str| move |pid: u32| Ok(fs::read_dir(format!("/proc/{pid}/{what}"))?.count() as u64);
    Ok(Use {
        private: sum(daemons, memory(&["Private_Clean", "Private_Dirty"]))?,
        proportional: sum(daemons, memory(&["Pss"]))?,
        descriptors: sum(daemons, entries("fd"))?,
        threads: sum(daemons, entries("task"))?,
    })
}

/// Sums over all threads.
fn of_threads(
    daemons: &[Daemon],
    of: impl Fn(u32, &str) -> Result<u64, BenchError>,
) -> Result<u64, BenchError> {
    sum(daemons, |pid| {
        let tasks = fs::read_dir(format!("/proc/{pid}/task"))?.flatten();
        tasks.map(|task| of(pid, &format!("task/{}", task.file_name().display()))).sum()
    })
}

/// Returns the number of waits of all threads: each wake-up ends in another wait.
fn waits(daemons: &[Daemon]) -> Result<u64, BenchError> {
    of_threads(daemons, |pid, task| fields(pid, &format!("{task}/status"), &["voluntary_ctxt_switches"]))
}

/// Returns CPU time in nanoseconds, from the scheduler and not by ticks (`sched-stats.rst`).
fn busy(daemons: &[Daemon]) -> Result<u64, BenchError> {
    of_threads(daemons, |pid, task| {
        let text = fs::read_to_string(format!("/proc/{pid}/{task}/schedstat"))?;
        let time = text.split_whitespace().next().and_then(|time| time.parse().ok());
        time.ok_or_else(|| wrong("the kernel has no schedstat"))
    })
}

/// Measures and returns a table.
///
/// # Errors
///
/// Returns an error if a daemon does not start or loses a frame.
pub fn run(options: &Options) -> Result<String, BenchError> {
    let program = options.program.clone().or_else(own_daemon);
    let program =
        program.ok_or_else(|| wrong("no volt-netd beside this program: build it, or use --program"))?;
    let netns = Netns::new()?;
    let dir = tempfile::tempdir()?;
    for number in 0..options.daemons {
        netns.add_tap(&format!("scale{number}"), false)?;
        netns.ip(&format!("link set dev scale{number} arp off multicast off up"))?;
    }
    let start = Instant::now();
    let mut daemons = Vec::new();
    for number in 0..options.daemons {
        let (tap, socket) = (format!("scale{number}"), dir.path().join(format!("s{number}")));
        let mut command = netns.command(&program);
        command.args(["--log-level", "warn", "--tap", &tap, "--socket"]).arg(&socket);
        command.arg("--control").arg(dir.path().join(format!("c{number}")));
        match &options.arguments {
            Some(arguments) => command.args(arguments.split_whitespace()),
            None => {
                let metrics = format!("unix:{}", dir.path().join(format!("m{number}")).display());
                command.args(["--supervise", "--metrics", &metrics])
            }
        };
        daemons.push(Daemon { process: Process::unbound(command)?, socket, tap });
    }
    for daemon in &daemons {
        Frontend::connect(&daemon.socket, LIMIT)?.sync()?;
    }
    let started = start.elapsed();
    std::thread::sleep(SETTLE);
    let alone = usage(&daemons)?;
    let mut guests = connect(&netns, &daemons)?;
    std::thread::sleep(SETTLE);
    let in_session = usage(&daemons)?;

    let time = Duration::from_secs(options.seconds.into());
    let before = waits(&daemons)?;
    std::thread::sleep(time);
    let wakeups = waits(&daemons)? - before;
    let before = busy(&daemons)?;
    let frames = exchange(&mut guests, time, options.frames.into())?;
    let busy = (busy(&daemons)? - before) as f64 / 1e9;
    drop(guests);
    end(&mut daemons)?;

    let count = f64::from(options.daemons);
    let each = |total: u64| total as f64 / count;
    let mut table = String::from("| | no front-end | in session |\n|---|---|---|\n");
    for (what, get) in [
        ("private memory, KiB each", (|used| used.private) as fn(&Use) -> u64),
        ("proportional memory, KiB each", |used| used.proportional),
        ("descriptors each", |used| used.descriptors),
        ("threads each", |used| used.threads),
    ] {
        let _ = writeln!(table, "| {what} | {:.0} | {:.0} |", each(get(&alone)), each(get(&in_session)));
    }
    let _ = writeln!(
        table,
        "\n{} daemons: all started in {} ms; {:.2} wake-ups a second of all while nothing happens;\n\
         {frames} frames in {} s take {:.2} % of a processor, {:.1} µs each",
        options.daemons,
        started.as_millis(),
        wakeups as f64 / time.as_secs_f64(),
        time.as_secs(),
        100.0 * busy / time.as_secs_f64(),
        1e6 * busy / frames as f64,
    );
    Ok(table)
}

/// Ends all daemons in order.
fn end(daemons: &mut [Daemon]) -> Result<(), BenchError> {
    daemons.iter().try_for_each(|daemon| daemon.process.signal(Signal::TERM))?;
    let ended = |daemon: &mut Daemon| daemon.process.wait(LIMIT) == Some(0);
    if daemons.iter_mut().all(ended) { Ok(()) } else { Err(wrong("a daemon did not end in order")) }
}

/// Connects a front-end to each daemon, and opens the far end of its TAP.
fn connect(netns: &Netns, daemons: &[Daemon]) -> Result<Vec<(Session, TapWire)>, BenchError> {
    let guest = |daemon: &Daemon| {
        let failed = |error| BenchError::Wrong(format!("{}: {error}", daemon.tap));
        let frontend = Frontend::connect(&daemon.socket, LIMIT)?;
        let mut session =
            Session::start(frontend, &Setup::default()).map_err(|error| failed(error.to_string()))?;
        session.rx(0).fill(64, &[2048]).map_err(|error| failed(error.to_string()))?;
        session.frontend.sync()?;
        Ok((session, netns.wire(&daemon.tap)?))
    };
    daemons.iter().map(guest).collect()
}

/// Sends `rate` frames a second each way on all daemons, and compares the arriving frames. Returns their
/// number.
fn exchange(guests: &mut [(Session, TapWire)], time: Duration, rate: u32) -> Result<u64, BenchError> {
    let (start, mut frames) = (Instant::now(), 0);
    for number in 0.. {
        let due = start + Duration::from_secs(1) * number / rate;
        if due >= start + time {
            break;
        }
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let frame = numbered(number, FRAME);
        for (session, wire) in &mut *guests {
            session.tx(0).offer(&NetHeader::default(), &frame, &[]).map_err(wrong)?;
            session.tx(0).kick().map_err(wrong)?;
            wire.send(&frame)?;
        }
        for (session, wire) in &mut *guests {
            session.tx(0).used(LIMIT).map_err(wrong)?;
            let out = wire.recv(LIMIT)?.map(|(_, bytes)| bytes);
            let into = session.rx(0).recv(LIMIT).map_err(wrong)?.bytes;
            if out.as_ref() != Some(&frame) || into != frame {
                return Err(BenchError::Wrong(format!("frame {number} did not arrive unchanged")));
            }
            frames += 2;
        }
    }
    Ok(frames)
}

fn wrong(error: impl std::fmt::Display) -> BenchError {
    BenchError::Wrong(error.to_string())
}
