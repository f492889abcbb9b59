//! Numbered echo requests (ICMP, RFC 792) to the guest, each of which its kernel answers once: what does not
//! come back was lost, what comes back again was repeated.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, ipproto, recv, sendto, socket};

use super::traffic::GUEST;

const REQUEST: u8 = 8;
/// Type, code, checksum, identifier, sequence number; then the number as 32 bits.
const LEN: usize = 12;
/// Length of an IPv4 header without options, which a raw socket gives too.
const IP: usize = 20;
/// Between two requests.
pub const INTERVAL: Duration = Duration::from_millis(5);
/// How long answers may take, where some are lost: the guest may be an emulated one on a busy machine.
const ANSWERS: Duration = Duration::from_secs(20);

/// What became of the requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Account {
    /// Requests.
    pub sent: usize,
    /// Those without an answer.
    pub lost: usize,
    /// Answers that came once more than they should.
    pub repeated: usize,
}

/// Requests until [`Echo::stop`].
pub struct Echo {
    over: Arc<AtomicBool>,
    thread: JoinHandle<Account>,
}

impl Echo {
    /// Starts in the network namespace of the thread that calls.
    ///
    /// # Panics
    /// Without the right to raw sockets.
    pub fn start() -> Echo {
        let socket = socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::ICMP)).expect("a raw socket");
        let over = Arc::new(AtomicBool::new(false));
        let flag = over.clone();
        Echo { over, thread: std::thread::spawn(move || run(&socket, &flag)) }
    }

    /// Stops, after the answers that are under way.
    ///
    /// # Panics
    /// When the socket failed.
    pub fn stop(self) -> Account {
        self.over.store(true, Relaxed);
        self.thread.join().expect("echo requests")
    }
}

fn run(socket: &OwnedFd, over: &AtomicBool) -> Account {
    let guest: IpAddr = GUEST.parse().expect("an address");
    let mut answers: HashMap<u32, usize> = HashMap::new();
    let mut sent = 0;
    while !over.load(Relaxed) {
        sendto(socket, &request(sent), SendFlags::empty(), &SocketAddr::new(guest, 0)).expect("sent");
        sent += 1;
        let next = Instant::now() + INTERVAL;
        while Instant::now() < next {
            collect(socket, &mut answers);
            std::thread::sleep(Duration::from_micros(500));
        }
    }
    let end = Instant::now() + ANSWERS;
    while answers.len() < sent as usize && Instant::now() < end {
        collect(socket, &mut answers);
        std::thread::sleep(Duration::from_millis(1));
    }
    // A repetition would be right behind.
    std::thread::sleep(Duration::from_millis(100));
    collect(socket, &mut answers);
    let all: usize = answers.values().sum();
    Account { sent: sent as usize, lost: sent as usize - answers.len(), repeated: all - answers.len() }
}

fn request(number: u32) -> [u8; LEN] {
    let mut bytes = [0; LEN];
    bytes[0] = REQUEST;
    bytes[8..].copy_from_slice(&number.to_be_bytes());
    let sum: u32 = bytes.as_chunks().0.iter().map(|pair| u32::from(u16::from_be_bytes(*pair))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = ((folded & 0xffff) + (folded >> 16)) as u16;
    bytes[2..4].copy_from_slice(&(!folded).to_be_bytes());
    bytes
}

fn collect(socket: &OwnedFd, answers: &mut HashMap<u32, usize>) {
    let mut bytes = [0; 128];
    while let Ok((len, _)) = recv(socket, &mut bytes, RecvFlags::DONTWAIT) {
        // An echo reply has type 0; others are not for this.
        if len == IP + LEN && bytes[IP] == 0 {
            let number = bytes[IP + 8..].first_chunk().map_or(0, |number| u32::from_be_bytes(*number));
            *answers.entry(number).or_default() += 1;
        }
    }
}
