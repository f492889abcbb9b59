//! volt-netd's ports to peers, `--stream` and `--dgram`: peers that are late, restart, send nonsense or do
//! not read; the daemon's own sockets; options.

use std::io::{Read, Write};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::process::Command;
use std::time::Duration;

use protocol_tests::daemon::{Daemon, poll_until, program};
use protocol_tests::far_end::{DatagramPeer, FarEnd, PortKind, StreamPeer, Wire, own_path, peer_path};
use protocol_tests::frame::{NetHeader, number_of, numbered};
use protocol_tests::frontend::Frontend;
use protocol_tests::rig::{LIMIT, QUIET, Rig};
use protocol_tests::session::{Session, Setup};
use protocol_tests::succession::SUPERVISED;

const CONTROL: [&str; 2] = ["--control", "{control}"];

fn stream(rig: &Rig) -> &StreamPeer {
    let Wire::Stream(peer) = &rig.wire else { panic!("a stream") };
    peer
}

/// Sends a frame each way until both arrive: frames are dropped while there is no peer.
fn until_both_ways(rig: &mut Rig, session: &mut Session) {
    let works = poll_until(LIMIT, || {
        let number = rig.number();
        session.tx(0).send(&numbered(number, 100), LIMIT).expect("the chain is returned");
        let (_, got) = rig.wire.recv(Duration::from_millis(20)).expect("the wire")?;
        (number_of(&got) == Some(number)).then_some(())
    });
    works.unwrap_or_else(|| panic!("no frame leaves:\n{}", rig.daemon.log()));
    rig.both_ways(session, 5);
}

/// What a peer sends wrongly ends the connection, is named and counted, and the next connection works.
#[test]
fn a_broken_stream_is_named_counted_and_connected_again() {
    let test = "a_broken_stream_is_named_counted_and_connected_again";
    for supervise in [&CONTROL[..], &SUPERVISED] {
        let Some(mut rig) = Rig::on(PortKind::Stream, test, supervise) else { return };
        let mut session = rig.session(&Setup::default());
        rig.both_ways(&mut session, 3);
        let cases: [(&[u8], &str, u64); 4] = [
            (&[0, 0, 0, 13], "the length 13,", 1),
            (&[0x7f, 0xff, 0xff, 0xff], "the length 2147483647,", 2),
            (&[0, 0, 0, 99, 1, 2, 3], "in the middle of a frame", 3),
            (&[], "closed the connection", 3),
        ];
        for (round, (bytes, reason, failed)) in cases.into_iter().enumerate() {
            let from = rig.daemon.log().len();
            stream(&rig).send_bytes(bytes).expect("sent");
            if round >= 2 {
                stream(&rig).close();
            }
            assert!(
                rig.daemon.logged(from, &["peer is gone", reason], LIMIT).is_some(),
                "{}",
                rig.daemon.log()
            );
            assert!(
                rig.daemon.logged(from, &["peer: opened again"], LIMIT).is_some(),
                "{}",
                rig.daemon.log()
            );
            until_both_ways(&mut rig, &mut session);
            let counters = &rig.status()["counters"][0];
            assert_eq!(counters["rx_failed"], failed, "{counters:#}");
            assert_eq!(counters["reopened"], round + 1, "{counters:#}");
            assert_eq!(stream(&rig).accepted(), round + 2);
        }
        let log = rig.daemon.log();
        assert_eq!(log.matches("is gone").count(), 4, "{log}");
        assert_eq!(log.matches("up again").count(), 0, "{log}");
    }
}

