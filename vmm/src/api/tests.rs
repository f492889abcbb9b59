//! The API over its socket, without a running machine.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, poll};
use serde_json::{Value, json};
use volt_http::Method;

use super::client::{CtlError, ask};
use super::*;
use crate::board::exit::ExitEvent;
use crate::board::irq::LevelLine;
use crate::board::pause_gate::PauseGate;
use crate::cli::CtlCommand;
use crate::machine::devices::{Device, Devices};
use crate::machine::pause::Pause;
use crate::machine::power::PowerButton;
use crate::virtio::handle::{DeviceKind, Labelled};
use crate::virtio::net::port::Net;
use crate::virtio::net::port::tests::socket_net;

struct Rig {
    api: Option<Api>,
    exit: Arc<ExitEvent>,
    gate: Arc<PauseGate>,
    button: Arc<AtomicBool>,
    _net: Net,
    socket: PathBuf,
    _dir: tempfile::TempDir,
}

impl Rig {
    fn put(&self, path: &str, body: Option<&Value>) -> Result<Value, CtlError> {
        ask(&self.socket, Method::PUT, path, body)
    }

    fn refusal(&self, method: Method, path: &str, body: Option<&Value>) -> String {
        match ask(&self.socket, method, path, body) {
            Err(CtlError::Refused(why)) => why,
            other => panic!("{other:?}"),
        }
    }

    fn state(&self) -> Value {
        ask(&self.socket, Method::GET, "/v1/status", None).unwrap()["state"].clone()
    }
}

/// A machine with one disk and two network devices: `net`, which uses an interface, and one of a back-end.
fn machine(
    exit: &Arc<ExitEvent>,
    gate: &Arc<PauseGate>,
    button: &Arc<AtomicBool>,
    net: &Net,
) -> Arc<MachineHandle> {
    let named = |name: &str, kind| {
        let handle = Arc::new(Labelled(name.to_owned()));
        Device { kind, name: name.to_owned(), mac: None, handle }
    };
    let devices = vec![named("disk", DeviceKind::Disk), Device::of(net), named("b", DeviceKind::Net)];
    let devices = Arc::new(Devices::fixed(devices));
    let pause = Pause::new(gate.clone(), devices.clone());
    let pin = button.clone();
    let power_button =
        Arc::new(PowerButton::new(LevelLine::new(move |high| pin.store(high, Ordering::SeqCst))));
    let (started, exit, gate) = (Instant::now(), exit.clone(), gate.clone());
    Arc::new(MachineHandle { cpus: 2, memory: 1 << 29, started, devices, gate, exit, pause, power_button })
}

fn rig() -> Rig {
    rig_with_limit(WORK_LIMIT)
}

fn rig_with_limit(limit: Duration) -> Rig {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("api");
    let (exit, gate) = (Arc::new(ExitEvent::new().unwrap()), Arc::default());
    let button = Arc::default();
    let (net, _) = socket_net(&gate);
    let api = Some(
        Api::with_limit(ApiSocket::bind(&socket).unwrap(), machine(&exit, &gate, &button, &net), limit)
            .unwrap(),
    );
    Rig { api, exit, gate, button, _net: net, socket, _dir: dir }
}

