//! Who is told how the worker stands: the thread that serves metrics, and systemd's watchdog.

use std::env;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::warn;
use volt_http::Server as MetricsServer;
use volt_net::counters::CounterMemory;
use volt_net::state::FdId;
use volt_virtio::error_chain;

use super::Supervisor;
use crate::inquiry::{self, Asker, Respondent};
use crate::launch::AnyError;
use crate::metrics::{self, Source};
use crate::supervision::Observed;

/// Pings in the time after which systemd takes the unit for dead.
const PINGS: u32 = 3;

/// Those there are.
#[derive(Debug, Default)]
pub(super) struct Observers {
    source: Arc<Source>,
    server: Option<MetricsServer>,
    /// Where the counters are that the source knows.
    counters: Option<FdId>,
    pub(super) watchdog: Option<Watchdog>,
}

/// systemd's watchdog (`sd_watchdog_enabled(3)`), which is fed as long as the worker answers that all of its
/// queue pairs make progress.
#[derive(Debug)]
pub(super) struct Watchdog {
    interval: Duration,
    next: Instant,
    /// To the worker.
    pub(super) line: Option<Asker>,
}

impl Observers {
    pub(super) fn from_environment() -> Observers {
        let number = |name| env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
        // Unset, it is for whoever reads it.
        let own = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let microseconds = number("WATCHDOG_USEC").filter(|_| own);
        let interval = microseconds.map(Duration::from_micros).filter(|interval| !interval.is_zero());
        let watchdog = interval.map(|interval| Watchdog {
            interval: interval / PINGS,
            next: Instant::now() + interval / PINGS,
            line: None,
        });
        Observers { watchdog, ..Observers::default() }
    }

    /// Lines to the next worker, with what that answers by.
    pub(super) fn lines(&self) -> Result<(Lines, Vec<Respondent>), AnyError> {
        let (for_metrics, respondent) = inquiry::line()?;
        let mut respondents = vec![respondent];
        let mut for_watchdog = None;
        if self.watchdog.is_some() {
            let (line, respondent) = inquiry::line()?;
            for_watchdog = Some(line);
            respondents.push(respondent);
        }
        Ok((Lines { for_metrics, for_watchdog }, respondents))
    }

    /// Asks the worker that has begun.
    pub(super) fn ask_by(&mut self, lines: Lines) {
        self.source.ask_by(lines.for_metrics);
        if let Some(watchdog) = &mut self.watchdog {
            watchdog.line = lines.for_watchdog;
        }
    }

    /// The worker is dead, for the `restarts`th time.
    pub(super) fn worker_died(&mut self, restarts: u64) {
        self.source.restarted(restarts);
        if let Some(watchdog) = &mut self.watchdog {
            watchdog.line = None;
        }
    }
}

/// The supervisor's ends.
pub(super) struct Lines {
    for_metrics: Asker,
    for_watchdog: Option<Asker>,
}

impl Watchdog {
    /// How long until the worker is to be asked again.
    pub(super) fn due(&self) -> Duration {
        self.next.saturating_duration_since(Instant::now())
    }

    /// Asks the worker, if it is time. What it says comes by the line.
    pub(super) fn ask(&mut self) {
        if self.due().is_zero() {
            self.next = Instant::now() + self.interval;
            if let Some(line) = &mut self.line
                && line.begin().is_err()
            {
                self.line = None;
            }
        }
    }

    /// Takes the worker's answer: whether systemd is to be told that all is well.
    pub(super) fn take_answer(&mut self) -> bool {
        match self.line.as_mut().map(Asker::take) {
            Some(Ok(Some(status))) => !status.vrings.iter().any(|vring| vring.no_progress),
            Some(Ok(None)) | None => false,
            Some(Err(_)) => {
                self.line = None;
                false
            }
        }
    }
}

impl Supervisor<'_> {
    /// Serves metrics where the worker has said, and knows where it counts.
    pub(super) fn observe(&mut self, observed: &Observed) {
        let copy = |id: FdId| self.held.fds.get(&id).and_then(|fd| fd.try_clone().ok());
        let observers = &mut self.observers;
        if observed.counters != observers.counters
            && let Some(memory) = observed.counters.and_then(copy)
        {
            observers.counters = observed.counters;
            match CounterMemory::open(memory, observed.pairs) {
                Ok((memory, _)) => observers.source.counts_in(memory, observed.pairs),
                Err(error) => {
                    let why = error_chain(&error);
                    warn!(event = "metrics_incomplete"; "metrics go without counters: {why}");
                }
            }
        }
        if observers.server.is_none()
            && let Some(socket) = observed.metrics.and_then(copy)
        {
            observers.serve(socket, self.deaths.restarts);
        }
    }

    /// Feeds the watchdog, if the worker has answered that all is well.
    pub(super) fn feed_watchdog(&mut self) {
        let healthy = self.observers.watchdog.as_mut().is_some_and(Watchdog::take_answer);
        if healthy && let Some(store) = &mut self.store {
            store.tell("WATCHDOG=1");
        }
    }
}

impl Observers {
    fn serve(&mut self, socket: OwnedFd, restarts: u64) {
        self.source.restarted(restarts);
        match metrics::serve(socket, self.source.clone()) {
            Ok(server) => self.server = Some(server),
            Err(error) => warn!(event = "metrics_not_served"; "metrics are not served: {error}"),
        }
    }
}
