//! Tests of both wires: what arrives, what breaks a connection, and what a successor does.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

use volt_virtio::part::IoPart;

use super::memory::{LONGEST, OUTBOX};
use super::*;
use crate::port::reopening::open_again;
use crate::port::{HEADER_LEN, MAX_FRAME_LEN};
use crate::testing::frame;

fn queue(kind: Kind, socket: impl Into<OwnedFd>) -> PeerQueue {
    let socket = socket.into();
    set_nonblocking(&socket).unwrap();
    PeerQueue(Connection::new(kind, Arc::new(Numbered::fresh(socket)), PeerMemory::new().unwrap()))
}

fn stream() -> (PeerQueue, UnixStream) {
    let (near, far) = UnixStream::pair().unwrap();
    far.set_nonblocking(true).unwrap();
    (queue(Kind::Stream, near), far)
}

fn datagram() -> (PeerQueue, UnixDatagram) {
    let (near, far) = UnixDatagram::pair().unwrap();
    far.set_nonblocking(true).unwrap();
    (queue(Kind::Datagram, near), far)
}

fn send(queue: &PeerQueue, mut frame: Vec<u8>) -> io::Result<usize> {
    queue.send(&[IoPart::from_slice(&mut frame)])
}

/// Receives into parts of `step` bytes.
fn recv_by(queue: &PeerQueue, step: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0xee; MAX_FRAME_LEN];
    let parts: Vec<_> = bytes.chunks_mut(step).map(IoPart::from_slice).collect();
    let len = queue.recv(&parts)?;
    bytes.truncate(len);
    Ok(bytes)
}

fn recv(queue: &PeerQueue) -> io::Result<Vec<u8>> {
    recv_by(queue, MAX_FRAME_LEN)
}

fn kind_of<T: std::fmt::Debug>(result: io::Result<T>) -> ErrorKind {
    result.unwrap_err().kind()
}

/// The bytes of a frame on a stream.
fn framed(frame: &[u8]) -> Vec<u8> {
    let frame = &frame[HEADER_LEN..];
    [&(frame.len() as u32).to_be_bytes(), frame].concat()
}

fn drain(far: &mut UnixStream) -> Vec<u8> {
    let mut all = Vec::new();
    let _ = far.read_to_end(&mut all);
    all
}

/// Another process's view of the same queue.
fn successor(of: &PeerQueue) -> PeerQueue {
    let memory = of.0.memory.file().unwrap().try_clone().unwrap();
    let memory = PeerMemory::open(of.0.memory.id(), memory.into()).unwrap();
    PeerQueue(Connection::new(of.0.kind, of.0.socket.clone(), memory))
}

#[test]
fn frames_go_both_ways_in_a_stream() {
    let (queue, mut far) = stream();
    for (len, seed) in [(60, 1), (1514, 2), (LONGEST, 3)] {
        assert_eq!(send(&queue, frame(len, seed)).unwrap(), HEADER_LEN + len);
        queue.flush().unwrap();
        assert_eq!(drain(&mut far), framed(&frame(len, seed)));
    }
    assert_eq!(kind_of(send(&queue, frame(13, 1))), ErrorKind::InvalidInput);
    assert_eq!(kind_of(send(&queue, frame(LONGEST + 1, 1))), ErrorKind::InvalidInput);
    assert_eq!(kind_of(recv(&queue)), ErrorKind::WouldBlock);
    // In pieces, and several in one piece; into one buffer, and into many.
    let bytes: Vec<u8> = (0..9).flat_map(|seed| framed(&frame(60 + seed * 7000, seed))).collect();
    let mut received = Vec::new();
    for piece in bytes.chunks(9001) {
        far.write_all(piece).unwrap();
        for step in [MAX_FRAME_LEN, 7].into_iter().cycle() {
            match recv_by(&queue, step) {
                Ok(frame) => received.push(frame),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::WouldBlock);
                    break;
                }
            }
        }
        queue.release();
    }
    assert_eq!(received, (0..9).map(|seed| frame(60 + seed * 7000, seed)).collect::<Vec<_>>());
}