#[test]
fn status_and_shutdown() {
    let mut rig = rig();
    let mode = std::fs::metadata(&rig.socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let status = ask(&rig.socket, Method::GET, "/v1/status", None).unwrap();
    assert_eq!((&status["cpus"], &status["memory_bytes"]), (&json!(2), &json!(1 << 29)));
    let devices: Vec<_> = (0..3).map(|at| status["devices"][at]["device"].clone()).collect();
    assert_eq!(devices, ["disk", "net test", "b"]);
    assert!(!rig.exit.is_requested());
    ask(&rig.socket, Method::PUT, "/v1/shutdown", None).unwrap();
    assert!(rig.exit.is_requested());
    drop(rig.api.take());
    assert!(!rig.socket.exists());
    assert!(matches!(ask(&rig.socket, Method::GET, "/v1/status", None), Err(CtlError::Connect(..))));
}

/// Metrics come in the requested format, not as JSON.
#[test]
fn metrics_are_text() {
    let rig = rig();
    let scrape = |accept: &str| {
        let mut client = UnixStream::connect(&rig.socket).unwrap();
        client.write_all(format!("GET /metrics HTTP/1.0\r\naccept: {accept}\r\n\r\n").as_bytes()).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        answer
    };
    let (text, open) = (scrape("*/*"), scrape("application/openmetrics-text; version=1.0.0"));
    // For other readers: scripts/soak --metrics.
    if let Some(directory) = std::env::var_os("VOLT_SCRAPES") {
        for (file, answer) in [("volt-vmm.txt", &text), ("volt-vmm.openmetrics", &open)] {
            let body = answer.split_once("\r\n\r\n").unwrap().1;
            std::fs::write(Path::new(&directory).join(file), body).unwrap();
        }
    }
    assert!(
        text.contains("\r\ncontent-type: text/plain; version=0.0.4") && !text.contains("# EOF"),
        "{text}"
    );
    assert!(open.contains("\r\ncontent-type: application/openmetrics-text") && open.ends_with("\n# EOF\n"));
    assert!(text.contains("\nvolt_vmm_vcpus 2\n") && open.contains("\nvolt_vmm_vcpus 2\n"), "{text}");
}

/// All keys have the same style, whatever a device shows.
#[test]
fn keys_are_words_with_underscores() {
    fn check(value: &Value) {
        for (key, value) in value.as_object().into_iter().flatten() {
            assert!(key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{key}");
            check(value);
        }
        value.as_array().into_iter().flatten().for_each(check);
    }
    let rig = rig();
    let status = ask(&rig.socket, Method::GET, "/v1/status", None).unwrap();
    check(&status);
    let net = &status["devices"][1];
    assert!(net["guest_mac"].is_string() && net["limits"]["rx_rate"].is_string(), "{net}");
    let numbers = |at: usize| (net["vrings"][at]["pair"].as_u64(), net["vrings"][at]["vring"].as_u64());
    assert_eq!((numbers(0), numbers(1)), ((Some(0), Some(0)), (Some(0), Some(1))));
}

#[test]
fn what_cannot_be_asked_is_refused_by_name() {
    let rig = rig();
    let refusal = |method, path| rig.refusal(method, path, None);
    assert!(refusal(Method::GET, "/v1/nothing").contains("/v1/nothing"));
    assert!(refusal(Method::GET, "/v1/shutdown").contains("PUT"));
    assert!(refusal(Method::PUT, "/v1/net/tap7").contains("DELETE"));
    assert!(refusal(Method::DELETE, "/v1/disk").contains("POST"));
    assert!(refusal(Method::POST, "/v1/net/tap7/limits").contains("PUT"));
    assert!(!rig.exit.is_requested());
}

/// A name is searched for as it is, with any character. A name that may be cut off is refused.
#[test]
fn names_with_any_character() {
    let rig = rig();
    for name in
        ["/x/data#1", "/x/data?a=b", "..", "a b/%2F", "/r\u{e9}seau/\u{1f980}", "/run/a/limits", "100%"]
    {
        let limits = CtlCommand::Limits { net: name.to_owned(), rx_rate: None, tx_rate: None };
        let refused = rig.refusal(Method::PUT, &limits.path(), Some(&json!({ "rx_rate": "1Mbit" })));
        assert!(refused.contains(&format!("no network device {name}:")), "{refused}");
    }
    let refused = rig.refusal(Method::PUT, "/v1/net//run/a/limits", Some(&json!({ "rx_rate": "1Mbit" })));
    assert!(refused.contains("no network device /run/a:"), "{refused}");
    let cut = rig.refusal(Method::DELETE, "/v1/disk//x/data?1", None);
    assert!(cut.contains("%3F"), "{cut}");
    assert!(rig.refusal(Method::DELETE, "/v1/disk/%ff", None).contains("UTF-8"));
}

/// Nothing is opened for a machine that cannot add it. The error is the one of the command line.
#[test]
fn devices_that_cannot_come_or_go() {
    let rig = rig();
    let add = |kind, options| {
        let body = json!({ "options": options });
        rig.refusal(Method::POST, &format!("/v1/{kind}"), Some(&body))
    };
    for (kind, options) in [("net", "tap=tap7"), ("net", "socket=/nowhere"), ("disk", "/nowhere,ro")] {
        assert!(add(kind, options).contains("--transport pci"), "{options}");
    }
    assert!(add("net", "tap7").contains("begin with tap=NAME"));
    assert!(add("net", "tap=tap7,mtu=5").contains("mtu=5"));
    assert!(add("disk", "/nowhere,readonly").contains("unknown option 'readonly'"));
    for body in [json!({}), json!([]), json!({ "options": 5 }), json!({ "options": "tap=t", "more": 1 })] {
        assert!(rig.refusal(Method::POST, "/v1/net", Some(&body)).contains("--net"), "{body}");
    }
    for path in ["/v1/net/test", "/v1/disk/0", "/v1/disk//srv/disk.img", "/v1/net/nothing"] {
        assert!(rig.refusal(Method::DELETE, path, None).contains("--transport pci"), "{path}");
    }
}

/// Pause and resume work repeatedly. Meanwhile a thread of the machine waits, and a press of the button is
/// kept.
#[test]
fn pause_and_resume() {
    let rig = rig();
    assert_eq!(rig.state(), "running");
    rig.put("/v1/resume", None).unwrap();
    for _ in 0..2 {
        assert_eq!(rig.put("/v1/pause", None).unwrap(), json!({ "state": "paused" }));
        assert_eq!(rig.state(), "paused");
    }
    let member = rig.gate.join("thread", || {});
    let worker = thread::spawn(move || member.pass(|| false));
    // Waits for the thread at the gate, which is already closed.
    rig.gate.close(LIMIT).unwrap();
    rig.put("/v1/power-button", None).unwrap();
    assert!(rig.button.load(Ordering::SeqCst));
    assert!(!worker.is_finished());
    assert_eq!(rig.put("/v1/resume", None).unwrap(), json!({ "state": "running" }));
    assert!(worker.join().unwrap());
    assert_eq!(rig.state(), "running");
}

/// While one client waits for a pause that cannot succeed, others get answers. Then the error names the
/// cause.
#[test]
fn a_pause_that_cannot_be_is_none() {
    let rig = rig();
    let _busy = rig.gate.join("vcpu0", || {});
    let socket = rig.socket.clone();
    let client = thread::spawn(move || ask(&socket, Method::PUT, "/v1/pause", None));
    let start = Instant::now();
    while !client.is_finished() {
        let asked = Instant::now();
        assert_eq!(rig.state(), "running");
        assert!(client.is_finished() || asked.elapsed() < Duration::from_secs(2));
        thread::sleep(Duration::from_millis(50));
    }
    assert!(start.elapsed() < LIMIT);
    match client.join().unwrap() {
        Err(CtlError::Refused(why)) => assert!(why.contains("vcpu0"), "{why}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(rig.state(), "running");
}

/// A request that waits for the guest or for another program does not delay the machine's end.
#[test]
fn the_end_waits_for_no_request() {
    let mut rig = rig();
    let (fetched, is_fetched) = mpsc::channel();
    let _busy = rig.gate.join("vcpu0", move || {
        let _ = fetched.send(());
    });
    let socket = rig.socket.clone();
    let client = thread::spawn(move || ask(&socket, Method::PUT, "/v1/pause", None));
    is_fetched.recv_timeout(LIMIT).unwrap();
    let start = Instant::now();
    drop(rig.api.take());
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    let why = client.join().unwrap().unwrap_err().to_string();
    assert!(why.contains("the machine ends"), "{why}");
}

/// A request whose body never arrives does not delay the machine's end, either.
#[test]
fn the_end_waits_for_no_body() {
    let mut rig = rig();
    let mut client = UnixStream::connect(&rig.socket).unwrap();
    client
        .write_all(
            b"PUT /v1/net/0/limits HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n",
        )
        .unwrap();
    // The server asks for the body, so it now waits for it.
    let mut asked = [0; 12];
    client.read_exact(&mut asked).unwrap();
    assert_eq!(&asked, b"HTTP/1.1 100");
    let start = Instant::now();
    drop(rig.api.take());
    assert!(start.elapsed() < LIMIT / 2, "{:?}", start.elapsed());
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("the machine ends"), "{answer}");
}

/// A pause that succeeds after its client was told that it failed is undone.
#[test]
fn a_pause_that_is_late_is_none() {
    let rig = rig_with_limit(Duration::from_millis(100));
    let busy = rig.gate.join("vcpu0", || {});
    let why = rig.refusal(Method::PUT, "/v1/pause", None);
    assert!(why.contains("the machine is not paused"), "{why}");
    // Reaches the gate, is paused, and would stay there.
    assert!(busy.pass(|| false));
    while rig.state() != "running" {
        thread::yield_now();
    }
    rig.put("/v1/resume", None).unwrap();
}

/// A user without access gets an error from the system or from the API, not the error for a missing machine.
#[test]
fn another_user_is_told_why() {
    const NOBODY: u32 = 65534;
    if !rustix::process::geteuid().is_root() {
        return eprintln!("SKIP another_user_is_told_why: only root becomes another user");
    }
    let rig = rig();
    let as_nobody = || {
        let socket = rig.socket.clone();
        let asked = thread::spawn(move || {
            // For this thread only.
            let nobody = rustix::process::Uid::from_raw(NOBODY);
            rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
            ask(&socket, Method::PUT, "/v1/shutdown", None)
        });
        asked.join().unwrap().unwrap_err().to_string()
    };
    let open = |path: &std::path::Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    open(rig.socket.parent().unwrap(), 0o755);
    let why = as_nobody();
    assert!(why.contains("is for its owner and root"), "{why}");
    open(&rig.socket, 0o666);
    let why = as_nobody();
    assert!(why.contains("for user 0 and root, and you are user 65534"), "{why}");
    assert!(!rig.exit.is_requested());
}

/// `shutdown` gets an answer although it ends the machine. Other clients are then told that the machine ends.
#[test]
fn the_request_that_ends_the_machine_is_answered() {
    for _ in 0..200 {
        let mut rig = rig();
        let (api, exit) = (rig.api.take(), rig.exit.clone());
        let main = thread::spawn(move || {
            poll(&mut [PollFd::new(&*exit, PollFlags::IN)], None).unwrap();
            drop(api);
        });
        assert_eq!(rig.put("/v1/shutdown", None).unwrap(), json!({}));
        main.join().unwrap();
    }
}

#[test]
fn limits_of_a_device_by_name_or_number() {
    let rig = rig();
    let change = |net: &str, body| rig.put(&format!("/v1/net/{net}/limits"), Some(&body));
    let limits = |rx, tx| json!({ "rx_rate": rx, "tx_rate": tx });
    let answer = change("test", json!({ "rx_rate": "80Mbit:64K" })).unwrap();
    assert_eq!(answer, limits("80Mbit:65536", "none"));
    // The spelling of version 0.1.
    let answer = change("0", json!({ "tx-rate": "20kpps" })).unwrap();
    assert_eq!(answer, limits("80Mbit:65536", "20kpps:1000"));
    let status = ask(&rig.socket, Method::GET, "/v1/status", None).unwrap();
    assert_eq!(status["devices"][1]["limits"], answer);
    assert_eq!(change("test", limits("none", "none")).unwrap(), limits("none", "none"));

    let refusal = |net: &str, body| rig.refusal(Method::PUT, &format!("/v1/net/{net}/limits"), Some(&body));
    for net in ["2", "disk", "-1"] {
        assert!(refusal(net, json!({ "rx_rate": "1Mbit" })).contains(r#"["test", "b"]"#));
    }
    for net in ["1", "b"] {
        assert!(refusal(net, json!({ "rx_rate": "1Mbit" })).contains("vhost-user"));
    }
    for body in
        [json!({}), json!([]), json!({ "rx_rate": 5 }), json!({ "rx_rate": "5" }), json!({ "rate": "5pps" })]
    {
        assert!(refusal("test", body.clone()).contains("100Mbit"), "{body}");
    }
    let long = json!({ "rx_rate": "1".repeat(5000) });
    assert!(refusal("test", long).contains("4096"));
}

#[test]
fn a_second_machine_is_told_that_the_socket_is_in_use() {
    let rig = rig();
    let second = ApiSocket::bind(&rig.socket);
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
    ask(&rig.socket, Method::GET, "/v1/status", None).unwrap();
    assert!(start.elapsed() < 12 * LIMIT);
    let mut rest = Vec::new();
    slow[0].read_to_end(&mut rest).unwrap();
    for bytes in [&b"nonsense\r\n\r\n"[..], &[0xff; 100_000]] {
        let mut client = UnixStream::connect(&rig.socket).unwrap();
        let _ = client.write_all(bytes);
        let mut rest = Vec::new();
        let _ = client.read_to_end(&mut rest);
        assert!(rest.starts_with(b"HTTP/1.1 4"), "{rest:?}");
    }
    ask(&rig.socket, Method::GET, "/v1/status", None).unwrap();
}
