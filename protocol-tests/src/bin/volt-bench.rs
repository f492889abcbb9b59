//! `volt-bench`: the cost of a frame in a vhost-user-net back-end, beside the floor of the same run.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use protocol_tests::bench::case::{Case, plan};
use protocol_tests::bench::suite::{Options, Target, measure};
use protocol_tests::bench::{
    BenchError, continuity, filtered, guests, migration, peers, plot, report, scale, xdp, xdp_loop,
};

#[derive(Parser)]
#[command(version, about = "Measures a vhost-user-net back-end beside the bare system calls that it needs")]
struct Cli {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// CPU time per frame, rates, latency, memory
    Frames(Frames),
    /// Interruption when volt-netd is replaced, as seen by a polling front-end
    Continuity(continuity::Options),
    /// The back-end's share of a live migration's downtime
    Migration(migration::Options),
    /// CPU time per frame with the guard and with a policy
    Filter(filtered::Options),
    /// CPU time per frame by AF_XDP, beside a bare loop and a TAP
    Xdp(filtered::Options),
    /// The bare loop of 'xdp', on descriptors of 'volt-netd xdp-helper'
    XdpLoop(xdp_loop::Options),
    /// CPU time of ports to peers, and of two guests that are each other's peer
    Peers(peers::Options),
    /// Start time, memory, wake-ups and CPU time of many daemons
    Scale(scale::Options),
    /// TCP, requests and UDP of real guests, and what a frame costs, for each way to the wire
    Guests(guests::Options),
}

#[derive(Args)]
struct Frames {
    /// Shell command of the back-end; {socket}, {tap} and {queues} are replaced (default: the volt-netd
    /// beside this program)
    #[arg(long)]
    command: Option<String>,
    /// Socket of a running back-end, whose TAP is in this network namespace
    #[arg(long, value_name = "PATH", conflicts_with = "command", requires = "pid", requires = "tap")]
    socket: Option<PathBuf>,
    /// Process ID of the running back-end
    #[arg(long)]
    pid: Option<u32>,
    /// TAP of the running back-end
    #[arg(long)]
    tap: Option<String>,
    /// Number of rounds
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: u16,
    /// Only the case of this name, or those whose name contains it; may be repeated
    #[arg(long, value_name = "PATTERN")]
    only: Vec<String>,
    /// List the cases
    #[arg(long)]
    list: bool,
    /// Latency probes each way in a round; 0 skips latency
    #[arg(long, default_value_t = 2000)]
    probes: usize,
    /// Processor of front-end and wire
    #[arg(long, default_value_t = 0)]
    front_cpu: usize,
    /// Processor of the back-end and the floor's loops
    #[arg(long, default_value_t = 1)]
    back_cpu: usize,
    /// Write the results to a file as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a plot to a file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

fn main() -> ExitCode {
    let result = match Cli::parse().what {
        What::Frames(frames) => run(&frames),
        What::Guests(options) => guests::run(&options),
        What::Migration(options) => migration::run(&options).map(|table| print!("{table}")),
        What::Filter(options) => filtered::run(&options).map(|table| print!("{table}")),
        What::Xdp(options) => xdp::run(&options).map(|table| print!("{table}")),
        What::XdpLoop(options) => xdp_loop::run(&options),
        What::Peers(options) => peers::run(&options).map(|table| print!("{table}")),
        What::Scale(options) => scale::run(&options).map(|table| print!("{table}")),
        What::Continuity(options) => continuity::run(&options).map(|table| print!("{table}")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("volt-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(frames: &Frames) -> Result<(), BenchError> {
    // A complete name selects that case alone.
    let named = |part: &String| plan().iter().any(|case| case.name() == *part);
    let means = |part: &String, case: &Case| match named(part) {
        true => case.name() == *part,
        false => case.name().contains(part.as_str()),
    };
    let fits = |case: &Case| {
        let single = frames.socket.is_none() || case.pairs == 1;
        single && (frames.only.is_empty() || frames.only.iter().any(|part| means(part, case)))
    };
    let cases: Vec<Case> = plan().into_iter().filter(fits).collect();
    if frames.list {
        cases.iter().for_each(|case| println!("{}", case.name()));
        return Ok(());
    }
    let target = match (&frames.socket, frames.pid, &frames.tap, &frames.command) {
        (Some(socket), Some(pid), Some(tap), _) => {
            Target::Running { socket: socket.clone(), pid, tap: tap.clone() }
        }
        (.., Some(command)) if command.contains("{socket}") => Target::Command(command.clone()),
        (.., Some(_)) => return Err(BenchError::Wrong("--command names no {socket}".to_owned())),
        _ => Target::Own,
    };
    let options = Options {
        target,
        cases,
        rounds: frames.rounds.into(),
        front_cpu: frames.front_cpu,
        back_cpu: frames.back_cpu,
        probes: frames.probes,
    };
    let results = measure(&options, |text| eprintln!("{text}"))?;
    print!("{}", report::table(&results));
    let write = |path: &Option<PathBuf>, text: String| {
        path.as_deref().map_or(Ok(()), |path: &Path| std::fs::write(path, text))
    };
    write(&frames.json, format!("{:#}\n", report::json(&results)))?;
    write(&frames.svg, plot::svg(&results))?;
    Ok(())
}
