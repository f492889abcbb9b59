//! Network performance in a real guest: TCP each way, sequential echo requests, UDP each way, and a frame's
//! cost in exits and processor time. Also the start time and memory of a VMM.
//!
//! In each round every way to the wire gets a new guest on an equal TAP. Without KVM, QEMU emulates its
//! guests in software, and volt-vmm's run in the lab, which is itself emulated. So compare figures within one
//! VMM only.

mod meter;
mod tables;
mod way;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::time::{Duration, Instant};

use meter::{Costs, Meter};
use tables::{All, tables};
use way::Way;

use crate::bench::BenchError;
use crate::lab::guest::{Accel, Flavour, Image, Spec};
use crate::lab::process::Process;
use crate::lab::traffic::{HOST, iperf3};
use crate::lab::{inside_the_lab, isolated, kvm_is_usable, repository};

/// Time limit for a guest.
const LIMIT: Duration = Duration::from_secs(90);
/// Length of a datagram, which fits a frame.
const DATAGRAM: u16 = 1400;

/// Options of the measurement.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Guests of each kind
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=100))]
    rounds: u16,
    /// Seconds of TCP, and of UDP, each way
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=60))]
    seconds: u16,
    /// Echo requests
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    requests: u32,
    /// Queue pairs, and processors, of volt-vmm's guests
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=2))]
    queues: u16,
    /// What the guests send and receive
    #[arg(long, value_enum, default_value_t = Traffic::All)]
    traffic: Traffic,
    /// Only the ways to the wire whose name contains this; may be repeated
    #[arg(long, value_name = "PATTERN")]
    only: Vec<String>,
    /// Further options of volt-netd, separated by spaces
    #[arg(long, value_name = "OPTIONS", default_value = "", allow_hyphen_values = true)]
    netd: String,
}

/// Kinds of traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Traffic {
    /// Everything
    All,
    /// TCP and echo requests
    Tcp,
    /// UDP of 1400 bytes, without segmentation offload
    Udp,
}

impl Traffic {
    fn name(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }

    fn has(self, kind: Traffic) -> bool {
        self == Self::All || self == kind
    }
}

/// One guest's figures.
#[derive(Clone, Copy, Debug)]
struct Figures {
    start: Start,
    streams: Option<Streams>,
    udp_out: Option<Datagrams>,
    udp_in: Option<Datagrams>,
}

/// Times from the start of the VMM's process.
#[derive(Clone, Copy, Debug)]
struct Start {
    first_line: Duration,
    init: Duration,
    /// KiB that the process has resident besides its guest's memory, when init starts.
    own_memory: u64,
}

/// TCP and echo requests.
#[derive(Clone, Copy, Debug)]
struct Streams {
    out: f64,
    into: f64,
    requests: f64,
    costs_out: Costs,
    costs_in: Costs,
}

/// UDP in one direction.
#[derive(Clone, Copy, Debug)]
struct Datagrams {
    /// Datagrams a second that the receiving program got.
    rate: f64,
    /// Share of the sent datagrams that it did not get.
    lost: f64,
    /// For each frame that passed the TAP.
    costs: Costs,
}

/// Measures and prints a table.
///
/// # Errors
/// Returns an error if the lab cannot be started, or no guest could be measured.
pub fn run(options: &Options) -> Result<(), BenchError> {
    if inside_the_lab() || kvm_is_usable() {
        return measure(options, &Way::all(), Accel::Kvm);
    }
    measure(options, &Way::emulated(), Accel::Tcg)?;
    let Options { rounds, seconds, requests, queues, traffic, only, netd } = options;
    let mut lab = Command::new(repository().join("scripts/lab"));
    lab.arg(std::env::current_exe()?).args(["guests", "--rounds", &rounds.to_string()]);
    lab.args(["--seconds", &seconds.to_string(), "--requests", &requests.to_string()]);
    lab.args(["--queues", &queues.to_string(), "--traffic", traffic.name()]);
    lab.args(only.iter().flat_map(|pattern| ["--only", pattern])).args(["--netd", netd]);
    match lab.status()?.success() {
        true => Ok(()),
        false => Err(BenchError::Wrong("the lab printed no figures: see above".to_owned())),
    }
}