#[test]
fn frames_go_both_ways_in_datagrams() {
    let (queue, far) = datagram();
    for seed in 0..40 {
        send(&queue, frame(60 + seed, seed)).unwrap();
    }
    queue.flush().unwrap();
    let mut bytes = vec![0; MAX_FRAME_LEN];
    for seed in 0..40 {
        let len = far.recv(&mut bytes).unwrap();
        assert_eq!(bytes[..len], frame(60 + seed, seed)[HEADER_LEN..]);
    }
    for step in [MAX_FRAME_LEN, 5, 12, 3000] {
        far.send(&frame(1514, step)[HEADER_LEN..]).unwrap();
        assert_eq!(recv_by(&queue, step).unwrap(), frame(1514, step));
    }
    // Neither too short nor too long datagrams are frames, and nothing stays behind.
    far.send(&[]).unwrap();
    far.send(&[1; 13]).unwrap();
    far.send(&vec![1; LONGEST + 1]).unwrap();
    assert_eq!(recv(&queue).unwrap().len(), HEADER_LEN);
    assert_eq!(recv(&queue).unwrap().len(), HEADER_LEN + 13);
    assert_eq!(recv(&queue).unwrap().len(), HEADER_LEN);
    assert_eq!(kind_of(recv(&queue)), ErrorKind::WouldBlock);
}

/// A frame of 3000 bytes of TCP, to be cut into 1000.
fn tso() -> Vec<u8> {
    let header = [1, 1, 0, 0, 0xe8, 3, 34, 0, 16, 0, 0, 0];
    let ethernet = [[2; 12].as_slice(), &[8, 0]].concat();
    let ip = [&[0x45, 0, 0, 0, 0, 0, 0, 0, 64, 6, 0, 0][..], &[10; 8]].concat();
    let tcp = [&[0; 12][..], &[0x50, 0x10], &[0; 6]].concat();
    [&header[..], &ethernet, &ip, &tcp, &[7; 3000]].concat()
}

/// The wire has no offloads: a frame is cut, all of it or nothing, and one that cannot be cut is refused.
#[test]
fn a_large_frame_goes_in_segments() {
    let (queue, mut far) = stream();
    assert_eq!(send(&queue, tso()).unwrap(), HEADER_LEN + 54 + 3000);
    queue.flush().unwrap();
    let all = drain(&mut far);
    assert_eq!(all.len(), 3 * (4 + 54 + 1000));
    for (number, segment) in all.chunks(4 + 54 + 1000).enumerate() {
        assert_eq!(segment[..4], 1054_u32.to_be_bytes());
        assert_eq!(segment[4 + 38..4 + 42], (1000 * number as u32).to_be_bytes());
    }
    for (at, wrong) in [(0, 0), (1, 77), (4, 0), (6, 35), (8, 17)] {
        let mut frame = tso();
        frame[at] = wrong;
        frame[at + 1] = if at == 4 { 0 } else { frame[at + 1] };
        assert_eq!(kind_of(send(&queue, frame)), ErrorKind::InvalidInput, "{at}");
    }
    assert!(queue.0.memory.outbox().is_empty());
    let mut count = 0;
    while send(&queue, tso()).is_ok() {
        count += 1;
    }
    let mut all = Vec::new();
    while kind_of_flush(&queue) == Some(ErrorKind::WouldBlock) {
        all.extend(drain(&mut far));
    }
    all.extend(drain(&mut far));
    assert_eq!(all.len(), count * 3 * (4 + 54 + 1000));
}