/// A peer that does not read makes frames wait, and nothing else: no CPU time, no more memory, and frames to
/// the guest still flow. Later it gets every frame.
#[test]
fn a_peer_that_does_not_read() {
    for port in PortKind::PEERS {
        let Some(mut rig) = Rig::on(port, "a_peer_that_does_not_read", &CONTROL) else { return };
        let mut session = rig.session(&Setup::default());
        rig.both_ways(&mut session, 3);
        let before = rig.usage();
        let mut sent: u32 = 0;
        // Until the ring is full and stays full.
        let is_stuck = |session: &mut Session, sent: &mut u32| {
            let tx = session.tx(0);
            while tx.ring.outstanding() < 100 {
                tx.offer(&NetHeader::default(), &numbered(*sent, 1400), &[]).expect("room");
                *sent += 1;
            }
            tx.kick_always().expect("a kick");
            let end = std::time::Instant::now() + QUIET;
            while std::time::Instant::now() < end {
                while let Some(used) = session.tx(0).try_used().expect("an intact ring") {
                    session.tx(0).parts(used);
                }
                if session.tx(0).ring.outstanding() < 100 {
                    return false;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            true
        };
        while !is_stuck(&mut session, &mut sent) {}
        assert!(rig.daemon.idle_ticks(QUIET).expect("/proc") <= 2, "the daemon spins");
        rig.wire_to_guest(&mut session, &numbered(77, 300));
        let status = rig.status();
        assert_eq!(
            status["counters"][0]["tx_frames"].as_u64(),
            Some(u64::from(sent) - 100 + 3),
            "{status:#}"
        );
        assert!(status["counters"][0]["tx_waits"].as_u64() >= Some(1), "{status:#}");
        assert!(rig.usage().resident < before.resident + 4096, "{before:?}, {:?}", rig.usage());
        // A hand-over meanwhile changes nothing.
        rig.take_over(&[]);
        for number in 0..sent {
            let (_, got) = rig.wire.recv(LIMIT).expect("the wire").expect("a frame");
            assert_eq!(number_of(&got), Some(number), "{port:?}");
        }
        while session.tx(0).ring.outstanding() > 0 {
            let used = session.tx(0).used(LIMIT).expect("a used chain");
            session.tx(0).parts(used);
        }
        rig.both_ways(&mut session, 3);
    }
}

/// A peer that restarts is connected again; for datagrams that is noticed when the guest sends.
#[test]
fn a_restarted_peer_is_found() {
    for port in PortKind::PEERS {
        let Some(mut rig) = Rig::on(port, "a_restarted_peer_is_found", &[]) else { return };
        let mut session = rig.session(&Setup::default());
        for _ in 0..2 {
            rig.both_ways(&mut session, 3);
            let (from, path) = (rig.daemon.log().len(), peer_path(rig.dir.path()));
            rig.wire = match port {
                PortKind::Stream => {
                    stream(&rig).close();
                    std::fs::remove_file(&path).expect("the peer's socket");
                    Wire::Stream(StreamPeer::new(&path).expect("a socket"))
                }
                _ => {
                    std::fs::remove_file(&path).expect("the peer's socket");
                    Wire::Datagram(DatagramPeer::new(rig.dir.path()).expect("a socket"))
                }
            };
            until_both_ways(&mut rig, &mut session);
            assert!(rig.daemon.logged(from, &["opened again"], LIMIT).is_some());
        }
    }
}

/// A daemon without a namespace of its own: peers need none.
fn start(arguments: &[&str], dir: &std::path::Path) -> Daemon {
    let socket = dir.join("s");
    let mut command = Command::new(program("volt-netd"));
    command.args(arguments).arg("--socket").arg(&socket);
    let mut daemon = Daemon::start(command).expect("volt-netd");
    daemon.wait_for_socket(&socket, LIMIT).expect("volt-netd listens");
    daemon
}

fn session(dir: &std::path::Path) -> Session {
    let frontend = Frontend::connect(&dir.join("s"), LIMIT).expect("a connection");
    let mut session = Session::start(frontend, &Setup::default()).expect("a session");
    session.rx(0).fill(64, &[2048]).expect("receive buffers");
    session
}

/// The peer connects. Its socket is removed at the end, replaced if it is stale, and refused if it is in use.
#[test]
fn a_listening_port_waits_for_its_peer() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = peer_path(dir.path());
    drop(UnixListener::bind(&path).expect("a stale socket"));
    let option = format!("{},listen", path.display());
    let mut daemon = start(&["--stream", &option, "--supervise"], dir.path());
    assert!(daemon.logged(0, &["peer: waiting for the peer on"], LIMIT).is_some());
    let mut session = session(dir.path());
    for round in 1..4 {
        let mut peer = UnixStream::connect(&path).expect("the daemon listens");
        assert!(
            poll_until(LIMIT, || (daemon.log().matches("opened again").count() == round).then_some(()))
                .is_some()
        );
        let frame = numbered(1, 100);
        session.tx(0).send(&frame, LIMIT).expect("sent");
        let mut bytes = vec![0; 104];
        peer.read_exact(&mut bytes).expect("a frame");
        assert_eq!(bytes[4..], frame);
        peer.write_all(&bytes).expect("back");
        assert!(session.rx(0).recv(LIMIT).expect("a frame").bytes == frame);
    }
    let other = dir.path().join("other");
    std::fs::create_dir(&other).expect("a directory");
    let mut second = Command::new(program("volt-netd"));
    second.args(["--stream", &option, "--socket"]).arg(other.join("s"));
    let output = second.output().expect("volt-netd");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && text.contains("is in use by a running daemon"), "{text}");
    assert!(daemon.stop(LIMIT).expect("it ends").success());
    assert!(!path.exists(), "the socket is removed");
}

