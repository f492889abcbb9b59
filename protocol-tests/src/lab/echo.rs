//! Numbered echo requests (ICMP, RFC 792) to the guest, whose kernel answers each once. A missing answer was
//! lost; a second one was repeated.

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
/// Length of an IPv4 header without options, which a raw socket also returns.
const IP: usize = 20;
/// Time between two requests.
pub const INTERVAL: Duration = Duration::from_millis(5);
/// Time limit for the last answers, if some are lost: the guest may be emulated on a busy machine.
const ANSWERS: Duration = Duration::from_secs(20);

/// The results of the requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Account {
    /// Requests.
    pub sent: usize,
    /// Requests without an answer.
    pub lost: usize,
    /// Extra answers.
    pub repeated: usize,
}

/// Sends requests until [`Echo::stop`].
pub struct Echo {
    over: Arc<AtomicBool>,
    thread: JoinHandle<Account>,
}

impl Echo {
    /// Starts in the network namespace of the calling thread.
    ///
    /// # Panics
    /// Without permission for raw sockets.
    pub fn start() -> Echo {
        let socket = socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::ICMP)).expect("a raw socket");
        let over = Arc::new(AtomicBool::new(false));
        let flag = over.clone();
        Echo { over, thread: std::thread::spawn(move || run(&socket, &flag)) }
    }

    /// Stops after the pending answers have arrived.
    ///
    /// # Panics
    /// If the socket failed.
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
    // A repetition would follow at once.
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
        // An echo reply has type 0; other messages are not for this socket.
        if len == IP + LEN && bytes[IP] == 0 {
            let number = bytes[IP + 8..].first_chunk().map_or(0, |number| u32::from_be_bytes(*number));
            *answers.entry(number).or_default() += 1;
        }
    }
}
