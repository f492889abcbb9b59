//! The far side of a guest's network: TCP services on the TAP's address, and checks of the transferred data.
//!
//! Digests are SHA-256, by the `sha256sum` program on this side and by busybox's on the guest's: neither of
//! the programs under test computes them.

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
/// MiB to transfer each way: in the largest frames that is as many frames as a ring has descriptors.
const MIB: usize = 16;
/// Time that a connection may stand still: longer than the longest interruption of the network in a test.
const STANDSTILL: Duration = Duration::from_secs(300);

const SINK: u16 = 7001;
const SOURCE: u16 = 7002;
const GREETER: u16 = 7003;
const FILES: u16 = 7004;

/// The services, in the namespace of the thread that creates them, until dropped.
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
    /// If a port is not available.
    pub fn new() -> Self {
        Self::of(MIB)
    }

    /// Like `new`, with `mib` MiB each way.
    ///
    /// # Panics
    /// If a port is not available.
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

    /// Returns commands for `volt.run`: ping, then checksummed TCP both ways.
    pub fn both_ways(&self) -> String {
        format!(
            "step ping ping -c 3 -i 0.2 -W 2 {HOST}; tcp_out {HOST} {SINK} {}; tcp_in {HOST} {SOURCE}",
            self.mib
        )
    }

    /// Returns commands for `volt.run`: checksummed TCP both ways with the host at another address.
    pub fn both_ways_with(&self, host: &str) -> String {
        format!("tcp_out {host} {SINK} {}; tcp_in {host} {SOURCE}", self.mib)
    }

    /// Returns commands for `volt.run`: an address for `interface`, then ping and checksummed TCP and UDP
    /// with the host in `subnet`; `name` is for [`Traffic::judge_network`].
    pub fn try_network(&self, name: &str, interface: &str, subnet: &str) -> String {
        format!("try_network {name} {interface} {subnet} {}", self.mib)
    }

    /// Checks the reports of [`Traffic::try_network`]; call it in the order of the networks.
    ///
    /// # Panics
    /// If a report is missing or wrong.
    #[track_caller]
    pub fn judge_network(&self, reports: &[String], name: &str) {
        let begin = format!("network {name}");
        let from = reports.iter().position(|line| *line == begin);
        let from = from.unwrap_or_else(|| panic!("the guest did not reach network {name}: {reports:?}"));
        let next = reports[from + 1..].iter().position(|line| line.starts_with("network "));
        let own = &reports[from..next.map_or(reports.len(), |next| from + 1 + next)];
        self.judge(own);
        assert_eq!(value(own, "udp"), "whole", "{own:?}");
    }

    /// Returns commands for `volt.run`: checksummed TCP both ways at once.
    pub fn both_ways_at_once(&self) -> String {
        format!("tcp_out {HOST} {SINK} {} & out=$!; tcp_in {HOST} {SOURCE}; wait $out", self.mib)
    }

    /// Returns commands for `volt.run`: receives the host's data for as long as the guest lives.
    pub fn endless(&self) -> String {
        format!("step ping ping -c 3 -i 0.2 -W 2 {HOST}; while :; do tcp_in {HOST} {SOURCE}; done")
    }

    /// Returns commands for `volt.run`: `count` short connections, each a separate flow.
    pub fn flows(&self, count: u32) -> String {
        format!("flows {HOST} {GREETER} {count}")
    }

    /// Checks the guest's reports of one run of [`Traffic::both_ways`].
    ///
    /// # Panics
    /// If a report is missing or wrong.
    #[track_caller]
    pub fn judge(&self, reports: &[String]) {
        assert!(reports.iter().any(|line| line == "ping ok"), "no answer to ping: {reports:?}");
        self.judge_tcp(reports);
    }

    /// Checks the guest's reports of one run of [`Traffic::both_ways_at_once`].
    ///
    /// # Panics
    /// If a report is missing or wrong.
    #[track_caller]
    pub fn judge_tcp(&self, reports: &[String]) {
        let out = value(reports, "tcp_out sha256");
        let received = self.received.lock().map(|digests| digests.recv_timeout(PATIENCE));
        let Some((length, received)) = received.ok().and_then(Result::ok) else {
            panic!("the guest's connection to the host did not end: {reports:?}");
        };
        assert_eq!(length, (self.mib << 20) as u64, "the guest sent the wrong amount of data");
        assert_eq!(received, out, "the host received other data than the guest sent");
        assert_eq!(
            value(reports, "tcp_in sha256"),
            self.sent,
            "the guest received other data than the host sent"
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

/// Returns the rest of the last report that starts with `name`.
///
/// # Panics
/// If there is none.
#[track_caller]
pub fn value<'a>(reports: &'a [String], name: &str) -> &'a str {
    let found = reports.iter().rev().find_map(|line| line.strip_prefix(name));
    found.unwrap_or_else(|| panic!("the guest reported no '{name}': {reports:?}")).trim()
}

/// Returns whether the guest's `features` report contains feature `bit` as negotiated by driver and device.
///
/// # Panics
/// If the guest reported none.
#[track_caller]
pub fn has_feature(reports: &[String], bit: usize) -> bool {
    value(reports, "features").as_bytes().get(bit) == Some(&b'1')
}

/// Starts an iperf3 server in the namespace of the calling thread.
///
/// # Panics
/// If it does not start.
#[track_caller]
pub fn iperf3() -> Process {
    let mut server = Process::start("iperf3", Command::new("iperf3").args(["-s", "--forceflush"]));
    server.wait_for("Server listening", PATIENCE);
    server
}

/// Returns commands for `volt.run`: eight flows each way at once, then the counters of each queue.
pub fn many_flows() -> String {
    format!(
        "step out speed tcp_out -c {HOST} -P 8 -t 2; step in speed tcp_in -R -c {HOST} -P 8 -t 2; \
         queue_counters"
    )
}

/// Asserts that each of `pairs` queue pairs carried frames both ways, by the guest's `queue_counters`.
///
/// # Panics
/// If one did not.
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
    let listener = TcpListener::bind(("::", port)).or_else(|_| TcpListener::bind(("0.0.0.0", port)));
    let listener = listener.unwrap_or_else(|error| panic!("port {port}: {error}"));
    let listener = Arc::new(listener);
    let accepting = Arc::clone(&listener);
    let service = Arc::new(service);
    thread::spawn(move || {
        while let Ok((stream, _)) = accepting.accept() {
            // A guest that died during a transfer must not block the service.
            let _ = stream.set_read_timeout(Some(STANDSTILL));
            let _ = stream.set_write_timeout(Some(STANDSTILL));
            let service = Arc::clone(&service);
            thread::spawn(move || service(stream));
        }
    });
    listener
}

/// Returns the length and the SHA-256, in hexadecimal, of all data from `input`.
pub(super) fn digest(input: &mut impl Read) -> (u64, String) {
    let mut file = tempfile::tempfile().expect("a temporary file");
    let length = std::io::copy(input, &mut file).unwrap_or(0);
    file.rewind().expect("rewinding a temporary file");
    let output = Command::new("sha256sum").stdin(Stdio::from(file)).output().expect("sha256sum");
    let output = String::from_utf8_lossy(&output.stdout);
    (length, output.split_whitespace().next().unwrap_or_default().into())
}
