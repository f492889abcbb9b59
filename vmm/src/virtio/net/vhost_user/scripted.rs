//! A back-end for the tests that knows only the wire protocol. It records the messages, answers each one in
//! the simplest way, and stops where the test wants it.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;

use volt_virtio::features::Features;

pub(super) const GET_FEATURES: u32 = 1;
pub(super) const SET_MEM_TABLE: u32 = 5;
pub(super) const SET_VRING_BASE: u32 = 10;
pub(super) const GET_VRING_BASE: u32 = 11;
pub(super) const SET_VRING_KICK: u32 = 12;
pub(super) const GET_PROTOCOL_FEATURES: u32 = 15;
pub(super) const GET_QUEUE_NUM: u32 = 17;
pub(super) const SET_VRING_ENABLE: u32 = 18;

/// The messages that a back-end received: number, and the second word of the body or 0.
pub(crate) type Told = Vec<(u32, u32)>;

/// How a connection ends.
#[derive(Clone, Copy, Debug)]
pub(crate) enum End {
    /// The front-end closes it.
    Theirs,
    /// The back-end closes it, after this number of answered messages.
    Close(usize),
    /// The front-end closes it. After this number of messages the back-end does not answer.
    Hang(usize),
}

/// Serves one connection at `path`, and answers GET_QUEUE_NUM with `queue_num`.
pub(super) fn scripted(path: &Path, queue_num: u64) -> thread::JoinHandle<Told> {
    let listener = UnixListener::bind(path).unwrap();
    thread::spawn(move || serve(&listener, queue_num, End::Theirs))
}

/// Serves the next connection.
pub(crate) fn serve(listener: &UnixListener, queue_num: u64, end: End) -> Told {
    let (mut stream, _) = listener.accept().unwrap();
    let mut told = Vec::new();
    loop {
        if matches!(end, End::Close(after) if told.len() >= after) {
            return told;
        }
        let Some((request, flags, body)) = receive(&mut stream) else { return told };
        let second = body.get(4..8).map_or(0, |word| u32::from_le_bytes(word.try_into().unwrap()));
        told.push((request, second));
        if matches!(end, End::Hang(after) if told.len() > after) {
            continue;
        }
        let answer = match request {
            GET_FEATURES => {
                Features::VERSION_1.union(Features::PROTOCOL_FEATURES).union(Features::NET_MQ).bits()
            }
            GET_PROTOCOL_FEATURES => 1 << 3 | 1,
            GET_QUEUE_NUM => queue_num,
            GET_VRING_BASE => u64::from(body[0]),
            _ if flags & 8 != 0 => 0,
            _ => continue,
        };
        let reply = [request.to_le_bytes(), 5u32.to_le_bytes(), 8u32.to_le_bytes()].concat();
        if stream.write_all(&[reply, answer.to_le_bytes().to_vec()].concat()).is_err() {
            return told;
        }
    }
}

/// Receives number, flags and body of the next message.
fn receive(stream: &mut UnixStream) -> Option<(u32, u32, Vec<u8>)> {
    let mut header = [0; 12];
    stream.read_exact(&mut header).ok()?;
    let [request, flags, size] = [0, 4, 8].map(|at| {
        let word: [u8; 4] = header[at..at + 4].try_into().unwrap();
        u32::from_le_bytes(word)
    });
    let mut body = vec![0; size as usize];
    stream.read_exact(&mut body).ok()?;
    Some((request, flags, body))
}
