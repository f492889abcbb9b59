//! Runs checks: a back-end for each, its far side, and what came of it.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::bench::{Bench, Far, LIMIT};
use super::{Check, Finding, Needs, Script};
use crate::daemon::{Daemon, poll_until};
use crate::netns::Netns;

/// Where the back-end is.
#[derive(Clone, Debug)]
pub enum Target {
    /// It listens already, and takes one connection after another.
    Socket(PathBuf),
    /// A command to start for each check; `{socket}` stands for where it shall listen.
    Command(String),
}

/// Where its frames go.
#[derive(Clone, Debug)]
pub enum Wire {
    /// Nobody can see them.
    Unseen,
    /// They come back on the receive queue.
    Echo,
    /// An interface of this namespace.
    Interface(String),
    /// A TAP of this name in a new namespace, in which the command is run.
    Tap(String),
    /// The same with several queues.
    MultiQueueTap(String),
}

/// What came of one check.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The check.
    pub check: &'static Check,
    /// `Ok` when it passed.
    pub result: Result<(), Finding>,
    /// How long it took.
    pub took: Duration,
}

/// Runs one check against a back-end of its own, or the one that listens.
pub fn run(check: &'static Check, target: &Target, wire: &Wire) -> Outcome {
    let start = Instant::now();
    let result = attempt(check, target, wire);
    Outcome { check, result, took: start.elapsed() }
}

fn attempt(check: &'static Check, target: &Target, wire: &Wire) -> Result<(), Finding> {
    if check.needs == Needs::Frames && matches!(wire, Wire::Unseen) {
        return Err(Finding::NoAccess("name its far side by --echo, --wire or --tap".to_owned()));
    }
    let Script::Frontend(script) = check.run else {
        return Err(Finding::NoAccess("it is about front-ends".to_owned()));
    };
    with(target, wire, script)
}

/// Starts the back-end if it is a command, and lets `script` work with it.
///
/// # Errors
///
/// What `script` found, or how the back-end ended.
pub fn with(
    target: &Target,
    wire: &Wire,
    script: impl FnOnce(&mut Bench) -> Result<(), Finding>,
) -> Result<(), Finding> {
    let netns = match wire {
        Wire::Interface(_) => Some(Netns::here()?),
        Wire::Tap(_) | Wire::MultiQueueTap(_) => Some(Netns::new()?),
        Wire::Unseen | Wire::Echo => None,
    };
    if let (Some(netns), Wire::Tap(name) | Wire::MultiQueueTap(name)) = (&netns, wire) {
        netns.add_tap(name, matches!(wire, Wire::MultiQueueTap(_)))?;
    }
    let dir = tempfile::tempdir()?;
    let (socket, mut daemon) = match target {
        Target::Socket(path) => (path.clone(), None),
        Target::Command(command) => {
            let socket = dir.path().join("s");
            (socket.clone(), Some(start(command, &socket, netns.as_ref())?))
        }
    };
    let far = match (&netns, wire) {
        (Some(netns), Wire::Interface(name) | Wire::Tap(name) | Wire::MultiQueueTap(name)) => {
            netns.wait_until_up(name, LIMIT)?;
            Far::Tap(netns.wire(name)?)
        }
        (_, Wire::Echo) => Far::Echo,
        _ => Far::Unseen,
    };
    let result = script(&mut Bench::new(socket, far));
    match daemon.as_mut().and_then(|daemon| daemon.wait(Duration::ZERO)) {
        // Its last words say more than a closed connection.
        Some(status) if !status.success() => {
            let said = daemon.as_ref().map(Daemon::log).unwrap_or_default();
            let last = said.lines().last().unwrap_or_default().to_owned();
            Err(Finding::Broken(format!("the back-end ended with {status}: {last} ({result:?})")))
        }
        _ => result,
    }
}

/// Starts the command by the shell and waits until its socket is there.
fn start(command: &str, socket: &std::path::Path, netns: Option<&Netns>) -> Result<Daemon, Finding> {
    // `exec`, so that the process that is watched and ended is the back-end itself.
    let line = format!("exec {}", command.replace("{socket}", &socket.display().to_string()));
    let mut shell = match netns {
        Some(netns) => netns.command("sh"),
        None => std::process::Command::new("sh"),
    };
    shell.args(["-c", &line]).stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null());
    let mut daemon = Daemon::start(shell)?;
    let there = poll_until(LIMIT, || (socket.exists() || daemon.has_exited()).then_some(()));
    if there.is_none() || daemon.has_exited() {
        return Err(Finding::Broken(format!("no socket; the back-end said: {}", daemon.log().trim())));
    }
    Ok(daemon)
}
