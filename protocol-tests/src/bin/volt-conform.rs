//! `volt-conform`: plays a front-end against any vhost-user-net back-end, or a back-end against any
//! front-end, and checks it against the specifications.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use protocol_tests::conform::frontend::{self as front, Stage};
use protocol_tests::conform::random::session;
use protocol_tests::conform::run::{Outcome, Subject, Target, Wire};
use protocol_tests::conform::sections::titles;
use protocol_tests::conform::{Check, catalogue, report};

#[derive(Parser)]
#[command(version, about = "Checks vhost-user-net back-ends and front-ends against the specifications")]
struct Cli {
    #[command(subcommand)]
    role: Role,
}

#[derive(Subcommand)]
enum Role {
    /// Play a front-end against a back-end. Exit status: 0 nothing failed, 1 something failed, 2 wrong usage
    Backend(Backend),
    /// Play random sessions against a back-end; a seed determines the steps and their expected results. Exit
    /// status as for 'backend'
    Random(Random),
    /// Play back-ends against a front-end. Exit status as for 'backend'
    Frontend(Frontend),
}

#[derive(Args)]
struct Frontend {
    /// Shell command that starts the front-end in the foreground; {socket} is its back-end's socket, {guest}
    /// a kernel (vmlinux with PVH entry, for virtio-mmio) whose guest echoes frames
    #[arg(long)]
    command: Option<String>,
    /// The command's own guest echoes frames
    #[arg(long)]
    echo: bool,
    #[command(flatten)]
    common: Common,
}

#[derive(Args)]
struct Common {
    /// Only checks whose name contains this; may be repeated
    #[arg(long, value_name = "PATTERN")]
    only: Vec<String>,
    /// List the checks with level and needs
    #[arg(long)]
    list: bool,
    /// Print a check's promise, level and source
    #[arg(long, value_name = "NAME")]
    explain: Option<String>,
    /// Print the results as JSON instead of the table
    #[arg(long)]
    json: bool,
    /// Also write the results to a JUnit file
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
}

#[derive(Args)]
struct Random {
    #[command(flatten)]
    place: Place,
    /// Seed of the first session
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Number of sessions, each with the next seed
    #[arg(long, default_value_t = 100)]
    count: u64,
}

#[derive(Args)]
struct Backend {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    common: Common,
}

/// The location of the back-end and its far side.
#[derive(Args)]
struct Place {
    /// Socket of a running back-end; it must serve more than one connection
    #[arg(long, value_name = "PATH", conflicts_with = "command")]
    socket: Option<PathBuf>,
    /// Shell command that starts the back-end in the foreground: once for each check, and for each connection
    /// if it serves only one; {socket} is the socket to listen on
    #[arg(long)]
    command: Option<String>,
    /// The back-end returns each frame on the receive queue of its pair
    #[arg(long, conflicts_with_all = ["wire", "tap"])]
    echo: bool,
    /// Interface of this network namespace where the back-end's frames leave (needs root)
    #[arg(long, value_name = "IFACE", conflicts_with = "tap")]
    wire: Option<String>,
    /// Make a network namespace with a TAP of this name, and run the command in it
    #[arg(long, value_name = "NAME", requires = "command", conflicts_with = "socket")]
    tap: Option<String>,
    /// The TAP has several queues
    #[arg(long, requires = "tap")]
    multi_queue: bool,
}

fn main() -> ExitCode {
    let result = match Cli::parse().role {
        Role::Backend(options) => backend(&options),
        Role::Random(options) => random(&options),
        Role::Frontend(options) => frontend(&options),
    };
    match result {
        Ok(good) => ExitCode::from(u8::from(!good)),
        Err(message) => {
            eprintln!("volt-conform: {message}");
            ExitCode::from(2)
        }
    }
}

