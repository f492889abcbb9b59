//! Metrics over HTTP, for Prometheus and other readers of its formats.
//!
//! A thread of the longest-lived process serves them: of the supervisor, if there is one, which outlives its
//! workers. It reads the counters in shared memory, which also outlives the workers, and
//! [queries](crate::inquiry) the current status. If no worker answers, it still serves the counters.
//!
//! [`Source`] knows the serving process and the counters' memory; [`serve`] starts the thread.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use log::{debug, warn};
use volt_http::server::ServeError;
use volt_http::{Body, Head, Method, Response, Server, Service, Settings, StatusCode, TEXT, server};
use volt_net::counters::CounterMemory;
use volt_program::metrics::Format;

use crate::inquiry::Asker;
use crate::metrics::families::{Observed, families};
use crate::sandbox;
use crate::status::{PairCounters, Status};

pub(crate) mod address;
pub(crate) mod families;
pub(crate) mod listener;

/// Time for the process that serves the guest to answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// HTTP path of the metrics.
const PATH: &str = "/metrics";
/// For one regular client and a few others.
const SETTINGS: Settings = Settings {
    name: "metrics",
    clients: 4,
    head: Duration::from_secs(2),
    body: Duration::from_secs(2),
    work: Duration::from_secs(2),
    connection: Duration::from_secs(5),
    end: Duration::from_millis(200),
    body_max: 0,
    descriptors: 0,
    work_at_once: 0,
};

/// The sources of the metrics.
#[derive(Debug, Default)]
pub(crate) struct Source {
    /// The line to the process that serves the guest. Locked during a query, and never by the thread that
    /// answers it.
    line: Mutex<Option<Asker>>,
    known: Mutex<Known>,
}

/// Facts that need no query. Locked for moments only.
#[derive(Debug, Default)]
struct Known {
    /// The line to a new process that has not been queried yet.
    next: Option<Asker>,
    /// The last answer, for names.
    last: Option<Status>,
    counters: Option<(CounterMemory, usize)>,
    /// How often a supervisor has restarted the worker.
    restarts: Option<u64>,
}

impl Source {
    /// Sends queries on `line` from now on.
    pub(crate) fn ask_by(&self, line: Asker) {
        self.known().next = Some(line);
    }

    /// Reads the counters of this number of pairs in `memory` from now on.
    pub(crate) fn counts_in(&self, memory: CounterMemory, pairs: usize) {
        self.known().counters = Some((memory, pairs));
    }

    /// Sets how often a supervisor has restarted the worker.
    pub(crate) fn restarted(&self, restarts: u64) {
        self.known().restarts = Some(restarts);
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queries the current status. Returns `None` without an answer.
    fn ask(&self) -> Option<Status> {
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(next) = self.known().next.take() {
            *line = Some(next);
        }
        match line.as_mut()?.ask(PATIENCE) {
            Ok(status) => Some(status),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => None,
            Err(error) => {
                debug!("the metrics server's query failed: {error}");
                *line = None;
                None
            }
        }
    }

    fn text(&self, format: Format) -> String {
        let status = self.ask();
        let mut known = self.known();
        if status.is_some() {
            known.last.clone_from(&status);
        }
        let counters = known
            .counters
            .iter()
            .flat_map(|(memory, pairs)| (0..*pairs).map(|pair| PairCounters::new(pair, memory.of(pair))));
        let observed = Observed {
            status: status.as_ref(),
            last: known.last.as_ref(),
            counters: counters.collect(),
            restarts: known.restarts,
        };
        families(&observed).text(format)
    }
}

/// Serves the metrics of `source` on `socket`, until the returned server is dropped.
///
/// # Errors
///
/// The process cannot open a descriptor or create a thread.
pub(crate) fn serve(socket: OwnedFd, source: Arc<Source>) -> io::Result<Server> {
    Server::start(socket, SETTINGS, Serving(source))
}

struct Serving(Arc<Source>);

impl Service for Serving {
    type Task = Format;

    fn begin(&self) {
        sandbox::enter_metrics();
    }

    fn accept(&self, head: &Head, _client: BorrowedFd<'_>) -> Result<Format, Response> {
        match (head.target().path(), head.method()) {
            (PATH, method) if [Method::GET, Method::HEAD].contains(method) => {
                Ok(Format::accepted(head.accepts()))
            }
            (PATH, _) => {
                let text = "metrics are read-only\n";
                let answer = Response::new(StatusCode::METHOD_NOT_ALLOWED, TEXT, text);
                Err(answer.allow(&[Method::GET, Method::HEAD]))
            }
            _ => Err(Response::new(StatusCode::NOT_FOUND, TEXT, format!("metrics are at {PATH}\n"))),
        }
    }

    fn answer(&self, format: Format, _body: Body, _turn: &server::Turn<'_>) -> Response {
        Response::new(StatusCode::OK, format.content_type(), self.0.text(format))
    }

    fn report(&self, error: &ServeError) {
        match error {
            // Any client can cause these.
            ServeError::Request(_) | ServeError::Answer(_) => debug!("metrics: {error}"),
            ServeError::Accept(_) => {
                warn!(event = "metrics_failed"; "metrics: {}", volt_virtio::error_chain(error));
            }
        }
    }
}
