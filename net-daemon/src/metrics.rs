//! Metrics, served over HTTP for Prometheus and whoever else reads its formats.
//!
//! They are served by a thread of the process that lives longest: the supervisor where there is one, which
//! outlives the processes that serve the guest. Counters are read where they are counted, in memory that
//! outlives these too; what is so only at the moment is [asked for](crate::inquiry). With nobody to ask, the
//! counters are still served.
//!
//! [`Source`] is told who serves the guest and where is counted; [`serve`] starts the thread.
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

/// How long the process that serves the guest may take to answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// Where they are.
const PATH: &str = "/metrics";
/// One that asks once in a while, and a few others.
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

/// Where metrics come from.
#[derive(Debug, Default)]
pub(crate) struct Source {
    /// To the process that serves the guest. Held while that is asked, and by nobody who serves it.
    line: Mutex<Option<Asker>>,
    known: Mutex<Known>,
}

/// What is known without asking. Held for moments.
#[derive(Debug, Default)]
struct Known {
    /// To a process that has not been asked yet.
    next: Option<Asker>,
    /// What was answered last, for names.
    last: Option<Status>,
    counters: Option<(CounterMemory, usize)>,
    /// How often a supervisor has started a worker again.
    restarts: Option<u64>,
}

impl Source {
    /// Asks by `line` from now on.
    pub(crate) fn ask_by(&self, line: Asker) {
        self.known().next = Some(line);
    }

    /// The counters of this many pairs are in `memory`.
    pub(crate) fn counts_in(&self, memory: CounterMemory, pairs: usize) {
        self.known().counters = Some((memory, pairs));
    }

    /// A supervisor has started a worker again so often.
    pub(crate) fn restarted(&self, restarts: u64) {
        self.known().restarts = Some(restarts);
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is so at the moment, if that can be found out.
    fn ask(&self) -> Option<Status> {
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(next) = self.known().next.take() {
            *line = Some(next);
        }
        match line.as_mut()?.ask(PATIENCE) {
            Ok(status) => Some(status),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => None,
            Err(error) => {
                debug!("nobody answers what metrics ask: {error}");
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

/// Serves what `source` has at `socket`, until what is returned is dropped.
///
/// # Errors
///
/// When the process has no descriptor or no thread left.
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
                let text = "metrics are only read\n";
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
            // Anybody can bring these about.
            ServeError::Request(_) | ServeError::Answer(_) => debug!("metrics: {error}"),
            ServeError::Accept(_) | ServeError::Thread(_) => {
                warn!(event = "metrics_failed"; "metrics: {}", volt_virtio::error_chain(error));
            }
        }
    }
}
