//! The users of the worker's status in the supervisor: the metrics server and systemd's watchdog.

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

/// Number of pings within systemd's watchdog timeout.
const PINGS: u32 = 3;

/// The metrics server and the watchdog.
#[derive(Debug, Default)]
pub(super) struct Observers {
    source: Arc<Source>,
    server: Option<MetricsServer>,
    /// The memory of the counters that `source` reads.
    counters: Option<FdId>,
    pub(super) watchdog: Option<Watchdog>,
}

/// systemd's watchdog (`sd_watchdog_enabled(3)`). The supervisor pings it as long as the worker reports
/// progress of all queue pairs.
#[derive(Debug)]
pub(super) struct Watchdog {
    interval: Duration,
    next: Instant,
    /// The line to the worker.
    pub(super) line: Option<Asker>,
}

impl Observers {
    pub(super) fn from_environment() -> Observers {
        let number = |name| env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
        // Without WATCHDOG_PID, the variables are for any process.
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

    /// Returns lines to the next worker, and the worker's ends.
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

    /// Directs queries to a worker that has started.
    pub(super) fn ask_by(&mut self, lines: Lines) {
        self.source.ask_by(lines.for_metrics);
        if let Some(watchdog) = &mut self.watchdog {
            watchdog.line = lines.for_watchdog;
        }
    }

    /// Records the `restarts`th death of a worker.
    pub(super) fn worker_died(&mut self, restarts: u64) {
        self.source.restarted(restarts);
        if let Some(watchdog) = &mut self.watchdog {
            watchdog.line = None;
        }
    }
}

/// The supervisor's ends of the lines to a worker.
pub(super) struct Lines {
    for_metrics: Asker,
    for_watchdog: Option<Asker>,
}

impl Watchdog {
    /// Returns the time until the next query.
    pub(super) fn due(&self) -> Duration {
        self.next.saturating_duration_since(Instant::now())
    }

    /// Queries the worker if it is time. The answer arrives on the line.
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

    /// Takes the worker's answer. Returns whether to ping systemd.
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
    /// Serves metrics on the worker's metrics socket, and maps the worker's counters.
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
                    warn!(event = "metrics_incomplete"; "the metrics lack the worker's counters: {why}");
                }
            }
        }
        if observers.server.is_none()
            && let Some(socket) = observed.metrics.and_then(copy)
        {
            observers.serve(socket, self.deaths.restarts);
        }
    }

    /// Pings the watchdog if the worker reports progress.
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
