//! The far side of a guest's network: TCP services on the TAP's address, and the judgement of what went over
//! it.
//!
//! Digests are SHA-256, by the `sha256sum` program on this side and busybox's on the guest's: what is
//! compared was computed by neither of the programs under test.

use std::io::{Read, Seek, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use super::process::Process;
use super::{PATIENCE, tftp};

/// The address of the TAP's side.
pub const HOST: &str = "10.77.0.1";
/// The address of the guest's side.
pub const GUEST: &str = "10.77.0.2";
/// How much goes each way: in the largest frames that is as many as a ring has descriptors.
const MIB: usize = 16;
/// How long a connection may stand still: longer than the longest time for which a test takes the network
/// away.
const STANDSTILL: Duration = Duration::from_secs(300);

const SINK: u16 = 7001;
const SOURCE: u16 = 7002;
const GREETER: u16 = 7003;
const FILES: u16 = 7004;

/// The services, in the namespace of the thread that makes them, until dropped.
pub struct Traffic {
    listeners: Vec<Arc<TcpListener>>,
    _files: Arc<()>,
    received: Mutex<Receiver<(u64, String)>>,
    sent: String,
    mib: usize,
}

impl Traffic {
    /// Listens on every address of the namespace.
    ///
    /// # Panics
    /// When a port cannot be had.
    pub fn new() -> Self {
        Self::of(MIB)
    }

    /// The same, with `mib` MiB each way.
    ///
    /// # Panics
    /// When a port cannot be had.
    pub fn of(mib: usize) -> Self {
        let mut data = vec![0; mib << 20];
        let random = std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut data));
        random.expect("random data");
        let (_, sent) = digest(&mut data.as_slice());
        let (digests, received) = channel();
        let sink = serve(SINK, move |mut stream| drop(digests.send(digest(&mut stream))));
        let source = serve(SOURCE, move |mut stream| drop(stream.write_all(&data)));
        let greeter = serve(GREETER, |mut stream| drop(stream.write_all(b"ok\n")));
        let listeners = vec![sink, source, greeter];
        Self { listeners, _files: tftp::serve(FILES), received: Mutex::new(received), sent, mib }
    }

    /// For `volt.run`: ping, then checksummed TCP both ways.
    pub fn both_ways(&self) -> String {
        format!(
            "step ping ping -c 3 -i 0.2 -W 2 {HOST}; tcp_out {HOST} {SINK} {}; tcp_in {HOST} {SOURCE}",
            self.mib
        )
    }

    /// For `volt.run`: an address for `interface`, then ping and checksummed TCP and UDP with `subnet`'s
    /// host; `name` is for [`Traffic::judge_network`].
    pub fn try_network(&self, name: &str, interface: &str, subnet: &str) -> String {
        format!("try_network {name} {interface} {subnet} {}", self.mib)
    }

    /// Judges [`Traffic::try_network`]; to be called in the order of the networks.
    ///
    /// # Panics
    /// When something is missing or differs.
    #[track_caller]
    pub fn judge_network(&self, reports: &[String], name: &str) {
        let begin = format!("network {name}");
        let from = reports.iter().position(|line| *line == begin);
        let from = from.unwrap_or_else(|| panic!("the guest did not come to network {name}: {reports:?}"));
        let next = reports[from + 1..].iter().position(|line| line.starts_with("network "));
        let own = &reports[from..next.map_or(reports.len(), |next| from + 1 + next)];
        self.judge(own);
        assert_eq!(value(own, "udp"), "whole", "{own:?}");
    }

    /// For `volt.run`: checksummed TCP both ways at once.
    pub fn both_ways_at_once(&self) -> String {
        format!("tcp_out {HOST} {SINK} {} & out=$!; tcp_in {HOST} {SOURCE}; wait $out", self.mib)
    }

    /// For `volt.run`: what the host sends, for as long as the guest lives.
    pub fn endless(&self) -> String {
        format!("step ping ping -c 3 -i 0.2 -W 2 {HOST}; while :; do tcp_in {HOST} {SOURCE}; done")
    }

    /// For `volt.run`: `count` short connections, each a flow of its own.
    pub fn flows(&self, count: u32) -> String {
        format!("flows {HOST} {GREETER} {count}")
    }

    /// Judges one run of [`Traffic::both_ways`] by what the guest reported.
    ///
    /// # Panics
    /// When something is missing or differs.
    #[track_caller]
    pub fn judge(&self, reports: &[String]) {
        assert!(reports.iter().any(|line| line == "ping ok"), "no answer to ping: {reports:?}");
        self.judge_tcp(reports);
    }

    /// Judges one run of [`Traffic::both_ways_at_once`] by what the guest reported in it.
    ///
    /// # Panics
    /// When something is missing or differs.
    #[track_caller]
    pub fn judge_tcp(&self, reports: &[String]) {
        let out = value(reports, "tcp_out sha256");
        let received = self.received.lock().map(|digests| digests.recv_timeout(PATIENCE));
        let Some((length, received)) = received.ok().and_then(Result::ok) else {
            panic!("the guest's connection to the host did not come to its end: {reports:?}");
        };
        assert_eq!(length, (self.mib << 20) as u64, "the guest sent another amount than it was told to");
        assert_eq!(received, out, "what the guest sent is not what the host received");
        assert_eq!(
            value(reports, "tcp_in sha256"),
            self.sent,
            "what the guest received is not what the host sent"
        );
    }
}

