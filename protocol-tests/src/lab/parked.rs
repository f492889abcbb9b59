//! Data that the guest has received but not yet read while it migrates.
//!
//! A page that only the device has written reaches the destination only if the daemon logs it: the guest's
//! processor, which QEMU watches by itself, does not touch it before the move. So the data is sent when QEMU
//! has already copied all memory once, stays in the guest's socket, and is read and digested at the
//! destination.

use std::fs::read_to_string;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};

use super::PATIENCE;
use super::traffic::{HOST, digest};
use crate::daemon::poll_until;

const DATA: u16 = 7006;
const SIGNAL: u16 = 7007;
/// Bytes to park: they fit into the window that a connection starts with.
const LEN: usize = 48 << 10;

/// The far side.
pub struct Parking {
    data: TcpListener,
    signal: TcpListener,
}

/// A connection whose data the guest does not read yet.
pub struct Parked {
    data: TcpStream,
    signal: TcpStream,
    digest: String,
}

impl Parking {
    /// Listens in the namespace of the calling thread.
    ///
    /// # Panics
    /// If a port is not available.
    pub fn listen() -> Parking {
        let listen = |port| TcpListener::bind(("0.0.0.0", port)).expect("a port");
        Parking { data: listen(DATA), signal: listen(SIGNAL) }
    }

    /// Returns a command for `volt.run`, to be repeated: connects, reads nothing before the far side closes a
    /// second connection, and answers with the digest of the data.
    pub fn guest() -> String {
        format!("nc {HOST} {DATA} -e sh -c 'nc {HOST} {SIGNAL} -e cat; sha256sum'")
    }

    /// Waits for the guest's two connections.
    ///
    /// # Panics
    /// If they do not come.
    #[track_caller]
    pub fn accept(&self) -> Parked {
        let accept = |listener: &TcpListener| {
            listener.set_nonblocking(true).expect("a mode");
            let stream = poll_until(PATIENCE, || listener.accept().ok()).expect("the guest connects").0;
            stream.set_nonblocking(false).expect("a mode");
            stream.set_read_timeout(Some(PATIENCE)).expect("a limit");
            stream.set_write_timeout(Some(PATIENCE)).expect("a limit");
            stream
        };
        Parked { data: accept(&self.data), signal: accept(&self.signal), digest: String::new() }
    }
}

impl Parked {
    /// Sends the data, and waits until the guest has received all of it.
    ///
    /// # Panics
    /// If it does not.
    #[track_caller]
    pub fn park(&mut self) {
        let mut bytes = vec![0; LEN];
        let random = std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
        random.expect("random data");
        self.digest = digest(&mut bytes.as_slice()).1;
        self.data.write_all(&bytes).expect("sent");
        self.data.shutdown(Shutdown::Write).expect("the end is sent");
        let acknowledged = poll_until(PATIENCE, || (self.pending() == 0).then_some(()));
        assert!(acknowledged.is_some(), "the guest did not acknowledge {} bytes", self.pending());
    }

    /// Lets the guest read the data.
    ///
    /// # Panics
    /// If it reads other data than was sent.
    #[track_caller]
    pub fn judge(mut self) {
        self.signal.shutdown(Shutdown::Both).expect("the guest is told");
        let mut answer = String::new();
        self.data.read_to_string(&mut answer).expect("an answer");
        let digest = answer.split_whitespace().next().unwrap_or_default();
        assert_eq!(digest, self.digest, "received before the move, and other data after it");
    }

    /// Returns the bytes that the guest has not acknowledged (`proc_net_tcp.rst` of the kernel).
    fn pending(&self) -> u64 {
        let port = self.data.peer_addr().expect("an address").port();
        let table = read_to_string("/proc/thread-self/net/tcp").expect("the connections");
        let row = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).find(|row| {
            row.len() > 4
                && row[1].ends_with(&format!(":{DATA:04X}"))
                && row[2].ends_with(&format!(":{port:04X}"))
        });
        let row = row.expect("the connection");
        u64::from_str_radix(row[4].split(':').next().unwrap_or_default(), 16).expect("a number")
    }
}
