//! The API over its socket, without a machine behind it.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Instant;

use hyper::Method;
use serde_json::json;

use super::client::{CtlError, ask};
use super::*;
use crate::exit::ExitEvent;

struct Rig {
    api: Option<Api>,
    exit: Arc<ExitEvent>,
    socket: PathBuf,
    _dir: tempfile::TempDir,
}

fn rig() -> Rig {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("api");
    let exit = Arc::new(ExitEvent::new().unwrap());
    let devices: Vec<Status> =
        vec![Box::new(|| json!({ "device": "a" })), Box::new(|| json!({ "device": "b" }))];
    let started = Instant::now();
    let machine = Machine { cpus: 2, memory: 1 << 29, started, devices, exit: exit.clone() };
    let api = Some(Api::start(&socket, machine).unwrap());
    Rig { api, exit, socket, _dir: dir }
}

#[test]
fn status_and_shutdown() {
    let mut rig = rig();
    let mode = std::fs::metadata(&rig.socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let status = ask(&rig.socket, Method::GET, "/v1/status").unwrap();
    assert_eq!((&status["cpus"], &status["memory_bytes"]), (&json!(2), &json!(1 << 29)));
    assert_eq!(status["devices"], json!([{ "device": "a" }, { "device": "b" }]));
    assert!(!rig.exit.is_requested());
    ask(&rig.socket, Method::PUT, "/v1/shutdown").unwrap();
    assert!(rig.exit.is_requested());
    drop(rig.api.take());
    assert!(!rig.socket.exists());
    assert!(matches!(ask(&rig.socket, Method::GET, "/v1/status"), Err(CtlError::Connect(..))));
}

#[test]
fn what_cannot_be_asked_is_refused_by_name() {
    let rig = rig();
    let refusal = |method, path| match ask(&rig.socket, method, path) {
        Err(CtlError::Refused(why)) => why,
        other => panic!("{other:?}"),
    };
    assert!(refusal(Method::GET, "/v1/nothing").contains("/v1/nothing"));
    assert!(refusal(Method::GET, "/v1/shutdown").contains("PUT"));
    assert!(!rig.exit.is_requested());
}

#[test]
fn a_second_machine_is_told_that_the_socket_is_in_use() {
    let rig = rig();
    let exit = rig.exit.clone();
    let machine = Machine { cpus: 1, memory: 1, started: Instant::now(), devices: Vec::new(), exit };
    let second = Api::start(&rig.socket, machine);
    assert!(matches!(second, Err(ApiError::Bind(BindError::InUse(_)))));
}

#[test]
fn clients_that_stop_in_the_middle_hold_up_nobody() {
    let rig = rig();
    let mut slow: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let mut client = UnixStream::connect(&rig.socket).unwrap();
            client.write_all(b"GET /v1/sta").unwrap();
            client
        })
        .collect();
    let start = Instant::now();
    ask(&rig.socket, Method::GET, "/v1/status").unwrap();
    assert!(start.elapsed() < LIMIT + Duration::from_secs(4));
    let mut rest = Vec::new();
    slow[0].read_to_end(&mut rest).unwrap();
    for bytes in [&b"nonsense\r\n\r\n"[..], &[0xff; 100_000]] {
        let mut client = UnixStream::connect(&rig.socket).unwrap();
        let _ = client.write_all(bytes);
        let mut rest = Vec::new();
        let _ = client.read_to_end(&mut rest);
        assert!(rest.starts_with(b"HTTP/1.1 4"), "{rest:?}");
    }
    ask(&rig.socket, Method::GET, "/v1/status").unwrap();
}