/// A peer may come later. Its first datagram is vfkit's word, and the own socket is removed at the end.
#[test]
fn datagrams_for_a_peer_that_comes_later() {
    let dir = tempfile::tempdir().expect("a directory");
    let (path, own) = (peer_path(dir.path()), own_path(dir.path()));
    drop(UnixDatagram::bind(&own).expect("a stale socket"));
    let option = format!("{},local={},vfkit", path.display(), own.display());
    let mut daemon = start(&["--dgram", &option], dir.path());
    assert!(daemon.logged(0, &["no peer at"], LIMIT).is_some());
    let mut session = session(dir.path());
    let peer = DatagramPeer::new(dir.path()).expect("a socket");
    let (_, word) = peer.recv(LIMIT).expect("the wire").expect("a datagram");
    assert_eq!(word, b"VFKT");
    assert!(daemon.logged(0, &["peer: opened again"], LIMIT).is_some());
    let works = poll_until(LIMIT, || {
        session.tx(0).send(&numbered(1, 100), LIMIT).expect("the chain is returned");
        peer.recv(Duration::from_millis(20)).expect("the wire")
    });
    assert!(works.is_some_and(|(_, frame)| frame == numbered(1, 100)));
    peer.send(&numbered(2, 100)).expect("sent");
    assert!(session.rx(0).recv(LIMIT).expect("a frame").bytes == numbered(2, 100));
    assert!(daemon.stop(LIMIT).expect("it ends").success());
    assert!(!own.exists() && path.exists(), "only the own socket is removed");
}

/// The socket of a dead daemon's successor is still the same one, and is removed by the last.
#[test]
fn the_own_socket_is_handed_over() {
    let test = "the_own_socket_is_handed_over";
    let Some(mut rig) = Rig::on(PortKind::Datagram, test, &SUPERVISED) else { return };
    let own = own_path(rig.dir.path());
    let mut session = rig.session(&Setup::default());
    rig.both_ways(&mut session, 3);
    rig.kill_worker();
    rig.both_ways(&mut session, 3);
    for arguments in [&[][..], &["--supervise"]] {
        rig.take_over(arguments);
        rig.both_ways(&mut session, 3);
        assert!(own.exists());
    }
    assert!(rig.daemon.stop(LIMIT).expect("it ends").success());
    assert!(!own.exists(), "the last one removes it");
}

#[test]
fn wrong_options_are_refused_by_name() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("file");
    std::fs::write(&file, "").expect("a file");
    let file = file.display().to_string();
    let (path, socket) = (dir.path().join("p").display().to_string(), dir.path().join("s"));
    let long = format!("/tmp/{}", "x".repeat(120));
    let both = format!("{path},local={file}");
    let listen = format!("{file},listen");
    for (arguments, status, word) in [
        (&["--stream", &path, "--queues", "2"][..], 2, "one queue pair"),
        (&["--stream", &path, "--tap", "t"], 2, "cannot be used with"),
        (&["--stream", &path, "--persist"], 2, "cannot be used with"),
        (&["--stream", "p,connect"], 2, "'connect' is unknown"),
        (&["--dgram", "p"], 2, "local=PATH"),
        (&["--stream", &file], 1, "cannot connect to"),
        (&["--stream", &listen], 1, "is not a socket"),
        (&["--dgram", &both], 1, "is not a socket"),
        (&["--stream", &long], 1, "at most 107"),
    ] {
        let mut command = Command::new(program("volt-netd"));
        command.args(arguments).arg("--socket").arg(&socket).arg("--control").arg(dir.path().join("c"));
        let mut daemon = Daemon::start(command).expect("volt-netd");
        let ended = daemon.wait(LIMIT).expect("it ends").code();
        assert!(daemon.logged(0, &[word], LIMIT).is_some() && ended == Some(status), "{}", daemon.log());
        assert!(!socket.exists(), "{arguments:?}");
    }
}
