//! The API socket: HTTP and JSON over a Unix socket, for the process's own user and root.
//!
//! [`ApiSocket::bind`] listens. From [`Api::start`] on, [`volt_http`] serves on its own threads until the API
//! is dropped. The machine's end waits some seconds at most for answers to requests that have arrived.
//! Nothing else in the machine waits for a client. The API shows and changes a [`MachineHandle`].
//! `docs/reference/http-api.md` describes it, and `docs/reference/openapi.json` has its schemas.
//!
//! | module | holds |
//! |---|---|
//! | `routes` | a request and its answer |
//! | [`path`] | the paths, and the names in them |
//! | `plug` | adding and removing devices |
//! | `completion` | a slow request, and the client that waits for it |
//! | `answer` | status and body |
//! | [`status`] | a machine's status |
//! | [`client`], [`table`] | `volt-vmm ctl`: the client, and its table of a status |
#![forbid(unsafe_code)]

use std::io;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use log::info;
use thiserror::Error;
use volt_http::{DESCRIPTORS_MAX, Server, Settings};
use volt_program::unix::{self, Access, BindError, SocketFile, bind};

mod answer;
pub mod client;
mod completion;
mod metrics;
pub(crate) mod path;
mod plug;
mod routes;
pub mod status;
pub mod table;

use crate::api::routes::{LIMIT, Serving};
use crate::machine::handle::MachineHandle;
use crate::opener;

/// Most clients at a time; others wait.
const CLIENTS: usize = 16;
/// How long a request may take. The longest is a device whose back-end or guest is waited for.
const WORK_LIMIT: Duration = Duration::from_secs(12);
/// Most requests in progress, including those whose clients were told that they take too long.
const WORK_AT_ONCE: usize = 64;
/// Most bytes of a request's body.
const BODY_MAX: usize = 4096;
/// How long a connection may take in all. Only a client that does not read its answer gets there.
const CONNECTION_LIMIT: Duration = Duration::from_secs(40);

/// Why there is no API socket.
#[derive(Debug, Error)]
pub enum ApiError {
    /// The socket cannot be opened.
    #[error("the API socket cannot be opened")]
    Bind(#[from] BindError),
    /// A thread, or a resource that it needs, is missing.
    #[error("the API cannot be served")]
    Start(#[source] io::Error),
}

/// Checks that a socket at `path` is possible, before anything else happens.
///
/// # Errors
///
/// [`ApiError::Bind`].
pub fn check_path(path: &Path) -> Result<(), ApiError> {
    unix::check_path(path).map_err(|error| BindError::from(error).into())
}

/// The API's socket before it is served.
pub struct ApiSocket {
    listener: UnixListener,
    file: SocketFile,
}

impl ApiSocket {
    /// Listens at `path`.
    ///
    /// # Errors
    ///
    /// [`ApiError::Bind`].
    pub fn bind(path: &Path) -> Result<ApiSocket, ApiError> {
        let (listener, file) = bind(path, &Access::PRIVATE)?;
        Ok(ApiSocket { listener, file })
    }

    /// Returns its path, with device and number of its inode.
    pub fn file(&self) -> (&Path, (u64, u64)) {
        (self.file.path(), self.file.inode())
    }
}

/// The API, served until this is dropped.
pub struct Api {
    file: SocketFile,
    /// Dropped after the file is removed, which ends it.
    _server: Server,
}

impl Api {
    /// Serves `machine` at `socket`.
    ///
    /// # Errors
    ///
    /// [`ApiError::Start`].
    pub fn start(socket: ApiSocket, machine: Arc<MachineHandle>) -> Result<Api, ApiError> {
        Api::with_limit(socket, machine, WORK_LIMIT)
    }

    /// Like [`Api::start`], but each request may take `limit`.
    fn with_limit(socket: ApiSocket, machine: Arc<MachineHandle>, limit: Duration) -> Result<Api, ApiError> {
        let ApiSocket { listener, file } = socket;
        let serving = Serving { machine, limit };
        let server = Server::start(listener, settings(limit), serving).map_err(ApiError::Start)?;
        info!(event = "api_listening", path:% = file.path().display(); "API at {}", file.path().display());
        Ok(Api { file, _server: server })
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        opener::remove_socket(&self.file);
    }
}

/// Returns the settings of a server whose requests may take `limit` each.
fn settings(limit: Duration) -> Settings {
    Settings {
        name: "api",
        clients: CLIENTS,
        head: LIMIT,
        body: LIMIT,
        work: limit,
        connection: CONNECTION_LIMIT,
        end: LIMIT,
        body_max: BODY_MAX,
        // Only a request with a disk uses descriptors. Other requests are not refused because of them.
        descriptors: DESCRIPTORS_MAX,
        work_at_once: WORK_AT_ONCE,
    }
}

#[cfg(test)]
mod openapi_tests;
#[cfg(test)]
mod plug_tests;
#[cfg(test)]
mod tests;
