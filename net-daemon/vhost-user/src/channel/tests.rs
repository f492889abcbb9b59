//! Messages in pieces, and ends.

use std::io::{IoSlice, Read, Write};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, sendmsg};

use super::*;

fn pair() -> (Channel, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (Channel::new(ours).unwrap(), theirs)
}

fn bytes(request: u32, flags: u32, body: &[u8]) -> Vec<u8> {
    let words = [request, flags, body.len() as u32];
    words.iter().flat_map(|word| word.to_ne_bytes()).chain(body.iter().copied()).collect()
}

fn send_fds(socket: &UnixStream, bytes: &[u8], count: usize) {
    let fds = vec![socket.as_fd(); count];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::empty()).unwrap();
}

#[test]
fn messages_in_single_bytes_and_several_at_once() {
    let (mut channel, mut peer) = pair();
    for byte in bytes(18, 1, &[1; 8]) {
        assert!(channel.receive().unwrap().is_none());
        peer.write_all(&[byte]).unwrap();
    }
    assert_eq!(channel.receive().unwrap().unwrap().body, [1; 8]);
    peer.write_all(&[bytes(1, 1, &[]), bytes(2, 1, &[2; 8])].concat()).unwrap();
    assert_eq!(channel.receive().unwrap().unwrap().header.request, 1);
    assert_eq!(channel.receive().unwrap().unwrap().body, [2; 8]);
    assert!(channel.receive().unwrap().is_none());
}

#[test]
fn descriptors_stay_with_their_message() {
    let (mut channel, peer) = pair();
    send_fds(&peer, &bytes(12, 1, &[0; 8])[..5], 1);
    assert!(channel.receive().unwrap().is_none());
    (&peer).write_all(&bytes(12, 1, &[0; 8])[5..]).unwrap();
    send_fds(&peer, &bytes(5, 1, &[0; 8]), MAX_TABLE_REGIONS);
    assert_eq!(channel.receive().unwrap().unwrap().fds.len(), 1);
    assert_eq!(channel.receive().unwrap().unwrap().fds.len(), MAX_TABLE_REGIONS);
    for surplus in [MAX_TABLE_REGIONS + 1, 16] {
        let (mut channel, peer) = pair();
        send_fds(&peer, &bytes(5, 1, &[0; 8]), surplus);
        assert!(matches!(channel.receive(), Err(ChannelError::TooManyFds)), "{surplus}");
    }
}

#[test]
fn ends_are_told_apart() {
    let (mut channel, peer) = pair();
    assert!(!channel.is_hung_up());
    drop(peer);
    assert!(channel.is_hung_up());
    assert!(matches!(channel.receive(), Err(ChannelError::Closed)));
    let (mut channel, mut peer) = pair();
    peer.write_all(&[1, 0, 0]).unwrap();
    drop(peer);
    assert!(matches!(channel.receive(), Err(ChannelError::ClosedInside)));
    let (mut channel, mut peer) = pair();
    peer.write_all(&bytes(7, 0, &[])).unwrap();
    let error = channel.receive().unwrap_err();
    assert!(matches!(error, ChannelError::Message { request: 7, source: MessageError::Version(0) }));
}

#[test]
fn a_front_end_that_does_not_read_loses_nothing() {
    let (mut channel, mut peer) = pair();
    let reply = Header::reply(1, &[7; 4000]);
    let mut sent = 0;
    while channel.flush().unwrap() {
        channel.send(&reply).unwrap();
        sent += reply.len();
        assert!(sent < 100_000_000);
    }
    let mut received = vec![0; sent];
    peer.read_exact(&mut received[..sent / 2]).unwrap();
    channel.flush().unwrap();
    peer.read_exact(&mut received[sent / 2..]).unwrap();
    assert!(received.chunks(reply.len()).all(|chunk| chunk == reply));
}
