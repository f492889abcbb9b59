//! Network performance in a real guest: TCP each way, sequential echo requests, and a frame's cost in exits.
//! Also the start time and memory of a VMM.
//!
//! In each round every way to the wire gets a new guest on an equal TAP. Without KVM, QEMU emulates its
//! guests in software, and volt-vmm's run in the lab, which is itself emulated. So compare figures within one
//! VMM only.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::bench::BenchError;
use crate::lab::guest::{Accel, Flavour, Image, QemuNet, Spec, Transport};
use crate::lab::netd::{TAP, address, ip};
use crate::lab::process::Process;
use crate::lab::traffic::{HOST, iperf3};
use crate::lab::{inside_the_lab, isolated, kvm_is_usable, program, repository};

/// Time limit for a guest.
const LIMIT: Duration = Duration::from_secs(180);
/// KVM's counters for all guests; the guest under test is the only one.
const COUNTERS: &str = "/sys/kernel/debug/kvm";

/// Options of the measurement.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Guests of each kind
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=100))]
    rounds: u16,
    /// Seconds of TCP each way
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=60))]
    seconds: u16,
    /// Echo requests
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    requests: u32,
    /// Queue pairs, and processors, of volt-vmm's guests
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=2))]
    queues: u16,
}

/// A VMM and a way to the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    QemuTap,
    QemuSocket,
    VmmSocket(Transport),
    VmmTap(Transport),
    VmmVhostNet(Transport),
}

impl Kind {
    fn name(self) -> String {
        let vmm = |way, transport: Transport| format!("volt-vmm, {way}, {}", transport.name());
        match self {
            Self::QemuTap => "QEMU, its own TAP device".into(),
            Self::QemuSocket => "QEMU, volt-netd".into(),
            Self::VmmSocket(transport) => vmm("volt-netd", transport),
            Self::VmmTap(transport) => vmm("TAP in its process", transport),
            Self::VmmVhostNet(transport) => vmm("vhost-net on the TAP", transport),
        }
    }

    /// Returns the kinds that use volt-vmm.
    fn vmm() -> impl Iterator<Item = Kind> {
        [Self::VmmSocket, Self::VmmTap, Self::VmmVhostNet]
            .into_iter()
            .flat_map(|kind| [Transport::Mmio, Transport::Pci].map(kind))
    }
}

/// One guest's figures.
#[derive(Clone, Copy, Debug)]
struct Figures {
    start: Start,
    out: f64,
    into: f64,
    requests: f64,
    events_out: Option<Events>,
    events_in: Option<Events>,
}

/// Times from the start of the VMM's process.
#[derive(Clone, Copy, Debug)]
struct Start {
    first_line: Duration,
    init: Duration,
    /// KiB that the process has resident besides its guest's memory, when init starts.
    own_memory: u64,
}

/// Counts for each frame.
#[derive(Clone, Copy, Debug)]
struct Events {
    exits: f64,
    interrupts: f64,
}

/// Measures and prints a table.
///
/// # Errors
/// Returns an error if the lab cannot be started, or a file that guests need is missing.
///
/// # Panics
/// If a guest does not boot or does not reach the host.
pub fn run(options: &Options) -> Result<(), BenchError> {
    if inside_the_lab() || kvm_is_usable() {
        let all: Vec<_> = [Kind::QemuTap, Kind::QemuSocket].into_iter().chain(Kind::vmm()).collect();
        return measure(options, &all, Accel::Kvm);
    }
    measure(options, &[Kind::QemuTap, Kind::QemuSocket], Accel::Tcg)?;
    let Options { rounds, seconds, requests, queues } = options;
    let mut lab = Command::new(repository().join("scripts/lab"));
    lab.arg(std::env::current_exe()?).args(["guests", "--rounds", &rounds.to_string()]);
    lab.args(["--seconds", &seconds.to_string(), "--requests", &requests.to_string()]);
    lab.args(["--queues", &queues.to_string()]);
    match lab.status()?.success() {
        true => Ok(()),
        false => Err(BenchError::Wrong("the lab printed no figures: see above".to_owned())),
    }
}

fn measure(options: &Options, kinds: &[Kind], accel: Accel) -> Result<(), BenchError> {
    let mut all: BTreeMap<Kind, Vec<Figures>> = BTreeMap::new();
    for round in 1..=options.rounds {
        for kind in kinds {
            eprintln!("round {round} of {}: {}", options.rounds, kind.name());
            isolated("guests", || all.entry(*kind).or_default().push(one(*kind, options, accel)));
        }
    }
    if all.is_empty() {
        return Err(BenchError::Wrong("nothing was measured: see above".to_owned()));
    }
    print!("{}", table(&all));
    Ok(())
}

/// Boots a guest and returns its figures.
fn one(kind: Kind, options: &Options, accel: Accel) -> Figures {
    let Options { seconds, requests, queues, .. } = options;
    let directory = tempfile::tempdir().expect("a directory");
    let several = (*queues > 1).then_some("multi_queue");
    ip(&[&["tuntap", "add", TAP, "mode", "tap"][..], several.as_slice()].concat());
    address(TAP);
    let _server = iperf3();
    let run = format!(
        "speed out -P {queues} -c {HOST} -t {seconds}; speed in -P {queues} -R -c {HOST} -t {seconds}; \
         requests {HOST} {requests}"
    );
    // The guest prints its first line as early as it can.
    let kernel_options = "earlycon=uart8250,io,0x3f8";
    let spec = Spec { flavour: Flavour::Cloud, image: Image::Vmlinux, kernel_options, ..Spec::new(&run) };
    let (_netd, mut guest) = start(kind, &spec, directory.path(), accel, *queues);
    let start = started(&mut guest);
    let (out, events_out) = phase(&mut guest, "out");
    let (into, events_in) = phase(&mut guest, "in");
    let (milliseconds, _) = phase(&mut guest, "requests");
    guest.wait_for("VOLT exit 0", LIMIT);
    guest.wait_exit(LIMIT);
    Figures {
        start,
        out,
        into,
        requests: f64::from(*requests) * 1000.0 / milliseconds,
        events_out,
        events_in,
    }
}