/// What a peer sends wrongly ends the connection once, with the reason.
#[test]
fn a_broken_stream_is_named_and_stays_broken() {
    let half = &framed(&frame(60, 1))[..40];
    for (bytes, expected, reason) in [
        (&[][..], ErrorKind::BrokenPipe, "closed the connection"),
        (half, ErrorKind::InvalidData, "in the middle of a frame"),
        (&[0, 0, 0, 13, 1, 2], ErrorKind::InvalidData, "the length 13"),
        (&[0, 1, 0xff, 0xff], ErrorKind::InvalidData, "the length 131071"),
        (&[0xff; 4], ErrorKind::InvalidData, "the length 4294967295"),
    ] {
        let (queue, mut far) = stream();
        far.write_all(&framed(&frame(99, 2))).unwrap();
        far.write_all(bytes).unwrap();
        far.shutdown(std::net::Shutdown::Write).unwrap();
        // What came before is a frame.
        assert_eq!(recv(&queue).unwrap(), frame(99, 2));
        let error = recv(&queue).unwrap_err();
        assert_eq!(error.kind(), expected, "{reason}");
        assert!(error.to_string().contains(reason), "{error}");
        for again in [recv(&queue).map(drop), send(&queue, frame(60, 1)).map(drop), queue.probe()] {
            let again = again.unwrap_err();
            assert!(again.kind() == ErrorKind::BrokenPipe && again.get_ref().is_none(), "{again}");
        }
        // The peer notices as well.
        assert_eq!(far.read(&mut [0]).unwrap(), 0, "{reason}");
    }
}

#[test]
fn a_closed_peer_is_noticed_by_sending() {
    let (queue, far) = stream();
    drop(far);
    send(&queue, frame(60, 1)).unwrap();
    let error = queue.flush().unwrap_err();
    assert!(error.kind() == ErrorKind::BrokenPipe && error.get_ref().is_some(), "{error}");
    assert_eq!(kind_of(send(&queue, frame(60, 1))), ErrorKind::BrokenPipe);
    let (queue, far) = datagram();
    drop(far);
    send(&queue, frame(60, 1)).unwrap();
    assert_eq!(kind_of(queue.flush()), ErrorKind::BrokenPipe);
    assert_eq!(kind_of(recv(&queue)), ErrorKind::BrokenPipe);
}

/// A peer that does not read costs no more than the outbox, and gets everything later.
#[test]
fn a_peer_that_does_not_read_makes_frames_wait() {
    let (queue, mut far) = stream();
    let mut accepted = 0;
    while send(&queue, frame(1514, accepted)).is_ok() {
        accepted += 1;
    }
    assert_eq!(kind_of(send(&queue, frame(1514, 0))), ErrorKind::WouldBlock);
    assert_eq!(kind_of(queue.flush()), ErrorKind::WouldBlock);
    let waiting = queue.0.memory.outbox().len();
    assert!(waiting <= OUTBOX && accepted * 1518 > waiting, "{accepted} frames, {waiting} bytes wait");
    let mut all = Vec::new();
    while kind_of_flush(&queue) == Some(ErrorKind::WouldBlock) {
        all.extend(drain(&mut far));
    }
    all.extend(drain(&mut far));
    assert!(all == (0..accepted).flat_map(|seed| framed(&frame(1514, seed))).collect::<Vec<_>>());
    send(&queue, frame(60, 1)).unwrap();
}

fn kind_of_flush(queue: &PeerQueue) -> Option<ErrorKind> {
    queue.flush().err().map(|error| error.kind())
}

/// The receiver has room for `net.unix.max_dgram_qlen` datagrams: the others wait, in order.
#[test]
fn datagrams_without_room_wait() {
    let dir = tempfile::tempdir().unwrap();
    let far = UnixDatagram::bind(dir.path().join("far")).unwrap();
    far.set_nonblocking(true).unwrap();
    let near = UnixDatagram::unbound().unwrap();
    near.connect(dir.path().join("far")).unwrap();
    let queue = queue(Kind::Datagram, near);
    for seed in 0..100 {
        send(&queue, frame(60 + seed, seed)).unwrap();
    }
    let mut received = Vec::new();
    let mut bytes = vec![0; MAX_FRAME_LEN];
    let mut waits = 0;
    while kind_of_flush(&queue) == Some(ErrorKind::WouldBlock) || received.len() < 100 {
        waits += 1;
        while let Ok(len) = far.recv(&mut bytes) {
            received.push(bytes[..len].to_vec());
        }
    }
    assert!(waits > 1);
    let expected: Vec<_> = (0..100).map(|seed| frame(60 + seed, seed)[HEADER_LEN..].to_vec()).collect();
    assert_eq!(received, expected);
}

