//! Runs checks: starts a back-end and its far side for each, and returns the result.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use super::bench::{Bench, Far};
use super::instance::{Instance, Next};
pub use super::target::{Target, Wire};
use super::{Check, Finding, Needs, Script};
use crate::far_end::VETH_PEER;
use crate::netns::Netns;

/// The back-end under test, and its properties found once for all checks.
#[derive(Debug)]
pub struct Subject {
    target: Target,
    wire: Wire,
    next: OnceLock<Next>,
}

/// The result of a check.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The check.
    pub check: &'static Check,
    /// `Ok` if it passed.
    pub result: Result<(), Finding>,
    /// How long it took.
    pub took: Duration,
}

impl Subject {
    /// The back-end `target`, whose frames go to `wire`.
    pub fn new(target: Target, wire: Wire) -> Subject {
        Subject { target, wire, next: OnceLock::new() }
    }

    /// Runs one check on a new back-end, or on the one that listens.
    pub fn run(&self, check: &'static Check) -> Outcome {
        let start = Instant::now();
        let result = self.attempt(check);
        Outcome { check, result, took: start.elapsed() }
    }

    fn attempt(&self, check: &'static Check) -> Result<(), Finding> {
        if check.needs == Needs::Frames && matches!(self.wire, Wire::Unseen) {
            return Err(Finding::NoAccess("name its far side with --echo, --wire or --tap".to_owned()));
        }
        let Script::Frontend(script) = check.run else {
            return Err(Finding::NoAccess("it tests front-ends".to_owned()));
        };
        self.with(script)
    }

    /// Starts the back-end if it is a command, and runs `script` with it.
    ///
    /// # Errors
    ///
    /// Returns the finding of `script`, or the end of the back-end.
    pub fn with(&self, script: impl FnOnce(&mut Bench) -> Result<(), Finding>) -> Result<(), Finding> {
        let mut never_started = None;
        let next = self.next.get_or_init(|| {
            // Uses a separate back-end to find out.
            let mut next = Next::Served;
            let started = self.start(Next::Served, |bench| {
                next = bench.try_next();
                Ok(())
            });
            if let (Next::Served, Err(finding)) = (&next, started) {
                never_started = Some(finding.clone());
                return Next::Unknown(finding);
            }
            next
        });
        // Waits only once for a back-end that never listens.
        never_started.map_or_else(|| self.start(next.clone(), script), Err)
    }

    fn start(
        &self,
        next: Next,
        script: impl FnOnce(&mut Bench) -> Result<(), Finding>,
    ) -> Result<(), Finding> {
        let netns = match &self.wire {
            Wire::Interface(_) => Some(Netns::here()?),
            Wire::Tap(name) | Wire::MultiQueueTap(name) => {
                let netns = Netns::new()?;
                netns.add_tap(name, matches!(self.wire, Wire::MultiQueueTap(_)))?;
                Some(netns)
            }
            Wire::Veth(name) => {
                let netns = Netns::new()?;
                netns.add_veth(name, VETH_PEER, false)?;
                Some(netns)
            }
            Wire::Unseen | Wire::Echo => None,
        };
        let dir = tempfile::tempdir()?;
        let (socket, command) = match &self.target {
            Target::Socket(path) => (path.clone(), None),
            Target::Command(command) => (dir.path().join("s"), Some(command.as_str())),
        };
        let instance = Instance::new(socket, command, netns, &self.wire, next)?;
        let far = match (instance.netns(), self.wire.interface()) {
            (Some(netns), Some(interface)) => Far::Tap(netns.wire(interface)?),
            _ if matches!(self.wire, Wire::Echo) => Far::Echo,
            _ => Far::Unseen,
        };
        let mut bench = Bench::new(instance, far);
        let result = script(&mut bench);
        bench.verdict(result)
    }
}
