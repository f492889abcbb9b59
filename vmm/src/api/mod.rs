//! The API socket: HTTP and JSON over a Unix socket, for the process's own user and root.
//!
//! [`Api::start`] listens and serves on a thread of its own until it is dropped. The machine's end waits for answers to requests that have come, some seconds at
//! most, and nothing else in the machine waits for it. What it
//! shows and changes are the machine's [`Devices`](crate::devices::Devices), its pause and its end. `docs/api.md` is the schema.

use std::convert::Infallible;
use std::io;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use log::{debug, info, warn};
use thiserror::Error;
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, oneshot, watch};
use volt_net::unix::{Access, BindError, SocketFile, bind, check_user};

pub mod client;
mod order;
pub(crate) mod path;
mod plug;
mod routes;

use routes::Serving;
pub use routes::{Machine, Status};

/// Most clients at a time; others wait.
const CLIENTS: usize = 16;
/// How long a client may take for the head of its request, and for its body.
const LIMIT: Duration = Duration::from_secs(5);
/// How long what is asked for may take: what takes longest is a device, whose back-end or whose guest is waited for.
const WORK_LIMIT: Duration = Duration::from_secs(12);
/// How long it all may take. Only a client that does not read its answer comes to that.
const CONNECTION_LIMIT: Duration = Duration::from_secs(40);

/// Why there is no API socket.
#[derive(Debug, Error)]
pub enum ApiError {
    /// The socket.
    #[error("the API socket cannot be opened")]
    Bind(#[from] BindError),
    /// The thread, or what it needs.
    #[error("the API cannot be served")]
    Start(#[source] io::Error),
}

/// The API, served until this is dropped.
pub struct Api {
    file: SocketFile,
    stop: Option<oneshot::Sender<Infallible>>,
    thread: Option<JoinHandle<()>>,
}

impl Api {
    /// Serves `machine` at `path`.
    ///
    /// # Errors
    ///
    /// See [`ApiError`].
    pub fn start(path: &Path, machine: Machine) -> Result<Api, ApiError> {
        Api::with_limit(path, machine, WORK_LIMIT)
    }

    /// The same for requests that may take `limit` each.
    fn with_limit(path: &Path, machine: Machine, limit: Duration) -> Result<Api, ApiError> {
        let (listener, file) = bind(path, &Access::PRIVATE)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(ApiError::Start)?;
        let (stop, stopped) = oneshot::channel();
        let (end, ends) = watch::channel(false);
        let serving = Arc::new(Serving { machine: Arc::new(machine), limit, ends });
        let asked = Arc::new(Semaphore::new(CLIENTS));
        let serve = async move {
            tokio::select! {
                result = serve(listener, &serving, &asked) => {
                    if let Err(error) = result {
                        warn!("the API socket is not served any more: {error}");
                    }
                }
                _ = stopped => {}
            }
            // Who has asked is answered: by what was done, or by this end, which waits for nothing that is being done.
            let _ = end.send(true);
            let _ = tokio::time::timeout(LIMIT, asked.acquire_many(CLIENTS as u32)).await;
        };
        let serve = move || {
            runtime.block_on(serve);
            // Requests in hand may wait for a guest or a back-end, and the machine's end for none of them.
            runtime.shutdown_background();
        };
        let thread = thread::Builder::new().name("api".to_owned()).spawn(serve);
        let thread = thread.map_err(ApiError::Start)?;
        info!("API at {}", path.display());
        Ok(Api { file, stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        self.file.remove();
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn serve(listener: UnixListener, serving: &Arc<Serving>, asked: &Arc<Semaphore>) -> io::Result<()> {
    let listener = tokio::net::UnixListener::from_std(listener)?;
    let clients = Arc::new(Semaphore::new(CLIENTS));
    loop {
        let Ok(permit) = clients.clone().acquire_owned().await else { return Ok(()) };
        match listener.accept().await {
            Ok((stream, _)) => {
                let (serving, asked) = (serving.clone(), asked.clone());
                tokio::spawn(async move {
                    converse(stream, &serving, asked).await;
                    drop(permit);
                });
            }
            Err(error) => {
                warn!("accepting a client of the API failed: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// One client's request and its answer. From the request on, a permit of `asked` is held until the answer is written.
async fn converse(stream: UnixStream, serving: &Serving, asked: Arc<Semaphore>) {
    let stranger = check_user(&stream).err();
    if let Some(stranger) = &stranger {
        warn!("{stranger} may not use the API");
    }
    let answering = OnceLock::new();
    let service = service_fn(|request| {
        // There are as many as clients.
        answering.get_or_init(|| asked.clone().try_acquire_owned());
        routes::answer(request, serving, stranger.as_ref())
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(LIMIT)
        .keep_alive(false)
        .max_buf_size(16 << 10)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(CONNECTION_LIMIT, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!("a client of the API: {error}"),
        Err(_) => debug!("a client of the API took more than {} s", CONNECTION_LIMIT.as_secs()),
    }
}

#[cfg(test)]
mod plug_tests;
#[cfg(test)]
mod tests;