/// Returns the selected checks, or `None` if the options only ask for information.
fn chosen(catalogue: Vec<&'static Check>, common: &Common) -> Result<Option<Vec<&'static Check>>, String> {
    if let Some(name) = &common.explain {
        let found = catalogue.into_iter().find(|check| check.name == name);
        explain(found.ok_or_else(|| format!("unknown check '{name}': --list shows all"))?);
        return Ok(None);
    }
    let fits = |check: &&Check| {
        common.only.is_empty() || common.only.iter().any(|part| check.name.contains(part.as_str()))
    };
    let checks: Vec<_> = catalogue.into_iter().filter(fits).collect();
    if checks.is_empty() {
        return Err("no check matches --only: --list shows all".to_owned());
    }
    if common.list {
        for check in checks {
            say(format_args!("{:<44} {:<7} {}", check.name, check.level.text(), check.needs.text()));
        }
        return Ok(None);
    }
    Ok(Some(checks))
}

/// Returns the back-end and its far side.
fn place(options: &Place) -> Result<Subject, String> {
    let target = match (&options.socket, &options.command) {
        (Some(path), _) => Target::Socket(path.clone()),
        (None, Some(command)) if command.contains("{socket}") => Target::Command(command.clone()),
        (None, Some(_)) => return Err("--command names no {socket} for the back-end to listen at".to_owned()),
        (None, None) => return Err("name the back-end by --socket or --command".to_owned()),
    };
    let wire = match (options.echo, &options.wire, &options.tap) {
        (true, ..) => Wire::Echo,
        (_, Some(interface), _) => Wire::Interface(interface.clone()),
        (_, _, Some(tap)) if options.multi_queue => Wire::MultiQueueTap(tap.clone()),
        (_, _, Some(tap)) => Wire::Tap(tap.clone()),
        _ => Wire::Unseen,
    };
    Ok(Subject::new(target, wire))
}

/// Returns `Ok(true)` if nothing failed.
fn backend(options: &Backend) -> Result<bool, String> {
    let Some(checks) = chosen(catalogue(), &options.common)? else { return Ok(true) };
    let subject = place(&options.place)?;
    finish(checks, &options.common, |check| subject.run(check))
}

/// Plays random sessions on one back-end, up to the first failure.
fn random(options: &Random) -> Result<bool, String> {
    let subject = place(&options.place)?;
    let seeds = options.seed..options.seed.saturating_add(options.count);
    let result = subject.with(|bench| seeds.clone().try_for_each(|seed| session(bench, seed)));
    match &result {
        Ok(()) => say(format_args!("{} sessions passed, from seed {}", options.count, options.seed)),
        Err(finding) => say(format_args!("{finding:?}")),
    }
    Ok(result.is_ok())
}

/// Runs the checks of a front-end.
fn frontend(options: &Frontend) -> Result<bool, String> {
    let Some(checks) = chosen(front::catalogue(), &options.common)? else { return Ok(true) };
    let command = options.command.as_deref().ok_or("name the front-end by --command")?;
    if !command.contains("{socket}") {
        return Err("--command names no {socket} for the front-end's back-end".to_owned());
    }
    let mut stage = Stage::new(command, options.echo).map_err(|error| error.to_string())?;
    finish(checks, &options.common, |check| front::run(check, &mut stage))
}

/// Runs the checks, prints each result at once, and prints the summary.
fn finish(
    checks: Vec<&'static Check>,
    common: &Common,
    mut run: impl FnMut(&'static Check) -> Outcome,
) -> Result<bool, String> {
    let mut outcomes = Vec::new();
    for check in checks {
        let outcome = run(check);
        if !common.json {
            say(format_args!("{}", report::line(&outcome)));
        }
        outcomes.push(outcome);
    }
    match common.json {
        true => say(format_args!("{:#}", report::json(&outcomes))),
        false => say(format_args!("{}", report::summary_text(&outcomes))),
    }
    if let Some(path) = &common.junit {
        std::fs::write(path, report::junit(&outcomes))
            .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    }
    Ok(!outcomes.iter().any(report::is_bad))
}

/// Prints a line. Ignores a closed pipe.
fn say(line: std::fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

fn explain(check: &Check) {
    say(format_args!("{}\n  {}\n  source: {}", check.name, check.promise, check.source));
    for title in titles(check.source).unwrap_or_default() {
        say(format_args!("    section: {title}"));
    }
    say(format_args!("  level: {}; needs: {}", check.level.text(), check.needs.text()));
}
