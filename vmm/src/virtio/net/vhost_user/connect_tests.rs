//! Connecting to a back-end, and the handshake: waits and refusals.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use super::error::ANSWER_LIMIT;
use super::peer::{Options, Peer};
use super::tests::{config, echo, socket};
use super::*;
use crate::virtio::testing::Driver;

#[test]
fn bad_numbers_are_refused_before_anything_is_connected() {
    let path = PathBuf::from("/nonexistent/net.sock");
    for queues in [0, MAX_QUEUE_PAIRS + 1] {
        assert!(matches!(
            VhostUserNet::connect(&config(&path, queues), &Arc::default()),
            Err(VhostUserNetError::Pairs(_))
        ));
    }
    let (_dir, path) = socket();
    let _peer = Peer::start(&path, Options::default());
    let small = NetSocketConfig { mtu: Some(67), ..config(&path, 1) };
    assert!(matches!(VhostUserNet::connect(&small, &Arc::default()), Err(VhostUserNetError::Mtu(67))));
}

#[test]
fn an_absent_back_end_is_waited_for_as_long_as_allowed() {
    let (_dir, path) = socket();
    let started = Instant::now();
    let short = NetSocketConfig { timeout: Some(Duration::from_millis(300)), ..config(&path, 1) };
    let error = VhostUserNet::connect(&short, &Arc::default()).err().unwrap().to_string();
    assert!(started.elapsed() >= Duration::from_millis(300));
    assert!(error.contains(path.to_str().unwrap()) && error.contains("volt-netd"), "{error}");
    // A socket that a dead daemon left behind counts as absent.
    drop(UnixListener::bind(&path).unwrap());
    assert!(matches!(
        VhostUserNet::connect(&short, &Arc::default()),
        Err(VhostUserNetError::Connect(ConnectError::Absent { .. }))
    ));
}

#[test]
fn a_path_where_no_back_end_can_be_is_not_waited_for() {
    let (dir, path) = socket();
    let datagrams = dir.path().join("datagrams");
    let _other = std::os::unix::net::UnixDatagram::bind(&datagrams).unwrap();
    fs::write(&path, "precious").unwrap();
    // The system accepts this path for a file, but no back-end can listen there.
    let long = dir.path().join("x".repeat(107 - dir.path().as_os_str().len()));
    for (path, why) in [(path, "not a socket"), (datagrams, "datagrams"), (long, "108 bytes")] {
        let error = VhostUserNet::connect(&config(&path, 1), &Arc::default()).err().unwrap();
        assert!(matches!(error, VhostUserNetError::Connect(ConnectError::Refused { .. })), "{error}");
        let error = volt_virtio::error_chain(&error);
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn a_late_back_end_is_found() {
    let (_dir, path) = socket();
    let late = path.clone();
    let peer = thread::spawn(move || {
        thread::sleep(Duration::from_millis(300));
        Peer::start(&late, Options::default())
    });
    let mut driver = Driver::new(VhostUserNet::connect(&config(&path, 1), &Arc::default()).unwrap());
    let _peer = peer.join().unwrap();
    driver.run(Features::VERSION_1, &[0, 1]);
    echo(&mut driver, 0, 1);
}

#[test]
fn a_back_end_that_hangs_in_the_handshake_is_given_up() {
    let (_dir, path) = socket();
    let _listener = UnixListener::bind(&path).unwrap();
    let started = Instant::now();
    let text = match VhostUserNet::connect(&config(&path, 1), &Arc::default()) {
        Ok(_) => panic!("connected"),
        Err(error) => volt_virtio::error_chain(&error),
    };
    assert!(text.contains("no answer to GET_FEATURES"), "{text}");
    assert!((ANSWER_LIMIT..12 * ANSWER_LIMIT).contains(&started.elapsed()));
}

#[test]
fn a_back_end_that_dies_in_the_handshake_is_an_error() {
    let (_dir, path) = socket();
    let listener = UnixListener::bind(&path).unwrap();
    let peer = thread::spawn(move || drop(listener.accept()));
    let text = match VhostUserNet::connect(&config(&path, 1), &Arc::default()) {
        Ok(_) => panic!("connected"),
        Err(error) => volt_virtio::error_chain(&error),
    };
    assert!(text.contains(path.to_str().unwrap()) && text.contains("closed the connection"), "{text}");
    peer.join().unwrap();
}
