//! Requests to a scripted server.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;

use super::*;

const PATIENT: Limits = Limits { time: Duration::from_secs(100), body: 100 };

fn request<'r>(path: &'r str, body: &'r [u8]) -> Request<'r> {
    Request { method: &Method::PUT, path, body, descriptors: &[] }
}

/// Returns the result of a request whose server reads it to its end, sends `pieces`, and closes the
/// connection.
fn answered(pieces: &[&[u8]]) -> Result<Answer, AskError> {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    thread::scope(|scope| {
        scope.spawn(move || {
            let mut request = Vec::new();
            while !request.ends_with(b"end") {
                let mut byte = [0];
                theirs.read_exact(&mut byte).unwrap();
                request.extend(byte);
            }
            for piece in pieces {
                theirs.write_all(piece).unwrap();
                thread::yield_now();
            }
        });
        ask(&ours, &request("/", b"the end"), &PATIENT)
    })
}

fn good(status: StatusCode, body: &str) -> Answer {
    Answer { status, body: body.into() }
}

#[test]
fn answers_in_pieces_of_any_size() {
    let bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood";
    for size in 1..=bytes.len() {
        let pieces: Vec<_> = bytes.chunks(size).collect();
        assert_eq!(answered(&pieces).unwrap(), good(StatusCode::OK, "good"), "{size}");
    }
}

#[test]
fn answers_with_and_without_a_length() {
    for (bytes, answer) in [
        ("HTTP/1.1 404 Not Found\r\n\r\nnone", good(StatusCode::NOT_FOUND, "none")),
        ("HTTP/1.0 200\r\n\r\n", good(StatusCode::OK, "")),
        ("HTTP/1.1 204 No\r\n\r\nmore", good(StatusCode(204), "")),
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\ngoodness", good(StatusCode::OK, "go")),
        ("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201 Created\r\n\r\n", good(StatusCode::CREATED, "")),
    ] {
        assert_eq!(answered(&[bytes.as_bytes()]).unwrap(), answer, "{bytes}");
    }
}

#[test]
fn what_is_no_answer() {
    let why = |bytes: &str| answered(&[bytes.as_bytes()]).unwrap_err();
    assert!(matches!(why(""), AskError::Closed));
    assert!(matches!(why("HTTP/1.1 20"), AskError::Cut));
    assert!(matches!(why("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\ngood"), AskError::Cut));
    assert!(matches!(why("HTTP/1.1 100 Continue\r\n\r\n"), AskError::Closed));
    assert!(matches!(why("220 mail.example ESMTP\r\n"), AskError::Malformed(_)));
    assert!(matches!(why("HTTP/1.1 200 OK\r\ncontent-length: a\r\n\r\n"), AskError::Malformed(_)));
    assert!(matches!(why("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"), AskError::Malformed(_)));
    let long = "a".repeat(101);
    assert!(matches!(why(&format!("HTTP/1.1 200 OK\r\n\r\n{long}")), AskError::TooLong { limit: 100 }));
    let promised = "HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999\r\n\r\n";
    assert!(matches!(why(promised), AskError::Malformed(_)));
    let promised = "HTTP/1.1 200 OK\r\ncontent-length: 18446744073709551615\r\n\r\n";
    assert!(matches!(why(promised), AskError::TooLong { limit: 100 }));
    let endless = format!("HTTP/1.1 200 OK\r\na: {}", "a".repeat(HEAD_MAX));
    assert!(matches!(why(&endless), AskError::Malformed(_)));
}

/// A server can refuse a request before it has all of it, and then stop reading or close the connection.
#[test]
fn an_answer_may_come_before_the_request_is_sent() {
    let refusal = b"HTTP/1.1 413 Payload Too Large\r\ncontent-length: 4\r\n\r\nlong";
    for stays in [true, false] {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(refusal).unwrap();
        let stays = stays.then_some(theirs);
        let answer = ask(&ours, &request("/", &vec![0; 10 << 20]), &PATIENT).unwrap();
        assert_eq!(answer, good(StatusCode::PAYLOAD_TOO_LARGE, "long"));
        drop(stays);
    }
}

#[test]
fn who_does_not_answer_is_not_waited_for() {
    let limits = Limits { time: Duration::from_millis(50), ..PATIENT };
    for body in [0, 10 << 20] {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let late = ask(&ours, &request("/", &vec![0; body]), &limits).unwrap_err();
        assert!(matches!(late, AskError::Late(_)), "{late}");
    }
}

#[test]
fn what_is_no_path_is_not_sent() {
    for path in ["", "a", "*", "/a b", "/a#b", "/\u{e9}", "/\n", &format!("/{}", "a".repeat(HEAD_MAX))] {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        assert!(matches!(ask(&ours, &request(path, b""), &PATIENT), Err(AskError::Path(_))), "{path}");
        drop(ours);
        assert_eq!(theirs.read(&mut [0]).unwrap(), 0);
    }
}
