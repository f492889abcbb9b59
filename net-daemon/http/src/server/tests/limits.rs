//! Clients that stop in the middle, many clients, and work that takes too long.

use super::*;

#[test]
fn half_a_request_is_not_waited_for() {
    for half in ["", "GET /ec", "GET / HTTP/1.1\r\na: b\r\n"] {
        let rig = rig(Settings { head: SHORT, ..PATIENT });
        let answer = rig.answer(half.as_bytes());
        assert!(answer.starts_with("HTTP/1.1 408 Request Timeout\r\n"), "{answer}");
        assert!(answer.contains("head does not come within 0.05 s"), "{answer}");
    }
    let rig = rig(Settings { body: SHORT, ..PATIENT });
    for body in ["", "hel"] {
        let answer = rig.answer(format!("POST / HTTP/1.1\r\ncontent-length: 5\r\n\r\n{body}").as_bytes());
        assert!(answer.starts_with("HTTP/1.1 408 Request Timeout\r\n"), "{answer}");
        assert!(answer.contains("body does not come within 0.05 s"), "{answer}");
    }
}

/// A client that has ended its request early gets a response. A client that is gone is ignored.
#[test]
fn requests_that_end_in_the_middle() {
    let rig = rig(PATIENT);
    for (half, status) in [
        ("", None),
        ("GET /ec", Some("HTTP/1.1 400 Bad Request")),
        ("POST / HTTP/1.1\r\ncontent-length: 5\r\n\r\nhel", Some("HTTP/1.1 400 Bad Request")),
        ("POST / HTTP/1.1\r\ncontent-length: 5\r\n\r\nhello", Some("HTTP/1.1 200 OK")),
    ] {
        let mut client = rig.connect();
        client.write_all(half.as_bytes()).unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let answer = rest(&mut client);
        assert_eq!(answer.lines().next(), status, "{half}");
        drop(client);
        let mut client = rig.connect();
        client.write_all(half.as_bytes()).unwrap();
    }
    assert_eq!(rig.ask("/echo", b"still").unwrap().body, b"still");
}

/// Others are served while a client does not read its response. Its place is free when its time is up.
#[test]
fn a_client_that_does_not_read() {
    let rig = rig(Settings { clients: 2, ..PATIENT });
    let mut deaf = rig.connect();
    deaf.write_all(b"GET /big HTTP/1.1\r\n\r\n").unwrap();
    // The response is being sent.
    deaf.read_exact(&mut [0; 12]).unwrap();
    for _ in 0..10 {
        assert_eq!(rig.ask("/echo", b"others").unwrap().body, b"others");
    }
    // The client was only slow.
    assert!(rest(&mut deaf).len() > BIG);
}

#[test]
fn an_answer_that_nobody_reads_comes_to_an_end() {
    let rig = rig(Settings { clients: 1, connection: Duration::from_secs(1), ..PATIENT });
    let mut deaf = rig.connect();
    deaf.write_all(b"GET /big HTTP/1.1\r\n\r\n").unwrap();
    deaf.read_exact(&mut [0; 12]).unwrap();
    // On a slow machine, the probe itself may take a second: ask again.
    while rig.ask("/echo", b"").is_err() {}
    let mut answer = Vec::new();
    let _ = deaf.read_to_end(&mut answer);
    assert!(answer.len() < BIG);
    let reports = rig.script.reports.lock().unwrap();
    assert!(reports.iter().any(|report| report.contains("the response cannot be sent")), "{reports:?}");
}

/// Clients without a place wait for one.
#[test]
fn places_are_left_and_taken() {
    let rig = rig(PATIENT);
    let mut waiting: Vec<_> = (0..PATIENT.clients).map(|_| rig.connect()).collect();
    for client in &mut waiting {
        client.write_all(b"GET /echo").unwrap();
    }
    thread::scope(|scope| {
        let next = scope.spawn(|| rig.ask("/echo", b"next").unwrap());
        // Enough time for the request to be sent, usually.
        thread::sleep(SHORT);
        assert!(!next.is_finished());
        waiting.pop();
        assert_eq!(next.join().unwrap().body, b"next");
    });
    for mut client in waiting {
        client.write_all(b" HTTP/1.1\r\n\r\n").unwrap();
        assert!(rest(&mut client).starts_with("HTTP/1.1 200 OK"));
    }
}

#[test]
fn many_clients() {
    let rig = rig(PATIENT);
    thread::scope(|scope| {
        for client in 0..40 {
            let rig = &rig;
            scope.spawn(move || {
                for round in 0..5 {
                    let body = format!("{client} {round}");
                    let path = if round == 0 { "/work" } else { "/echo" };
                    let answer = rig.ask(path, body.as_bytes()).unwrap();
                    let expected = if round == 0 { b"worked" } else { body.as_bytes() };
                    assert_eq!((answer.status, answer.body.as_slice()), (StatusCode::OK, expected));
                }
            });
        }
    });
    let most = rig.script.most_answering.load(Ordering::SeqCst);
    assert!((1..=PATIENT.clients).contains(&most), "{most}");
}

/// The client gets a response, and the work continues. It occupies a place for work, but none for clients.
#[test]
fn work_that_takes_too_long() {
    let rig = rig(Settings { clients: 1, work: SHORT, work_at_once: 2, ..PATIENT });
    let held: Vec<_> = (0..2)
        .map(|_| {
            let (has_begun, go_on) = rig.hold_work();
            let answer = rig.ask("/work", b"").unwrap();
            assert_eq!((answer.status, answer.body.as_slice()), (StatusCode::GATEWAY_TIMEOUT, &b"late"[..]));
            has_begun.recv().unwrap();
            go_on
        })
        .collect();
    *rig.script.begun.lock().unwrap() = None;
    let refused = rig.ask("/work", b"").unwrap().body;
    assert_eq!(refused, b"2 requests are still being carried out");
    assert_eq!(rig.ask("/echo", b"others").unwrap().body, b"others");
    drop(held);
    // After the work has noticed the end.
    while rig.ask("/late-work", b"").unwrap().status != StatusCode::OK {}
}

#[test]
fn work_that_is_late_may_be_waited_for() {
    let rig = rig(Settings { work: Duration::ZERO, ..PATIENT });
    let (has_begun, go_on) = rig.hold_work();
    thread::scope(|scope| {
        let client = scope.spawn(|| rig.ask("/late-work", b"").unwrap());
        has_begun.recv().unwrap();
        go_on.send(()).unwrap();
        let answer = client.join().unwrap();
        assert!(answer.body.starts_with(b"worked"), "{answer:?}");
    });
}

#[test]
fn work_that_panics_is_told() {
    let rig = rig(PATIENT);
    assert_eq!(rig.ask("/panic", b"").unwrap().body, b"it panicked");
    assert_eq!(rig.ask("/work", b"").unwrap().body, b"worked");
}

/// The place of a client that is gone is free at once, even if its work still waits.
#[test]
fn a_client_that_is_gone_is_not_answered() {
    let rig = rig(Settings { clients: 1, ..PATIENT });
    let (has_begun, go_on) = rig.hold_work();
    let mut client = rig.connect();
    client.write_all(b"GET /work HTTP/1.1\r\n\r\n").unwrap();
    has_begun.recv().unwrap();
    drop(client);
    assert_eq!(rig.ask("/echo", b"next").unwrap().body, b"next");
    go_on.send(()).unwrap();
}
