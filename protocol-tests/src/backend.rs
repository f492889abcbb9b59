//! A scripted back-end: accepts front-ends in turn, records their messages, and serves frames in memory.
//!
//! [`Backend::listen`] starts a thread that owns the connection and the rings. The test uses
//! [`Backend::sent`] (frames that the guest sent), [`Backend::deliver`] (frames for the guest) and
//! [`Backend::record`] (the messages). Dropping it ends the thread and removes the socket.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;

use crate::frame::NetHeader;
use crate::nic::eventfd;
use crate::wire::{WireError, feature, protocol};
use connection::Connection;
use fault::Fault;
use tamper::Tamper;

mod connection;
mod control;
mod dirty;
pub mod fault;
pub mod tamper;
mod vring;

/// The properties and behaviour of the back-end.
#[derive(Clone, Debug)]
pub struct Script {
    /// Answer to GET_FEATURES.
    pub features: u64,
    /// Answer to GET_PROTOCOL_FEATURES.
    pub protocol: u64,
    /// Answer to GET_QUEUE_NUM.
    pub queue_num: u64,
    /// The configuration space.
    pub config: Vec<u8>,
    /// Whether the guest's frames return to it on the same pair.
    pub echo: bool,
    /// Its deliberate fault.
    pub fault: Option<Fault>,
    /// Its action against its front-end, and the number of connections with that action.
    pub tamper: Option<(Tamper, usize)>,
}

impl Default for Script {
    /// Returns one pair, modern, with a MAC and link up, without offloads.
    fn default() -> Script {
        Script {
            features: feature::VERSION_1
                | feature::PROTOCOL_FEATURES
                | feature::EVENT_IDX
                | feature::INDIRECT_DESC
                | feature::MRG_RXBUF
                | feature::MAC
                | feature::GUEST_CSUM
                | feature::STATUS,
            protocol: protocol::MQ
                | protocol::REPLY_ACK
                | protocol::CONFIG
                | protocol::BACKEND_REQ
                | protocol::CONFIGURE_MEM_SLOTS
                | protocol::RESET_DEVICE,
            queue_num: 2,
            config: vec![0x02, 0, 0, 0, 0, 0x77, 1, 0, 1, 0, 0, 0],
            echo: false,
            fault: None,
            tamper: None,
        }
    }
}

impl Script {
    /// Returns the number of pairs in the configuration space.
    fn pairs(&self) -> u16 {
        self.config.get(8..10).map_or(1, |bytes| u16::from_le_bytes([bytes[0], bytes[1]]))
    }

    /// Returns two pairs, a control queue, offloads of every kind, and all that a migration needs.
    pub fn full() -> Script {
        let one = Script::default();
        let offloads = feature::CSUM
            | feature::HOST_TSO4
            | feature::HOST_TSO6
            | feature::HOST_ECN
            | feature::HOST_USO
            | feature::GUEST_TSO4
            | feature::GUEST_TSO6
            | feature::GUEST_ECN
            | feature::GUEST_USO4
            | feature::GUEST_USO6;
        let mut config = one.config.clone();
        config[8] = 2;
        let features = one.features | feature::MQ | feature::CTRL_VQ | feature::LOG_ALL | offloads;
        let protocol = one.protocol | protocol::LOG_SHMFD | protocol::RARP | protocol::GPA_ADDRESSES;
        Script { features, protocol, queue_num: 5, config, ..one }
    }
}

/// A received message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// Number of the connection, from 0.
    pub connection: usize,
    /// Request number.
    pub request: u32,
    /// Header flags.
    pub flags: u32,
    /// Body.
    pub body: Vec<u8>,
    /// Number of descriptors.
    pub fds: usize,
    /// The kernel's name of each descriptor, and the length of its file.
    pub files: Vec<(String, u64)>,
}

#[derive(Debug, Default)]
struct Shared {
    record: Mutex<Vec<Recorded>>,
    inbox: Mutex<VecDeque<(usize, NetHeader, Vec<u8>)>>,
    faults: Mutex<Vec<String>>,
    /// Replaces the script's configuration space.
    config: Mutex<Option<Vec<u8>>>,
    /// Number of ended connections.
    ended: AtomicUsize,
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A frame the guest sent: queue pair, header, bytes.
pub type Sent = (usize, NetHeader, Vec<u8>);

/// A test's handle to a scripted back-end.
#[derive(Debug)]
pub struct Backend {
    shared: Arc<Shared>,
    sent: Receiver<Sent>,
    wake: Arc<OwnedFd>,
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
    path: PathBuf,
}

impl Backend {
    /// Listens at `path` and serves in a thread.
    pub fn listen(path: &Path, script: Script) -> io::Result<Backend> {
        let listener = UnixListener::bind(path)?;
        let shared = Arc::new(Shared::default());
        let (wake, stop) = (Arc::new(eventfd()?), Arc::new(eventfd()?));
        let (sender, sent) = channel();
        let mut script = script;
        if script.fault == Some(Fault::GroupMac) {
            script.config[0] |= 1;
        }
        let mut server = Server {
            script,
            shared: Arc::clone(&shared),
            sender,
            wake: Arc::clone(&wake),
            stop: Arc::clone(&stop),
            connections: 0,
        };
        let thread = std::thread::spawn(move || server.run(&listener));
        Ok(Backend { shared, sent, wake, stop, thread: Some(thread), path: path.to_owned() })
    }

