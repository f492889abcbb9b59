//! Requests and their responses.

use std::collections::BTreeSet;

use super::*;

const HEAD: &str = "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n";

#[test]
fn requests_in_pieces_of_any_size() {
    let rig = rig(PATIENT);
    let bytes = format!("{HEAD}hello");
    for size in 1..=bytes.len() {
        let mut client = rig.connect();
        for piece in bytes.as_bytes().chunks(size) {
            client.write_all(piece).unwrap();
            thread::yield_now();
        }
        let answer = rest(&mut client);
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.ends_with("\r\n\r\nhello"), "{answer}");
    }
}

/// Two requests at once: the first one's work ends when the second one has its response.
#[test]
fn two_requests_at_once() {
    let rig = rig(PATIENT);
    let (has_begun, go_on) = rig.hold_work();
    thread::scope(|scope| {
        let first = scope.spawn(|| rig.ask("/work", b"").unwrap());
        has_begun.recv().unwrap();
        assert_eq!(rig.ask("/echo", b"second").unwrap().body, b"second");
        go_on.send(()).unwrap();
        assert_eq!(first.join().unwrap().body, b"worked");
    });
}

/// TCP sockets work like Unix sockets.
#[test]
fn clients_of_tcp_are_served() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let _server = Server::start(listener, PATIENT, Scripted(Arc::default())).unwrap();
    let client = std::net::TcpStream::connect(address).unwrap();
    let request = Request { method: &Method::POST, path: "/echo", body: b"hello", descriptors: &[] };
    let answer = ask(&client, &request, &Limits { time: LONG, body: BIG }).unwrap();
    assert_eq!(answer.body, b"hello");
}

/// One request for each connection. Bytes after it are ignored.
#[test]
fn the_connection_is_closed_behind_the_answer() {
    let rig = rig(PATIENT);
    for more in ["", "POST /echo HTTP/1.1\r\n\r\n"] {
        let answer = rig.answer(format!("{HEAD}hello{more}").as_bytes());
        assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
        assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{answer}");
    }
    let kept = "GET /echo HTTP/1.1\r\nConnection: keep-alive\r\n\r\n";
    assert!(rig.answer(kept.as_bytes()).contains("\r\nconnection: close\r\n"));
}

#[test]
fn versions_and_methods() {
    let rig = rig(PATIENT);
    let old = rig.answer(b"POST /echo HTTP/1.0\r\ncontent-length: 2\r\n\r\nhi");
    assert!(old.starts_with("HTTP/1.0 200 OK\r\n") && old.ends_with("\r\n\r\nhi"), "{old}");
    let head = rig.answer(b"HEAD /echo HTTP/1.1\r\ncontent-length: 2\r\n\r\nhi");
    assert!(head.contains("\r\ncontent-length: 2\r\n") && head.ends_with("\r\n\r\n"), "{head}");
    // The service decides about other methods and requests without a length.
    assert_eq!(rig.status(b"FROB /echo HTTP/1.1\r\n\r\n"), "HTTP/1.1 200 OK");
}

