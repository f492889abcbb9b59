//! A front-end's connection: bytes and descriptors through channel and session to a device of two pairs over
//! a socket port, with hand-overs between processes. Each message is answered by the protocol's rules, or
//! ends the connection; no descriptor leaks.

use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};

use arbitrary::Arbitrary;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use volt_net::config::Mac;
use volt_net::device::{DeviceOptions, NetDevice};
use volt_net::port::socket::SocketPort;
use volt_net::state::{Exporter, Importer, transfer};
use volt_vhost_user::channel::{Channel, ChannelState};
use volt_vhost_user::session::state::SessionState;
use volt_vhost_user::session::{Session, SessionError};

use super::STEPS;
use super::answers::{Answer, FILE, Negotiated, RING_SIZE_MAX};
use super::message::{Fd, Logged, Message, Offers, Span};
use super::rig::notifier;

const PAIRS: u16 = 2;

#[derive(Arbitrary, Debug)]
pub(super) struct Input {
    /// Contents of the first page of guest memory, the likely place of rings.
    memory: [u16; 32],
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
enum Step {
    Message(Message),
    /// The set-up of a whole pair, like a front-end's.
    SetUp {
        second: bool,
        without: Option<u8>,
    },
    /// The beginning of a migration.
    Migrate(Span, Logged),
    /// The beginning of a migration with a log that is large enough.
    Log,
    /// Bytes that may be no message.
    Bytes(Vec<u8>),
    Frame(u8),
    Kick(u8),
    Control,
    /// Another process continues with the connection, from this one's state.
    HandOver,
}

/// A front-end with its connection.
struct Peer {
    socket: UnixStream,
    channel: Channel,
    session: Session,
    device: NetDevice,
    wires: Vec<UnixDatagram>,
    kicks: Vec<OwnedFd>,
    files: [OwnedFd; 2],
    log: OwnedFd,
    negotiated: Negotiated,
    /// Sent bytes may be the beginning of any message.
    wild: bool,
}

pub(super) fn run(input: Input) {
    // Without it the signal that wakes a slow worker would end the process.
    let before = open_files();
    let mut peer = Peer::new(&input.memory);
    for step in input.steps.iter().take(STEPS) {
        if !peer.step(step) {
            break;
        }
    }
    let Peer { session, mut device, .. } = peer;
    session.close(&mut device).expect("workers stop");
    if let Some(logs) = peer.negotiated.logs().filter(|_| !peer.wild) {
        marks_are_inside(&peer.log, logs);
    }
    drop((device, peer.socket, peer.channel, peer.wires, peer.kicks, peer.files, peer.log));
    wait_for_descriptor_threads();
    assert_eq!(open_files(), before, "file descriptors stay open");
}

/// Checks that nothing in the file but these logs was written.
fn marks_are_inside(file: &OwnedFd, logs: &[[u64; 2]]) {
    let mut bytes = vec![0; FILE as usize];
    rustix::io::pread(file, &mut bytes, 0).expect("a memfd");
    let is_log =
        |at: usize| logs.iter().any(|[size, offset]| (*offset..offset + size).contains(&(at as u64)));
    let outside = bytes.iter().enumerate().position(|(at, byte)| *byte != 0 && !is_log(at));
    assert_eq!(outside, None, "a mark outside of the logs {logs:x?}");
}

/// A thread that classifies descriptors ends shortly after its answer: the descriptors it still has are no
/// leak.
fn wait_for_descriptor_threads() {
    let name = |task: std::io::Result<std::fs::DirEntry>| std::fs::read_to_string(task?.path().join("comm"));
    for _ in 0..10_000 {
        let tasks = std::fs::read_dir("/proc/self/task").expect("/proc is mounted");
        if !tasks.map(name).any(|name| name.is_ok_and(|name| name == "descriptors\n")) {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    panic!("a thread that classifies descriptors does not end");
}

pub(super) fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("/proc is mounted").count()
}

impl Peer {
    fn new(memory: &[u16; 32]) -> Peer {
        let (ports, wires): (Vec<OwnedFd>, _) = (0..PAIRS)
            .map(|_| UnixDatagram::pair().expect("a socket pair"))
            .map(|(ours, theirs)| (ours.into(), theirs))
            .unzip();
        let options = DeviceOptions { pairs: PAIRS, mac: Mac([2, 0, 0, 0, 0, 1]), mtu: None };
        let port = SocketPort::new(ports).expect("sockets");
        let device = NetDevice::new(Box::new(port), options, notifier()).expect("memory");
        let (socket, theirs) = UnixStream::pair().expect("a socket pair");
        socket.set_nonblocking(true).expect("a socket");
        let empty = || {
            let fd = memfd_create("guest", MemfdFlags::CLOEXEC).expect("a memfd");
            ftruncate(&fd, FILE).expect("a memfd");
            fd
        };
        let file = || {
            let fd = empty();
            let bytes: Vec<u8> = memory.iter().flat_map(|word| word.to_le_bytes()).collect();
            rustix::io::pwrite(&fd, &bytes, 0).expect("a memfd");
            fd
        };
        let mut peer = Peer {
            negotiated: Negotiated::default(),
            session: Session::new(&device, RING_SIZE_MAX),
            channel: Channel::new(theirs).expect("a socket"),
            socket,
            device,
            wires,
            kicks: Vec::new(),
            files: [file(), file()],
            log: empty(),
            wild: false,
        };
        peer.negotiated = Negotiated::new(Offers { features: peer.ask(1), protocol: peer.ask(15) });
        peer
    }

    /// Returns the answer to a request without a body.
    fn ask(&mut self, request: u32) -> u64 {
        self.send(&[request, 1, 0].map(u32::to_ne_bytes).concat(), &[]);
        let body = reply(&self.serve().expect("a connection"), request);
        u64::from_ne_bytes(body.try_into().expect("a number"))
    }

    /// Executes a step. Returns `false` if the connection has ended.
    fn step(&mut self, step: &Step) -> bool {
        match step {
            Step::Message(message) => self.exchange(message),
            Step::SetUp { second, without } => self.exchange_all(&Message::set_up(*second, *without)),
            Step::Migrate(span, logged) => self.exchange_all(&Message::migrate(*span, *logged)),
            Step::Log => self.exchange_all(&Message::migrate(Span::Tiny(2), Logged::There)),
            Step::Bytes(bytes) => {
                self.wild = true;
                let _ = self.socket.write(&bytes[..bytes.len().min(300)]);
                self.serve().is_some()
            }
            Step::Frame(len) => {
                let wire = &self.wires[usize::from(len % 2)];
                wire.set_nonblocking(true).expect("a socket");
                let _ = wire.send(&vec![0; usize::from(*len)]);
                let _ = wire.recv(&mut [0; 64]);
                true
            }
            Step::Kick(n) => {
                let kick = self.kicks.get(usize::from(*n) % self.kicks.len().max(1));
                kick.into_iter().for_each(|kick| {
                    let _ = rustix::io::write(kick, &1u64.to_ne_bytes());
                });
                true
            }
            Step::Control => {
                if self.session.control_kick().is_some() {
                    let _ = self.session.control_kicked(&mut self.device);
                    let _ = self.session.answer_control();
                }
                true
            }
            Step::HandOver => {
                self.hand_over();
                true
            }
        }
    }

    /// Exports the state and takes over from it, after any messages, without any visible effect.
    fn hand_over(&mut self) {
        self.session.pause(&mut self.device).expect("workers stop");
        let mut out = Exporter::default();
        let state = (self.channel.export(&mut out), self.session.export(&mut out));
        let (ids, fds): (Vec<_>, Vec<_>) = out.into_fds().into_iter().unzip();
        let (old, new) = UnixStream::pair().expect("a socket pair");
        transfer::send(&old, &state, &fds).expect("sent");
        let ((channel, session), fds) =
            transfer::receive::<(ChannelState, SessionState)>(&new).expect("received");
        let mut from = Importer::new(ids.into_iter().zip(fds).collect());
        let channel = Channel::import(channel, &mut from).expect("the connection is taken");
        let session = Session::import(&session, &mut from, &self.device, RING_SIZE_MAX);
        let mut session = session.expect("the session is taken");
        session.set_broken(&self.session.broken());
        session.resume(&mut self.device);
        (self.channel, self.session) = (channel, session);
    }

    fn exchange_all(&mut self, messages: &[Message]) -> bool {
        messages.iter().all(|message| self.exchange(message))
    }

    /// Sends `message` and compares the answer with the model's.
    fn exchange(&mut self, message: &Message) -> bool {
        let (request, flags, body) =
            message.encode(self.negotiated.offers(), self.negotiated.guest_addresses());
        let bytes: Vec<u8> = [request, flags, body.len() as u32]
            .iter()
            .flat_map(|word| word.to_ne_bytes())
            .chain(body)
            .collect();
        let fds: Vec<OwnedFd> = message.fds().into_iter().map(|fd| self.open(fd)).collect();
        let cut = message.cut().clamp(1, bytes.len());
        let (first, rest) = bytes.split_at(cut);
        self.send(first, &fds);
        let mut replies = None;
        if rest.is_empty() {
            replies = self.serve();
        } else if let Some(early) = self.serve() {
            assert!(self.wild || early.is_empty(), "an answer to half a message");
            self.send(rest, &[]);
            replies = self.serve();
        }
        if self.wild {
            return replies.is_some();
        }
        let expected = self.negotiated.expect(message);
        let Some(replies) = replies else {
            assert!(expected.may_end(), "{message:?} ended the connection");
            return false;
        };
        match expected {
            Answer::Ends => panic!("{message:?} did not end the connection"),
            Answer::Nothing => assert!(replies.is_empty(), "{message:?} was answered"),
            Answer::Unknown => {
                let status = replies.get(12..).unwrap_or_default();
                self.negotiated.learn(message, status.iter().all(|byte| *byte == 0));
            }
            Answer::Status(good) => {
                let status = reply(&replies, request);
                assert_eq!((status.len(), status.iter().all(|byte| *byte == 0)), (8, good), "{message:?}");
            }
            Answer::Payload(len) => assert_eq!(reply(&replies, request).len(), len, "{message:?}"),
            Answer::Bytes(bytes) => assert_eq!(reply(&replies, request), bytes, "{message:?}"),
        }
        true
    }

    fn open(&mut self, fd: Fd) -> OwnedFd {
        match fd {
            Fd::Eventfd => {
                let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("an eventfd");
                self.kicks.push(fd.try_clone().expect("a descriptor"));
                fd
            }
            Fd::Memory(second) => self.files[usize::from(second)].try_clone().expect("a descriptor"),
            Fd::Log => self.log.try_clone().expect("a descriptor"),
            Fd::Socket => self.socket.as_fd().try_clone_to_owned().expect("a descriptor"),
            Fd::Null => std::fs::File::open("/dev/null").expect("/dev/null").into(),
        }
    }

    fn send(&self, bytes: &[u8], fds: &[OwnedFd]) {
        if bytes.is_empty() {
            return;
        }
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        }
        let _ = sendmsg(&self.socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL);
    }

    /// Lets the back-end process the received bytes, and returns its answer; `None` if it ends the
    /// connection.
    fn serve(&mut self) -> Option<Vec<u8>> {
        while let Some(message) = self.channel.receive().ok()? {
            match self.session.handle(message, &mut self.device) {
                Ok(reply) => reply.iter().try_for_each(|reply| self.channel.send(reply)).ok()?,
                Err(SessionError::Refused { .. }) => return None,
                Err(error) => panic!("{}", volt_virtio::error_chain(&error)),
            }
        }
        let mut replies = vec![0; 0x4000];
        let len = self.socket.read(&mut replies).unwrap_or(0);
        replies.truncate(len);
        Some(replies)
    }
}

/// Returns the body of the one reply in `bytes`.
fn reply(bytes: &[u8], request: u32) -> Vec<u8> {
    let (header, body) = bytes.split_first_chunk::<12>().expect("a reply");
    let words: Vec<u32> = header.as_chunks().0.iter().map(|word| u32::from_ne_bytes(*word)).collect();
    assert_eq!(words, [request, 5, body.len() as u32], "the header of a reply");
    body.to_vec()
}
