//! Tests of the server over a socket, with a service that does as its requests say.

use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender};

use rustix::io::FdFlags;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::pipe::{PipeFlags, pipe_with};

use std::os::unix::net::{UnixListener, UnixStream};

use super::*;
use crate::client::{Answer, AskError, Limits, Request, ask};
use crate::{DESCRIPTORS_MAX, HEAD_MAX, HEADERS_MAX, Method, StatusCode};

mod ends;
mod limits;
mod requests;

/// Longer than any successful wait.
const LONG: Duration = Duration::from_secs(100);
/// For waits that must time out.
const SHORT: Duration = Duration::from_millis(50);
/// More than a socket buffers.
const BIG: usize = 8 << 20;

const PATIENT: Settings = Settings {
    name: "test",
    clients: 4,
    head: LONG,
    body: LONG,
    work: LONG,
    connection: LONG,
    end: LONG,
    body_max: 4096,
    descriptors: DESCRIPTORS_MAX,
    work_at_once: 4,
};

/// Communication between a test and the work of the service.
#[derive(Default)]
struct Script {
    /// Work sends here when it begins.
    begun: Mutex<Option<Sender<()>>>,
    /// Work ends when it receives something here, or when the other side is gone.
    go_on: Mutex<Option<Receiver<()>>>,
    /// The current and the maximum number of concurrent requests.
    answering: AtomicUsize,
    most_answering: AtomicUsize,
    reports: Mutex<Vec<String>>,
}

impl Script {
    fn work(&self) -> &'static str {
        let go_on = self.go_on.lock().unwrap().take();
        if let Some(begun) = &*self.begun.lock().unwrap() {
            begun.send(()).unwrap();
        }
        if let Some(go_on) = go_on {
            let _ = go_on.recv();
        }
        "worked"
    }
}

struct Scripted(Arc<Script>);

impl Scripted {
    fn carry_out(&self, turn: &Turn<'_>, again: Option<Duration>) -> Response {
        let script = self.0.clone();
        match turn.carry_out(move || script.work()) {
            Outcome::Done(done) => text(StatusCode::OK, done),
            Outcome::Late(late) => match again.and_then(|again| late.wait(again)) {
                Some(done) => text(StatusCode::OK, &format!("{done} late")),
                None => text(StatusCode::GATEWAY_TIMEOUT, "late"),
            },
            Outcome::Ends => text(StatusCode::SERVICE_UNAVAILABLE, "ends"),
            Outcome::Gone => text(StatusCode::INTERNAL_SERVER_ERROR, "gone"),
            Outcome::Failed(why) => text(StatusCode::INTERNAL_SERVER_ERROR, &why.to_string()),
        }
    }
}

fn text(status: StatusCode, text: &str) -> Response {
    Response::new(status, TEXT, text)
}

impl Service for Scripted {
    type Task = String;

    fn accept(&self, head: &Head, _client: BorrowedFd<'_>) -> Result<String, Response> {
        match head.target().path() {
            "/forbidden" => Err(text(StatusCode::FORBIDDEN, "forbidden")),
            path => Ok(path.to_owned()),
        }
    }

    fn answer(&self, task: String, body: Body, turn: &Turn<'_>) -> Response {
        let now = self.0.answering.fetch_add(1, Ordering::SeqCst) + 1;
        self.0.most_answering.fetch_max(now, Ordering::SeqCst);
        let answer = match task.as_str() {
            "/work" => self.carry_out(turn, None),
            "/late-work" => self.carry_out(turn, Some(LONG)),
            "/panic" => match turn.carry_out(|| -> () { panic!("as it was told") }) {
                Outcome::Failed(why) => text(StatusCode::INTERNAL_SERVER_ERROR, &why.to_string()),
                other => text(StatusCode::OK, &format!("{other:?}")),
            },
            "/big" => Response::new(StatusCode::OK, TEXT, vec![b'a'; BIG]),
            "/descriptors" => number(body.descriptors),
            _ => Response::new(StatusCode::OK, TEXT, body.bytes),
        };
        self.0.answering.fetch_sub(1, Ordering::SeqCst);
        answer
    }

    fn report(&self, error: &ServeError) {
        self.0.reports.lock().unwrap().push(error.to_string());
    }
}

/// Writes its number into each descriptor, and responds with their count.
fn number(descriptors: Vec<OwnedFd>) -> Response {
    for (number, descriptor) in descriptors.iter().enumerate() {
        assert_eq!(rustix::io::fcntl_getfd(descriptor).unwrap(), FdFlags::CLOEXEC);
        rustix::io::write(descriptor, &[number as u8]).unwrap();
    }
    text(StatusCode::OK, &descriptors.len().to_string())
}

struct Rig {
    server: Option<Server>,
    script: Arc<Script>,
    path: PathBuf,
    _dir: tempfile::TempDir,
}

fn rig(settings: Settings) -> Rig {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let script = Arc::<Script>::default();
    let listener = UnixListener::bind(&path).unwrap();
    let server = Server::start(listener, settings, Scripted(script.clone())).unwrap();
    Rig { server: Some(server), script, path, _dir: dir }
}

impl Rig {
    fn connect(&self) -> UnixStream {
        UnixStream::connect(&self.path).unwrap()
    }

    fn ask(&self, path: &str, body: &[u8]) -> Result<Answer, AskError> {
        let request = Request { method: &Method::POST, path, body, descriptors: &[] };
        ask(&self.connect(), &request, &Limits { time: LONG, body: BIG })
    }

    /// Returns the response to these bytes, up to the connection's end.
    fn answer(&self, bytes: &[u8]) -> String {
        let mut client = self.connect();
        client.write_all(bytes).unwrap();
        rest(&mut client)
    }

    /// Returns the first line of the response.
    fn status(&self, bytes: &[u8]) -> String {
        let answer = self.answer(bytes);
        answer.lines().next().unwrap_or_default().to_owned()
    }

    /// Makes work wait from now on. Work notifies the first channel when it begins, and continues on a
    /// message of the second.
    fn hold_work(&self) -> (Receiver<()>, Sender<()>) {
        let ((begun, has_begun), (go_on, may_go_on)) = (channel(), channel());
        *self.script.begun.lock().unwrap() = Some(begun);
        *self.script.go_on.lock().unwrap() = Some(may_go_on);
        (has_begun, go_on)
    }
}

fn rest(client: &mut UnixStream) -> String {
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    answer
}

/// Sends `bytes` with `descriptors`, all at once.
fn send_with(client: &UnixStream, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)));
    let sent = sendmsg(client, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL).unwrap();
    assert_eq!(sent, bytes.len());
}

/// Returns `count` pipes: their reading and their writing ends.
fn pipes(count: usize) -> (Vec<OwnedFd>, Vec<OwnedFd>) {
    (0..count).map(|_| pipe_with(PipeFlags::CLOEXEC).unwrap()).unzip()
}

fn borrowed(descriptors: &[OwnedFd]) -> Vec<BorrowedFd<'_>> {
    descriptors.iter().map(AsFd::as_fd).collect()
}