#[test]
fn who_waits_to_send_a_body_is_told_to_go_on() {
    let rig = rig(PATIENT);
    let mut client = rig.connect();
    client.write_all(b"POST /echo HTTP/1.1\r\nContent-Length: 5\r\nExpect: 100-Continue\r\n\r\n").unwrap();
    let mut go_on = [0; 25];
    client.read_exact(&mut go_on).unwrap();
    assert_eq!(&go_on, b"HTTP/1.1 100 Continue\r\n\r\n");
    client.write_all(b"hello").unwrap();
    assert!(rest(&mut client).ends_with("\r\n\r\nhello"));
    // Not for a body that is refused.
    for head in ["/forbidden HTTP/1.1\r\nContent-Length: 5", "/echo HTTP/1.1\r\nContent-Length: 5000"] {
        let answer = rig.answer(format!("POST {head}\r\nExpect: 100-continue\r\n\r\n").as_bytes());
        assert!(answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
}

#[test]
fn what_is_no_request_is_told_why() {
    let rig = rig(PATIENT);
    for line in
        ["nonsense", "GET /", "GET  / HTTP/1.1", "GET / HTTP/2.0", "GET /a<b HTTP/1.1", "\u{ff}\u{ff}"]
    {
        let answer = rig.answer(format!("{line}\r\n\r\n").as_bytes());
        assert!(answer.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{line}: {answer}");
        assert!(answer.contains("this is not an HTTP request"), "{line}: {answer}");
    }
    let headers = |headers: &str| rig.status(format!("POST /echo HTTP/1.1\r\n{headers}\r\n\r\n").as_bytes());
    for wrong in ["a b: c", "a : b", ": a", "a: b\r\n c"] {
        assert_eq!(headers(wrong), "HTTP/1.1 400 Bad Request", "{wrong}");
    }
    for length in ["x", "", "-1", "+1", "0x1", "3, 3", "99999999999999999999", "3\r\nContent-Length: 4"] {
        assert_eq!(headers(&format!("Content-Length: {length}")), "HTTP/1.1 400 Bad Request", "{length}");
    }
    // Refused before any of its bytes arrive.
    assert_eq!(headers("Content-Length: 4097"), "HTTP/1.1 413 Payload Too Large");
    assert_eq!(headers("Content-Length: 18446744073709551615"), "HTTP/1.1 413 Payload Too Large");
    for chunked in ["chunked", "gzip, Chunked", "chunked\r\nContent-Length: 0"] {
        let head = format!("POST /echo HTTP/1.1\r\nTransfer-Encoding: {chunked}\r\n\r\n2\r\nhi\r\n0\r\n\r\n");
        let answer = rig.answer(head.as_bytes());
        assert!(answer.starts_with("HTTP/1.1 411 Length Required\r\n"), "{answer}");
        assert!(answer.contains("send a content-length"), "{answer}");
    }
    assert_eq!(headers("Transfer-Encoding: gzip"), "HTTP/1.1 501 Not Implemented");
}

/// A client that sends everything before it reads gets its response.
#[test]
fn what_is_too_long_is_refused_and_read() {
    let rig = rig(PATIENT);
    let body = |length: usize| {
        let head = format!("POST /echo HTTP/1.1\r\nContent-Length: {length}\r\n\r\n");
        rig.status(&[head.as_bytes(), &vec![b'a'; length]].concat())
    };
    assert_eq!(body(4096), "HTTP/1.1 200 OK");
    assert_eq!(body(4097), "HTTP/1.1 413 Payload Too Large");
    assert_eq!(body(500_000), "HTTP/1.1 413 Payload Too Large");
    let forbidden =
        [b"POST /forbidden HTTP/1.1\r\ncontent-length: 500000\r\n\r\n", &[0; 500_000][..]].concat();
    assert_eq!(rig.status(&forbidden), "HTTP/1.1 403 Forbidden");

    // The rest of the line is `GET /`, and ` HTTP/1.1` with two line ends.
    let line = |length: usize| rig.status(format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(length)).as_bytes());
    assert_eq!(line(HEAD_MAX - 5 - 13), "HTTP/1.1 200 OK");
    for length in [HEAD_MAX - 5 - 12, HEAD_MAX, 500_000] {
        assert_eq!(line(length), "HTTP/1.1 431 Request Header Fields Too Large", "{length}");
    }
    let headers =
        |count| rig.status(format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(count)).as_bytes());
    assert_eq!(headers(HEADERS_MAX), "HTTP/1.1 200 OK");
    assert_eq!(headers(HEADERS_MAX + 1), "HTTP/1.1 431 Request Header Fields Too Large");
}

/// Descriptors come with the head or with the body, and keep their order.
#[test]
fn descriptors_come_along() {
    let rig = rig(PATIENT);
    for (with_head, with_body) in [(1, 0), (0, 1), (3, 4), (DESCRIPTORS_MAX, 0), (10, DESCRIPTORS_MAX - 10)] {
        let (readers, writers) = pipes(with_head + with_body);
        let (first, second) = writers.split_at(with_head);
        let mut client = rig.connect();
        let head = b"POST /descriptors HTTP/1.1\r\nContent-Length: 2\r\n\r\n";
        let (begin, middle) = head.split_at(10);
        send_with(&client, begin, &borrowed(first));
        client.write_all(middle).unwrap();
        send_with(&client, b"hi", &borrowed(second));
        drop(writers);
        let answer = rest(&mut client);
        assert!(answer.ends_with(&format!("\r\n\r\n{}", with_head + with_body)), "{answer}");
        for (number, reader) in readers.into_iter().enumerate() {
            let mut written = Vec::new();
            // The end of the file shows that nothing else has the descriptor open.
            std::fs::File::from(reader).read_to_end(&mut written).unwrap();
            assert_eq!(written, [number as u8]);
        }
    }
}

/// In one message or in several. All of them are closed.
#[test]
fn more_descriptors_than_allowed_are_refused() {
    for (allowed, messages) in
        [(0, vec![1]), (2, vec![3]), (2, vec![1, 1, 1]), (16, vec![17]), (16, vec![60]), (16, vec![9, 9])]
    {
        let rig = rig(Settings { descriptors: allowed, ..PATIENT });
        let mut client = rig.connect();
        let mut readers = Vec::new();
        for count in &messages {
            let (more, writers) = pipes(*count);
            readers.extend(more);
            send_with(&client, b"\r\n", &borrowed(&writers));
        }
        let answer = rest(&mut client);
        assert!(answer.starts_with("HTTP/1.1 400 "), "{allowed}, {messages:?}: {answer}");
        assert!(answer.contains("descriptors"), "{allowed}, {messages:?}: {answer}");
        for reader in readers {
            assert_eq!(std::fs::File::from(reader).read(&mut [0]).unwrap(), 0);
        }
    }
}

/// A program that forks while it serves must not meet a thread that starts or ends.
#[test]
fn threads_start_with_the_server_and_stay() {
    let threads = || {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
        let comm = |task: &std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm"));
        let ours = |task: &std::fs::DirEntry| comm(task).is_ok_and(|name| name.trim() == "stays-client");
        tasks.filter(ours).map(|task| task.file_name()).collect::<BTreeSet<_>>()
    };
    let rig = rig(Settings { name: "stays", ..PATIENT });
    let before = threads();
    assert_eq!(before.len(), PATIENT.clients);
    for _ in 0..3 * PATIENT.clients {
        rig.ask("/echo", b"next").unwrap();
        assert_eq!(threads(), before);
    }
}