/// A successor sends what waits, delivers what has arrived, and repeats what the guest may not have.
#[test]
fn a_successor_continues_at_the_same_byte() {
    let (first, mut far) = stream();
    while send(&first, frame(1514, 7)).is_ok() {}
    let sent = drain(&mut far);
    far.write_all(&[framed(&frame(60, 1)), framed(&frame(60, 2)), framed(&frame(60, 3))].concat()[..170])
        .unwrap();
    assert_eq!(recv(&first).unwrap(), frame(60, 1));
    first.release();
    assert_eq!(recv(&first).unwrap(), frame(60, 2));
    let second = successor(&first);
    assert!(second.0.resume());
    drop(first);
    assert_eq!(recv(&second).unwrap(), frame(60, 2));
    assert_eq!(kind_of(recv(&second)), ErrorKind::WouldBlock);
    far.write_all(&framed(&frame(60, 3))[42..]).unwrap();
    assert_eq!(recv(&second).unwrap(), frame(60, 3));
    let mut all = sent;
    while kind_of_flush(&second) == Some(ErrorKind::WouldBlock) {
        all.extend(drain(&mut far));
    }
    all.extend(drain(&mut far));
    let one = framed(&frame(1514, 7));
    assert!(all.len().is_multiple_of(one.len()) && all.chunks(one.len()).all(|chunk| chunk == one));
}

/// A process that died in a call leaves a stream that nobody can continue, whichever call it was.
#[test]
fn a_successor_closes_a_stream_that_is_out_of_step() {
    for sending in [true, false] {
        let (first, mut far) = stream();
        far.write_all(&framed(&frame(60, 1))).unwrap();
        send(&first, frame(60, 1)).unwrap();
        let died = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            first.0.memory.under_way(|| (), |()| panic!("dies {sending}"));
        }));
        assert!(died.is_err());
        let second = successor(&first);
        assert!(!second.0.resume());
        drop(first);
        assert_eq!(kind_of(recv(&second)), ErrorKind::BrokenPipe);
        assert_eq!(kind_of(second.flush()), ErrorKind::BrokenPipe);
        assert!(drain(&mut far).is_empty());
        // The third process finds it closed, and not under way.
        let third = successor(&second);
        assert!(third.0.resume());
        assert_eq!(kind_of(recv(&third)), ErrorKind::BrokenPipe);
    }
}

/// The inbox is used from its start again, also in the middle of frames.
#[test]
fn the_inbox_never_runs_out() {
    let (queue, mut far) = stream();
    far.set_nonblocking(false).unwrap();
    let writer = std::thread::spawn(move || {
        for seed in 0..200 {
            far.write_all(&framed(&frame(60 + seed * 327, seed))).unwrap();
        }
    });
    let mut seed = 0;
    while seed < 200 {
        match recv(&queue) {
            Ok(received) => {
                assert!(received == frame(60 + seed * 327, seed), "{seed}");
                seed += 1;
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
        if seed % 64 == 0 {
            queue.release();
        }
    }
    writer.join().unwrap();
}

#[test]
fn a_peer_may_appear_later_and_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("peer");
    let options = || PeerOptions::Stream(StreamOptions { path: path.clone(), listen: false });
    let mut port = PeerPort::open(options(), None, open_again).unwrap();
    assert_eq!(port.name(), "peer");
    assert_eq!(kind_of(port.queue(0).recv(&[])), ErrorKind::BrokenPipe);
    let listener = UnixListener::bind(&path).unwrap();
    for _ in 0..2 {
        let Reopener::Process(what, None) = port.reopening() else { panic!() };
        let sockets = open_again(&what, None).unwrap();
        port.adopt(sockets).unwrap();
        let mut far = listener.accept().unwrap().0;
        far.write_all(&framed(&frame(60, 1))).unwrap();
        let mut bytes = vec![0; MAX_FRAME_LEN];
        assert_eq!(port.queue(0).recv(&[IoPart::from_slice(&mut bytes)]).unwrap(), HEADER_LEN + 60);
    }
    // A path of another kind never becomes right.
    std::fs::remove_file(&path).unwrap();
    let _other = UnixDatagram::bind(&path).unwrap();
    let error = PeerPort::open(options(), None, open_again).unwrap_err();
    assert!(matches!(error, PeerError::Connect { .. }), "{error}");
}

#[test]
fn a_listening_port_accepts_one_peer_after_another() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("own");
    let listener = UnixListener::bind(&path).unwrap();
    let options = PeerOptions::Stream(StreamOptions { path: path.clone(), listen: true });
    let mut port = PeerPort::open(options, Some(listener.into()), open_again).unwrap();
    assert!(matches!(port.reopening(), Reopener::Port));
    assert!(port.is_gone() && kind_of(port.reopen()) == ErrorKind::WouldBlock);
    for _ in 0..2 {
        let mut far = UnixStream::connect(&path).unwrap();
        port.reopen().unwrap();
        port.queue(0).send(&[IoPart::from_slice(&mut frame(60, 1))]).unwrap();
        port.queue(0).flush().unwrap();
        let mut bytes = [0; 64];
        far.read_exact(&mut bytes).unwrap();
        assert_eq!(bytes[..], framed(&frame(60, 1)));
    }
}

