//! The control socket: bytes and descriptors of a client arrive as one frame or as an error, and no
//! descriptor leaks.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use arbitrary::Arbitrary;
use rustix::event::{EventfdFlags, eventfd};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::Value;
use volt_net::state::transfer::{receive, send};

use super::session::open_files;

#[derive(Arbitrary, Debug)]
pub(super) struct Input {
    /// A frame as sent by this program, before the rest.
    whole: Option<(String, u8)>,
    /// Pieces of any bytes, each with descriptors.
    pieces: Vec<(Vec<u8>, u8)>,
}

pub(super) fn run(input: Input) {
    let before = open_files();
    exchange(&input);
    assert_eq!(open_files(), before, "file descriptors stay open");
}

fn exchange(input: &Input) {
    let (client, daemon) = UnixStream::pair().expect("a socket pair");
    if let Some((text, count)) = &input.whole {
        let fds = descriptors(*count);
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        send(&client, text, &fds).expect("room in the socket");
    }
    let mut bytes = Vec::new();
    let mut surplus = 0;
    for (piece, count) in input.pieces.iter().filter(|(piece, _)| !piece.is_empty()).take(16) {
        let piece = &piece[..piece.len().min(1024)];
        bytes.extend(piece);
        surplus += give(&client, piece, *count % 4);
    }
    drop(client);
    if let Some((text, count)) = &input.whole {
        let (document, fds) = receive::<String>(&daemon).expect("a whole frame");
        assert_eq!((&document, fds.len()), (text, (*count).into()));
    }
    let result = receive::<Value>(&daemon).map(|(document, _)| document);
    // Without descriptors, which may arrive at an unexpected position.
    if surplus == 0 {
        assert_eq!(result.ok(), model(&bytes));
    }
}

/// Returns the document of a frame that announces no descriptors.
fn model(bytes: &[u8]) -> Option<Value> {
    let (len, rest) = bytes.split_first_chunk()?;
    let (count, rest) = rest.split_first_chunk()?;
    let text = rest.get(..u32::from_le_bytes(*len) as usize)?;
    (u32::from_le_bytes(*count) == 0).then(|| serde_json::from_slice(text).ok())?
}

fn descriptors(count: u8) -> Vec<OwnedFd> {
    (0..count).map(|_| eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd")).collect()
}

fn give(client: &UnixStream, bytes: &[u8], count: u8) -> usize {
    let fds = descriptors(count);
    let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !borrowed.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(&borrowed)));
    }
    sendmsg(client, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL).expect("room in the socket");
    fds.len()
}
