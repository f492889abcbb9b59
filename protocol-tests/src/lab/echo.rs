//! Numbered echo requests (ICMP, RFC 792) to the guest, whose kernel answers each once. A missing answer was
//! lost; a second one was repeated.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering::Relaxed};
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

/// The interruptions.
#[derive(Clone, Copy, Debug)]
pub struct Outage {
    /// Longest time between an answer and the next one.
    pub longest: Duration,
    /// Runs of successive requests without an answer.
    pub holes: usize,
    /// Answers to requests of an earlier series: something kept the requests until now.
    pub stale: usize,
}

/// Sends requests until [`Echo::stop`].
pub struct Echo {
    over: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    thread: JoinHandle<(Account, Outage)>,
}

/// The identifier of the next series.
static NEXT_SERIES: AtomicU16 = AtomicU16::new(1);

/// The answers so far.
struct Answers {
    series: u16,
    stale: usize,
    /// Answers to each request, by its number.
    counts: HashMap<u32, usize>,
    last: Option<Instant>,
    longest: Duration,
    answered: Arc<AtomicUsize>,
}

impl Echo {
    /// Starts in the network namespace of the calling thread.
    ///
    /// # Panics
    /// Without permission for raw sockets.
    pub fn start() -> Echo {
        let socket = socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::ICMP)).expect("a raw socket");
        let over = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(AtomicUsize::new(0));
        let flag = over.clone();
        let answers = Answers::new(NEXT_SERIES.fetch_add(1, Relaxed), answered.clone());
        Echo { over, answered, thread: std::thread::spawn(move || run(&socket, &flag, answers)) }
    }

    /// Returns the number of requests that have been answered.
    pub fn answered(&self) -> usize {
        self.answered.load(Relaxed)
    }

    /// Stops after the pending answers have arrived.
    ///
    /// # Panics
    /// If the socket failed.
    pub fn stop(self) -> Account {
        self.stop_and_tell().0
    }

    /// Like `stop`, and returns the interruptions.
    ///
    /// # Panics
    /// If the socket failed.
    pub fn stop_and_tell(self) -> (Account, Outage) {
        self.over.store(true, Relaxed);
        self.thread.join().expect("echo requests")
    }
}

fn run(socket: &OwnedFd, over: &AtomicBool, mut answers: Answers) -> (Account, Outage) {
    let guest: IpAddr = GUEST.parse().expect("an address");
    let mut sent = 0;
    while !over.load(Relaxed) {
        sendto(socket, &request(answers.series, sent), SendFlags::empty(), &SocketAddr::new(guest, 0))
            .expect("sent");
        sent += 1;
        let next = Instant::now() + INTERVAL;
        while Instant::now() < next {
            answers.collect(socket);
            std::thread::sleep(Duration::from_micros(500));
        }
    }
    let end = Instant::now() + ANSWERS;
    // Answers come in order: after the last one, others are lost.
    while sent > 0 && !answers.counts.contains_key(&(sent - 1)) && Instant::now() < end {
        answers.collect(socket);
        std::thread::sleep(Duration::from_millis(1));
    }
    // A repetition would follow at once.
    std::thread::sleep(Duration::from_millis(100));
    answers.collect(socket);
    answers.result(sent)
}

fn request(series: u16, number: u32) -> [u8; LEN] {
    let mut bytes = [0; LEN];
    bytes[0] = REQUEST;
    bytes[4..6].copy_from_slice(&series.to_be_bytes());
    bytes[8..].copy_from_slice(&number.to_be_bytes());
    let sum: u32 = bytes.as_chunks().0.iter().map(|pair| u32::from(u16::from_be_bytes(*pair))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = ((folded & 0xffff) + (folded >> 16)) as u16;
    bytes[2..4].copy_from_slice(&(!folded).to_be_bytes());
    bytes
}

impl Answers {
    fn new(series: u16, answered: Arc<AtomicUsize>) -> Answers {
        let counts = HashMap::new();
        Answers { series, stale: 0, counts, last: None, longest: Duration::ZERO, answered }
    }

    fn collect(&mut self, socket: &OwnedFd) {
        let mut bytes = [0; 128];
        while let Ok((len, _)) = recv(socket, &mut bytes, RecvFlags::DONTWAIT) {
            // An echo reply has type 0; other messages are not for this socket.
            if len == IP + LEN && bytes[IP] == 0 {
                let series = bytes[IP + 4..].first_chunk().map_or(0, |series| u16::from_be_bytes(*series));
                let number = bytes[IP + 8..].first_chunk().map_or(0, |number| u32::from_be_bytes(*number));
                match series == self.series {
                    true => self.count(number, Instant::now()),
                    false => self.stale += 1,
                }
            }
        }
    }

    fn count(&mut self, number: u32, now: Instant) {
        *self.counts.entry(number).or_default() += 1;
        self.longest = self.longest.max(self.last.map_or(Duration::ZERO, |last| now - last));
        self.last = Some(now);
        self.answered.store(self.counts.len(), Relaxed);
    }

    fn result(&self, sent: u32) -> (Account, Outage) {
        let all: usize = self.counts.values().sum();
        let lost = |number: &u32| !self.counts.contains_key(number);
        let begins = |number: &u32| lost(number) && (*number == 0 || !lost(&(number - 1)));
        let account = Account {
            sent: sent as usize,
            lost: sent as usize - self.counts.len(),
            repeated: all - self.counts.len(),
        };
        let holes = (0..sent).filter(begins).count();
        (account, Outage { longest: self.longest, holes, stale: self.stale })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_and_repeated_answers_are_counted() {
        let mut answers = Answers::new(1, Arc::default());
        let start = Instant::now();
        for (number, millis) in [(0, 0), (1, 5), (4, 105), (4, 106), (5, 110), (7, 120)] {
            answers.count(number, start + Duration::from_millis(millis));
        }
        let (account, outage) = answers.result(10);
        assert_eq!(account, Account { sent: 10, lost: 5, repeated: 1 });
        assert_eq!((outage.longest, outage.holes), (Duration::from_millis(100), 3));
        assert_eq!(answers.answered.load(Relaxed), 5);
    }
}