/// The own socket stays, and is connected to each peer, which gets vfkit's word first.
#[test]
fn datagrams_begin_with_vfkits_word_if_wanted() {
    let dir = tempfile::tempdir().unwrap();
    let (path, local) = (dir.path().join("peer"), dir.path().join("own"));
    let own = UnixDatagram::bind(&local).unwrap();
    let options = DatagramOptions { path: path.clone(), local: local.clone(), vfkit: true };
    let mut port = PeerPort::open(PeerOptions::Datagram(options), Some(own.into()), open_again).unwrap();
    assert_eq!(kind_of(port.queue(0).recv(&[])), ErrorKind::BrokenPipe);
    for _ in 0..2 {
        let _ = std::fs::remove_file(&path);
        let far = UnixDatagram::bind(&path).unwrap();
        let Reopener::Process(what, Some(socket)) = port.reopening() else { panic!() };
        let sockets = open_again(&what, Some(socket)).unwrap();
        assert!(sockets.is_empty());
        port.adopt(sockets).unwrap();
        let mut bytes = [0; 100];
        assert_eq!(far.recv(&mut bytes).unwrap(), 4);
        assert_eq!(&bytes[..4], b"VFKT");
        far.send_to(&frame(60, 1)[HEADER_LEN..], &local).unwrap();
        let mut bytes = vec![0; MAX_FRAME_LEN];
        assert_eq!(port.queue(0).recv(&[IoPart::from_slice(&mut bytes)]).unwrap(), HEADER_LEN + 60);
        // Nobody else can send.
        let stranger = UnixDatagram::unbound().unwrap();
        assert!(stranger.send_to(&[0; 60], &local).is_err());
    }
}

#[test]
fn a_port_continues_from_a_state() {
    let (near, mut far) = UnixStream::pair().unwrap();
    let options = PeerOptions::Stream(StreamOptions { path: "/run/p".into(), listen: false });
    let port = PeerPort::open(options, None, |_, _| Ok(vec![near.into()])).unwrap();
    port.queue(0).send(&[IoPart::from_slice(&mut frame(60, 1))]).unwrap();
    let mut out = Exporter::default();
    let state = serde_json::to_string(&port.export(&mut out).unwrap()).unwrap();
    let fds: BTreeMap<_, _> =
        out.into_fds().into_iter().map(|(id, fd)| (id, fd.try_clone_to_owned().unwrap())).collect();
    let state = serde_json::from_str(&state).unwrap();
    let mut next = crate::port::import::import(state, &mut Importer::new(fds)).unwrap();
    drop(port);
    next.own();
    next.queue(0).flush().unwrap();
    let mut bytes = [0; 64];
    far.read_exact(&mut bytes).unwrap();
    assert_eq!(bytes[..], framed(&frame(60, 1)));
}