fn measure(options: &Options, ways: &[Way], accel: Accel) -> Result<(), BenchError> {
    let Options { rounds, only, .. } = options;
    let wanted = |way: &&Way| only.is_empty() || only.iter().any(|part| way.name().contains(part));
    let ways: Vec<Way> = ways.iter().filter(wanted).copied().collect();
    let mut all = All::new();
    for round in 1..=*rounds {
        for way in &ways {
            eprintln!("round {round} of {rounds}: {}", way.name());
            let one = || isolated("guests", || all.entry(*way).or_default().push(one(*way, options, accel)));
            // The lab's emulation sometimes hangs or resets a guest, whatever the way.
            if catch_unwind(AssertUnwindSafe(one)).is_err() {
                eprintln!("no figures of this guest: see above");
            }
        }
    }
    if all.is_empty() && !ways.is_empty() {
        return Err(BenchError::Wrong("nothing was measured: see above".to_owned()));
    }
    print!("{}", tables(&all));
    Ok(())
}

/// Boots a guest and returns its figures.
fn one(way: Way, options: &Options, accel: Accel) -> Figures {
    let Options { seconds, requests, queues, traffic, netd, .. } = options;
    let directory = tempfile::tempdir().expect("a directory");
    way.add_interface(*queues > 1);
    let _server = iperf3();
    let streams = format!(
        "speed out -P {queues} -c {HOST} -t {seconds}; speed in -P {queues} -R -c {HOST} -t {seconds}; \
         requests {HOST} {requests}"
    );
    let datagrams = format!(
        "datagrams udp_out -l {DATAGRAM} -c {HOST} -t {seconds}; \
         datagrams udp_in -l {DATAGRAM} -R -c {HOST} -t {seconds}"
    );
    let run = [(Traffic::Tcp, streams), (Traffic::Udp, datagrams)];
    let run = run.into_iter().filter(|(kind, _)| traffic.has(*kind)).map(|(_, commands)| commands);
    let run = run.collect::<Vec<_>>().join("; ");
    // The guest prints its first line as early as it can.
    let kernel_options = "earlycon=uart8250,io,0x3f8";
    let spec = Spec { flavour: Flavour::Cloud, image: Image::Vmlinux, kernel_options, ..Spec::new(&run) };
    let (netd, mut guest) = way.start(&spec, directory.path(), accel, *queues, netd);
    let start = started(&mut guest);
    guest.wait_for("VOLT ready", LIMIT);
    let meter = Meter::new(guest.id(), netd.as_ref().map(Process::id));
    let streams = traffic.has(Traffic::Tcp).then(|| {
        let ([out, ..], costs_out) = phase(&mut guest, &meter, "out");
        let ([into, ..], costs_in) = phase(&mut guest, &meter, "in");
        let ([milliseconds, ..], _) = phase(&mut guest, &meter, "requests");
        let requests = f64::from(*requests) * 1000.0 / milliseconds;
        Streams { out, into, requests, costs_out, costs_in }
    });
    let mut udp = |name| {
        traffic.has(Traffic::Udp).then(|| {
            let ([seconds, lost, all], costs) = phase(&mut guest, &meter, name);
            Datagrams { rate: (all - lost) / seconds, lost: lost / all, costs }
        })
    };
    let (udp_out, udp_in) = (udp("udp_out"), udp("udp_in"));
    guest.wait_for("VOLT exit 0", LIMIT);
    guest.wait_exit(LIMIT);
    Figures { start, streams, udp_out, udp_in }
}

/// Waits until the guest's init runs.
fn started(guest: &mut Process) -> Start {
    let begin = Instant::now();
    guest.wait_for("Linux version", LIMIT);
    let first_line = begin.elapsed();
    guest.wait_for("Run /init", LIMIT);
    let init = begin.elapsed();
    let status = std::fs::read_to_string(format!("/proc/{}/status", guest.id())).expect("a VMM that runs");
    // The guest's memory is a memfd, which the kernel counts separately.
    let own = ["RssAnon:", "RssFile:"].map(|name| {
        let kib = status.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB"));
        kib.and_then(|kib| kib.parse::<u64>().ok()).expect("resident memory")
    });
    Start { first_line, init, own_memory: own.iter().sum() }
}

/// Returns the figures that the guest reports for a phase, at most three, and the phase's costs.
fn phase(guest: &mut Process, meter: &Meter, name: &str) -> ([f64; 3], Costs) {
    guest.wait_for(&format!("VOLT {name} begin"), LIMIT);
    let before = meter.read();
    let line = guest.wait_for(&format!("VOLT {name} "), LIMIT);
    let costs = meter.read().since(before);
    let words = line.split_whitespace().skip_while(|word| *word != name).skip(1);
    let mut figures = words.map_while(|word| word.parse().ok());
    let first = figures.next().unwrap_or_else(|| panic!("'{line}' has no figure: {guest}"));
    ([first, figures.next().unwrap_or(0.0), figures.next().unwrap_or(0.0)], costs)
}