impl Default for Traffic {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        for listener in &self.listeners {
            // Wakes the thread in accept.
            let _ = rustix::net::shutdown(listener, rustix::net::Shutdown::Both);
        }
    }
}

/// The rest of the last report that starts with `name`.
///
/// # Panics
/// When there is none.
#[track_caller]
pub fn value<'a>(reports: &'a [String], name: &str) -> &'a str {
    let found = reports.iter().rev().find_map(|line| line.strip_prefix(name));
    found.unwrap_or_else(|| panic!("the guest reported no '{name}': {reports:?}")).trim()
}

/// Whether the guest's network device and its driver agreed on feature `bit`, by the guest's `features`
/// report.
///
/// # Panics
/// When the guest reported none.
#[track_caller]
pub fn has_feature(reports: &[String], bit: usize) -> bool {
    value(reports, "features").as_bytes().get(bit) == Some(&b'1')
}

/// An iperf3 server in the namespace of the thread that calls.
///
/// # Panics
/// When it does not come up.
#[track_caller]
pub fn iperf3() -> Process {
    let mut server = Process::start("iperf3", Command::new("iperf3").args(["-s", "--forceflush"]));
    server.wait_for("Server listening", PATIENCE);
    server
}

/// For `volt.run`: eight flows each way at once, then the counters of each queue.
pub fn many_flows() -> String {
    format!(
        "step out speed tcp_out -c {HOST} -P 8 -t 2; step in speed tcp_in -R -c {HOST} -P 8 -t 2; \
         queue_counters"
    )
}

/// Asserts that each of `pairs` queue pairs carried frames both ways, by the guest's `queue_counters`.
///
/// # Panics
/// When one did not.
#[track_caller]
pub fn every_queue_carried(reports: &[String], pairs: u16) {
    for queue in 0..pairs {
        for direction in ["rx", "tx"] {
            let name = format!("{direction}_queue_{queue}_packets");
            let frames: u64 = value(reports, &name).parse().unwrap_or(0);
            assert!(frames >= 20, "{name} is {frames}: {reports:?}");
        }
    }
}

/// Serves each connection to `port` on a thread until the listener is shut down.
fn serve(port: u16, service: impl Fn(TcpStream) + Send + Sync + 'static) -> Arc<TcpListener> {
    let listener =
        TcpListener::bind(("0.0.0.0", port)).unwrap_or_else(|error| panic!("port {port}: {error}"));
    let listener = Arc::new(listener);
    let accepting = Arc::clone(&listener);
    let service = Arc::new(service);
    thread::spawn(move || {
        while let Ok((stream, _)) = accepting.accept() {
            // A guest that died in the middle must not hold the service.
            let _ = stream.set_read_timeout(Some(STANDSTILL));
            let _ = stream.set_write_timeout(Some(STANDSTILL));
            let service = Arc::clone(&service);
            thread::spawn(move || service(stream));
        }
    });
    listener
}

/// The length and the SHA-256, in hexadecimal, of whatever `input` gives until its end.
fn digest(input: &mut impl Read) -> (u64, String) {
    let mut file = tempfile::tempfile().expect("a temporary file");
    let length = std::io::copy(input, &mut file).unwrap_or(0);
    file.rewind().expect("rewinding a temporary file");
    let output = Command::new("sha256sum").stdin(Stdio::from(file)).output().expect("sha256sum");
    let output = String::from_utf8_lossy(&output.stdout);
    (length, output.split_whitespace().next().unwrap_or_default().into())
}
