//! volt-netd on a TAP of the test's namespace.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::process::Process;
use super::traffic::HOST;
use super::{PATIENCE, program};

/// The TAP of the daemon.
pub const TAP: &str = "volt0";

/// A running daemon whose TAP has the far side's address.
pub struct Netd {
    /// The daemon.
    pub process: Process,
    /// Its listening socket.
    pub socket: PathBuf,
}

impl Netd {
    /// Starts the daemon with its socket in `directory` and `options` besides TAP and socket.
    ///
    /// # Panics
    /// If it ends or creates no socket.
    #[track_caller]
    pub fn start(directory: &Path, options: &[&str]) -> Self {
        let socket = directory.join("net.sock");
        let mut command = Command::new(program("volt-netd"));
        command.args(["--tap", TAP, "--socket"]).arg(&socket).args(options);
        let mut process = Process::start("volt-netd", &mut command);
        let deadline = Instant::now() + PATIENCE;
        while !socket.exists() {
            if Instant::now() > deadline {
                process.output();
                panic!("volt-netd created no socket: {process}");
            }
            sleep(Duration::from_millis(50));
        }
        address(TAP);
        Self { process, socket }
    }
}

/// Gives an interface the far side's address and brings it up.
///
/// # Panics
/// If `ip` fails.
#[track_caller]
pub fn address(interface: &str) {
    ip(&["addr", "add", &format!("{HOST}/24"), "dev", interface]);
    ip(&["link", "set", interface, "up"]);
}

/// Runs `ip` in the test's namespace.
///
/// # Panics
/// If it fails.
#[track_caller]
pub fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().expect("ip");
    assert!(output.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Returns a counter of an interface in the caller's namespace: `rx` or `tx`, and `bytes`, `packets`,
/// `dropped`. Reads it directly, because a program would take longer.
///
/// # Panics
/// If there is no such interface or counter.
pub fn counter(interface: &str, direction: &str, what: &str) -> u64 {
    let table = std::fs::read_to_string("/proc/thread-self/net/dev").expect("the interfaces");
    let row = table.lines().find_map(|line| line.trim_start().strip_prefix(interface)?.strip_prefix(':'));
    let fields: Vec<&str> = row.expect("an interface").split_whitespace().collect();
    let first = ["rx", "tx"].iter().position(|name| *name == direction).expect("a direction") * 8;
    let column = ["bytes", "packets", "errors", "dropped"].iter().position(|name| *name == what);
    fields[first + column.expect("a counter")].parse().expect("a number")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_those_that_ip_shows() {
        const COUNTERS: [(&str, &str); 3] = [("rx", "bytes"), ("tx", "packets"), ("tx", "dropped")];
        let read = || COUNTERS.map(|(direction, what)| counter("lo", direction, what));
        // Other threads may use the interface meanwhile: what ip shows lies between two readings.
        let before = read();
        let output = Command::new("ip").args(["-s", "-j", "link", "show", "dev", "lo"]).output().expect("ip");
        let after = read();
        let links: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        for (at, (direction, what)) in COUNTERS.into_iter().enumerate() {
            let shown = links[0]["stats64"][direction][what].as_u64().expect("a counter");
            assert!((before[at]..=after[at]).contains(&shown), "{direction} {what}: {shown}");
        }
    }
}
