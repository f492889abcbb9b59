//! The end of the server, with clients in any state.

use super::*;

/// Work continues after the end of the wait, and its client gets a response.
#[test]
fn the_end_waits_for_no_work() {
    let mut rig = rig(PATIENT);
    let (has_begun, go_on) = rig.hold_work();
    let mut client = rig.connect();
    client.write_all(b"GET /work HTTP/1.1\r\n\r\n").unwrap();
    has_begun.recv().unwrap();
    drop(rig.server.take());
    let answer = rest(&mut client);
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.ends_with("\r\n\r\nends"), "{answer}");
    // The work is still running, and receives this.
    go_on.send(()).unwrap();
    assert!(UnixStream::connect(&rig.path).is_err());
}

#[test]
fn the_end_waits_for_no_request() {
    for half in ["GET /ec", "POST /echo HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"] {
        let mut rig = rig(PATIENT);
        let mut client = rig.connect();
        client.write_all(half.as_bytes()).unwrap();
        if half.starts_with("POST") {
            client.read_exact(&mut [0; 25]).unwrap();
        } else {
            // This request is accepted before the next one.
            rig.ask("/echo", b"").unwrap();
        }
        drop(rig.server.take());
        let answer = rest(&mut client);
        assert!(answer.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{answer}");
    }
}

/// The end waits for the responses to complete requests, while clients read them.
#[test]
fn the_end_waits_for_answers() {
    let mut rig = rig(PATIENT);
    let mut client = rig.connect();
    client.write_all(b"GET /big HTTP/1.1\r\n\r\n").unwrap();
    client.read_exact(&mut [0; 12]).unwrap();
    let reader = thread::spawn(move || rest(&mut client).len());
    drop(rig.server.take());
    assert!(reader.join().unwrap() > BIG);
}

/// The wait for responses is limited.
#[test]
fn the_end_does_not_wait_for_a_client_that_does_not_read() {
    let mut rig = rig(Settings { end: SHORT, ..PATIENT });
    let mut client = rig.connect();
    client.write_all(b"GET /big HTTP/1.1\r\n\r\n").unwrap();
    client.read_exact(&mut [0; 12]).unwrap();
    drop(rig.server.take());
    // Nothing uses the service any more, although the client is still connected.
    while Arc::strong_count(&rig.script) > 1 {
        thread::yield_now();
    }
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).unwrap();
    assert!(answer.len() < BIG);
}

/// A server without clients ends at once. So does one whose places are all taken.
#[test]
fn the_end_is_heard_everywhere() {
    drop(rig(PATIENT));
    let mut rig = rig(Settings { clients: 1, ..PATIENT });
    let _half = rig.connect();
    let _next = rig.connect();
    drop(rig.server.take());
    while Arc::strong_count(&rig.script) > 1 {
        thread::yield_now();
    }
}