fn start(kind: Kind, spec: &Spec, directory: &Path, accel: Accel, queues: u16) -> (Option<Process>, Process) {
    let socket = directory.join("net.sock");
    let netd = matches!(kind, Kind::QemuSocket | Kind::VmmSocket(_)).then(|| {
        let mut command = Command::new(program("volt-netd"));
        let mut netd = Process::start(
            "volt-netd",
            command.args(["--queues", &queues.to_string(), "--tap", TAP, "--socket"]).arg(&socket),
        );
        netd.wait_for("listening on", LIMIT);
        netd
    });
    // Emulated QEMU 7.2 crashes with MSI-X and vhost-user; for a fair comparison its own device has none
    // either.
    let properties = if accel == Accel::Tcg { "vectors=0" } else { "vectors=3" }.to_owned();
    let mut command = match kind {
        Kind::QemuTap => spec.qemu(accel, &QemuNet::Tap { name: TAP.into(), properties }),
        Kind::QemuSocket => spec.qemu(accel, &QemuNet::VhostUser { socket, pairs: 1, properties }),
        Kind::VmmSocket(transport) => Spec { transport, ..spec.clone() }.vmm(&socket, queues),
        Kind::VmmTap(transport) => {
            Spec { transport, ..spec.clone() }.vmm_net(&[&format!("tap={TAP},queues={queues}")])
        }
        Kind::VmmVhostNet(transport) => Spec { transport, ..spec.clone() }
            .vmm_net(&[&format!("tap={TAP},queues={queues},vhost-net=require")]),
    };
    (netd, Process::start("the guest", &mut command))
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

/// Returns one figure of the guest, and KVM's counts for each frame of the TAP meanwhile.
fn phase(guest: &mut Process, name: &str) -> (f64, Option<Events>) {
    guest.wait_for(&format!("VOLT {name} begin"), LIMIT);
    let before = (counters(), frames());
    let line = guest.wait_for(&format!("VOLT {name} "), LIMIT);
    let after = (counters(), frames());
    let words = line.split_whitespace().skip_while(|word| *word != name);
    let figure = words.skip(1).find_map(|word| word.parse().ok());
    let figure = figure.unwrap_or_else(|| panic!("'{line}' has no figure: {guest}"));
    let frames = after.1 - before.1;
    let events = before.0.zip(after.0).map(|(before, after)| Events {
        exits: (after.exits - before.exits) / frames,
        interrupts: (after.interrupts - before.interrupts) / frames,
    });
    (figure, events)
}

/// Returns KVM's counts so far, where available.
fn counters() -> Option<Events> {
    let read = |name| std::fs::read_to_string(format!("{COUNTERS}/{name}")).ok()?.trim().parse().ok();
    Some(Events { exits: read("exits")?, interrupts: read("irq_injections")? })
}

/// Returns the TAP's frames, both ways.
fn frames() -> f64 {
    let output = Command::new("ip").args(["-s", "-j", "link", "show", "dev", TAP]).output().expect("ip");
    let links: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let count = |way: &str| links[0]["stats64"][way]["packets"].as_f64().expect("the interface's counters");
    count("rx") + count("tx")
}

/// Formats median, minimum and maximum.
fn spread(values: impl Iterator<Item = f64>, digits: usize) -> String {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    match (values.first(), values.get(values.len() / 2), values.last()) {
        (Some(least), Some(median), Some(most)) => {
            format!("{median:.digits$} ({least:.digits$}-{most:.digits$})")
        }
        _ => "-".to_owned(),
    }
}

fn table(all: &BTreeMap<Kind, Vec<Figures>>) -> String {
    let mut text = String::from(
        "| guest | TCP out, Mbit/s | TCP in, Mbit/s | echo requests/s | exits a frame, out | in | \
         interrupts a frame, out | in |\n|---|---:|---:|---:|---:|---:|---:|---:|\n",
    );
    for (kind, figures) in all {
        let column =
            |of: &dyn Fn(&Figures) -> Option<f64>, digits| spread(figures.iter().filter_map(of), digits);
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {} | {} |",
            kind.name(),
            column(&|one| Some(one.out), 0),
            column(&|one| Some(one.into), 0),
            column(&|one| Some(one.requests), 0),
            column(&|one| Some(one.events_out?.exits), 2),
            column(&|one| Some(one.events_in?.exits), 2),
            column(&|one| Some(one.events_out?.interrupts), 3),
            column(&|one| Some(one.events_in?.interrupts), 3),
        );
    }
    text.push_str(
        "\n| guest | to the first line, ms | to init, ms | memory beside the guest's, KiB |\n\
         |---|---:|---:|---:|\n",
    );
    for (kind, figures) in all {
        let column = |of: &dyn Fn(&Start) -> f64| spread(figures.iter().map(|one| of(&one.start)), 0);
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} |",
            kind.name(),
            column(&|start| start.first_line.as_secs_f64() * 1000.0),
            column(&|start| start.init.as_secs_f64() * 1000.0),
            column(&|start| start.own_memory as f64),
        );
    }
    text
}
