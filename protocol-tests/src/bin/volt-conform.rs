//! `volt-conform`: plays a front-end against any vhost-user-net back-end and says what it keeps of the specifications.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use protocol_tests::conform::run::{Outcome, Target, Wire, run};
use protocol_tests::conform::{Check, catalogue, report};

#[derive(Parser)]
#[command(version, about = "Checks a vhost-user-net back-end against the specifications")]
struct Cli {
    #[command(subcommand)]
    role: Role,
}

#[derive(Subcommand)]
enum Role {
    /// Play a front-end against a back-end. Exit status: 0 nothing failed, 1 something did, 2 wrong usage.
    Backend(Backend),
}

#[derive(Args)]
struct Backend {
    /// Where the back-end listens; it must take one connection after another
    #[arg(long, value_name = "PATH", conflicts_with = "command")]
    socket: Option<PathBuf>,
    /// Shell command that starts the back-end in the foreground, once for each check; {socket} is where it shall listen
    #[arg(long)]
    command: Option<String>,
    /// The back-end returns each frame on the receive queue of its pair
    #[arg(long, conflicts_with_all = ["wire", "tap"])]
    echo: bool,
    /// Interface of this network namespace that the back-end's frames come out of (needs root)
    #[arg(long, value_name = "IFACE", conflicts_with = "tap")]
    wire: Option<String>,
    /// Make a network namespace with a TAP of this name and run the command in it
    #[arg(long, value_name = "NAME", requires = "command")]
    tap: Option<String>,
    /// Only checks whose name contains this; may be repeated
    #[arg(long, value_name = "PATTERN")]
    only: Vec<String>,
    /// List the checks and what each needs
    #[arg(long)]
    list: bool,
    /// Say what a check promises and where that is written
    #[arg(long, value_name = "NAME")]
    explain: Option<String>,
    /// Print the results as JSON in place of the table
    #[arg(long)]
    json: bool,
    /// Write the results to a JUnit file as well
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
}

fn main() -> ExitCode {
    let Role::Backend(options) = Cli::parse().role;
    match serve(&options) {
        Ok(good) => ExitCode::from(u8::from(!good)),
        Err(message) => {
            eprintln!("volt-conform: {message}");
            ExitCode::from(2)
        }
    }
}

/// `Ok(true)` when nothing failed.
fn serve(options: &Backend) -> Result<bool, String> {
    let fits = |check: &&Check| {
        options.only.is_empty() || options.only.iter().any(|part| check.name.contains(part.as_str()))
    };
    if let Some(name) = &options.explain {
        let found = catalogue().into_iter().find(|check| check.name == name);
        explain(found.ok_or_else(|| format!("no check '{name}': --list shows all"))?);
        return Ok(true);
    }
    let checks: Vec<_> = catalogue().into_iter().filter(fits).collect();
    if checks.is_empty() {
        return Err("no check has such a name: --list shows all".to_owned());
    }
    if options.list {
        for check in checks {
            say(format_args!("{:<44} {:<7} {}", check.name, check.level.text(), check.needs.text()));
        }
        return Ok(true);
    }
    let target = match (&options.socket, &options.command) {
        (Some(path), _) => Target::Socket(path.clone()),
        (None, Some(command)) if command.contains("{socket}") => Target::Command(command.clone()),
        (None, Some(_)) => return Err("--command names no {socket} for the back-end to listen at".to_owned()),
        (None, None) => return Err("name the back-end by --socket or --command".to_owned()),
    };
    let wire = match (options.echo, &options.wire, &options.tap) {
        (true, ..) => Wire::Echo,
        (_, Some(interface), _) => Wire::Interface(interface.clone()),
        (_, _, Some(tap)) => Wire::Tap(tap.clone()),
        _ => Wire::Unseen,
    };
    let outcomes: Vec<_> = checks.into_iter().map(|check| one(check, &target, &wire, options.json)).collect();
    finish(&outcomes, options)
}

/// Runs one check and shows its line at once.
fn one(check: &'static Check, target: &Target, wire: &Wire, json: bool) -> Outcome {
    let outcome = run(check, target, wire);
    if !json {
        say(format_args!("{}", report::line(&outcome)));
    }
    outcome
}

fn finish(outcomes: &[Outcome], options: &Backend) -> Result<bool, String> {
    match options.json {
        true => say(format_args!("{:#}", report::json(outcomes))),
        false => say(format_args!("{}", report::summary(outcomes))),
    }
    if let Some(path) = &options.junit {
        std::fs::write(path, report::junit(outcomes))
            .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    }
    Ok(!outcomes.iter().any(report::is_bad))
}

/// Prints a line. Whoever closed the pipe wants no more of it.
fn say(line: std::fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

fn explain(check: &Check) {
    say(format_args!("{}\n  {}\n  source: {}", check.name, check.promise, check.source));
    say(format_args!("  level: {}; needs: {}", check.level.text(), check.needs.text()));
}