    /// Waits for its own end, which only some faults cause.
    pub fn join(mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }

    /// Returns the next frame that the guest sent.
    pub fn sent(&self, limit: Duration) -> Option<Sent> {
        self.sent.recv_timeout(limit).ok()
    }

    /// Sends a frame to the guest on a pair, as soon as it has buffers.
    pub fn deliver(&self, pair: usize, header: NetHeader, frame: &[u8]) {
        locked(&self.shared.inbox).push_back((pair, header, frame.to_vec()));
        let _ = rustix::io::write(&*self.wake, &1u64.to_ne_bytes());
    }

    /// Replaces the configuration space, and notifies the front-end if it has provided a channel.
    pub fn change_config(&self, config: Vec<u8>) {
        *locked(&self.shared.config) = Some(config);
        let _ = rustix::io::write(&*self.wake, &1u64.to_ne_bytes());
    }

    /// Returns all messages so far.
    pub fn record(&self) -> Vec<Recorded> {
        locked(&self.shared.record).clone()
    }

    /// Returns the number of ended connections.
    pub fn ended(&self) -> usize {
        self.shared.ended.load(Ordering::Acquire)
    }

    /// Returns the errors of front-ends and drivers so far.
    pub fn faults(&self) -> Vec<String> {
        locked(&self.shared.faults).clone()
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        let _ = rustix::io::write(&*self.stop, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Returns the kernel's name of a descriptor, and the length of its file.
fn file(fd: &OwnedFd) -> (String, u64) {
    let name = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    let len = rustix::fs::fstat(fd).map_or(0, |stat| stat.st_size as u64);
    (name.map_or_else(|_| "?".to_owned(), |name| name.display().to_string()), len)
}

struct Server {
    script: Script,
    shared: Arc<Shared>,
    sender: Sender<Sent>,
    wake: Arc<OwnedFd>,
    stop: Arc<OwnedFd>,
    connections: usize,
}

impl Server {
    fn run(&mut self, listener: &UnixListener) {
        loop {
            let mut fds = [PollFd::new(listener, PollFlags::IN), PollFd::new(&*self.stop, PollFlags::IN)];
            match rustix::event::poll(&mut fds, None) {
                Err(Errno::INTR) => continue,
                Err(_) => return,
                Ok(_) if !fds[1].revents().is_empty() => return,
                Ok(_) => {}
            }
            let Ok((socket, _)) = listener.accept() else { return };
            let mut script = self.script.clone();
            script.tamper = script.tamper.filter(|(_, connections)| self.connections < *connections);
            let mut connection = Connection::new(socket, script);
            let ended = self.serve(&mut connection);
            self.connections += 1;
            self.shared.ended.fetch_add(1, Ordering::Release);
            match self.script.fault {
                Some(Fault::OneConnection) => return,
                Some(Fault::TwentyConnections) if self.connections == 20 => return,
                Some(Fault::Deaf) => loop {
                    std::thread::park();
                },
                _ => {}
            }
            match ended {
                Ok(()) => return,
                Err(WireError::Closed("inside a message")) if self.script.fault == Some(Fault::Exits) => {
                    std::process::exit(3)
                }
                Err(WireError::Closed(_)) => {}
                Err(error) => locked(&self.shared.faults).push(error.to_string()),
            }
        }
    }

    /// Serves one connection; `Ok` if the test is over.
    fn serve(&self, connection: &mut Connection) -> Result<(), WireError> {
        loop {
            let ready = connection.poll(&self.wake, &self.stop)?;
            if ready.stop {
                return Ok(());
            }
            if ready.message {
                let message = connection.recv()?;
                locked(&self.shared.record).push(Recorded {
                    connection: self.connections,
                    request: message.request,
                    flags: message.flags,
                    body: message.body.clone(),
                    fds: message.fds.len(),
                    files: message.fds.iter().map(file).collect(),
                });
                connection.answer(message)?;
            }
            let config = locked(&self.shared.config).take();
            config.map_or(Ok(()), |config| connection.change_config(config))?;
            if let Err(fault) = connection.work(&self.shared, &self.sender) {
                match self.script.fault {
                    Some(Fault::Segfaults) if fault.contains("no guest memory") => Fault::segfault(),
                    Some(Fault::RingAborts) if !fault.contains("no guest memory") => std::process::abort(),
                    _ => {}
                }
                locked(&self.shared.faults).push(fault);
            }
        }
    }
}
