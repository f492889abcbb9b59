//! Instructions for each frame of the data path, counted by callgrind and compared with a budget. The counts
//! are reproducible even on machines where times are not.
//!
//! `cargo test --release -p volt-net --bench instructions` runs this program under valgrind, once for each
//! case. Its port accepts and provides every frame at once, so that system calls do not count. A change that
//! needs more instructions must raise the budget here, visibly.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::process::{Command, ExitCode};
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};
use vm_memory::{Bytes, MmapRegion, VolatileMemory};
use volt_net::capture::ring::readers;
use volt_net::capture::{Capture, CaptureOptions};
use volt_net::counters::CounterMemory;
use volt_net::counters::Counters;
use volt_net::filter::volt_filter::Way;
use volt_net::health::Health;
use volt_net::port::PortQueue;
use volt_net::rx::Rx;
use volt_net::trouble::Trouble;
use volt_net::tx::Tx;
use volt_net::vring::Vring;
use volt_virtio::dirty_log::{DirtyLog, LOG_PAGE};
use volt_virtio::features::Features;
use volt_virtio::memory::{GuestMemory, Region};
use volt_virtio::notify::Notifier;
use volt_virtio::part::{IoPart, write_parts};
use volt_virtio::ring::{Ring, RingLayout};

mod judged;

use judged::Judged;

/// Entries of the ring.
const SIZE: u16 = 256;
/// Number of frames in a measured run: whole rings.
const FRAMES: usize = 64 * 256;
const BUFFERS: u64 = 0x1_0000;
/// Room for one chain.
const STRIDE: u64 = 0x1_8000;
const MEMORY: u64 = BUFFERS + SIZE as u64 * STRIDE;
/// Bytes of a log of written pages for all of it.
const LOG: u64 = MEMORY.div_ceil(8 * LOG_PAGE);

/// A case with the maximum number of instructions for each frame: the measured value, plus a tenth for other
/// compilers.
struct Case {
    name: &'static str,
    budget: u64,
    frame: usize,
    /// Lengths of a chain's buffers. Several buffers use an indirect table.
    parts: &'static [u32],
    receive: bool,
    /// Whether frames are captured.
    capture: bool,
    /// Whether written pages are logged.
    logged: bool,
    /// What judges frames, which are then those of a TCP connection.
    judged: Judged,
}

const TX: Case = Case {
    name: "tx one buffer",
    budget: 153,
    frame: 76,
    parts: &[76],
    receive: false,
    capture: false,
    logged: false,
    judged: Judged::Not,
};
const RX: Case = Case { name: "rx one buffer", budget: 386, frame: 76, parts: &[1536], receive: true, ..TX };
const CASES: [Case; 14] = [
    TX,
    Case {
        name: "tx indirect, 4 buffers",
        budget: 727,
        frame: 65_012,
        parts: &[66, 32_768, 32_000, 178],
        ..TX
    },
    RX,
    Case { name: "rx 16 merged buffers", budget: 2485, frame: 65_012, parts: &[4096], ..RX },
    Case { name: "tx one buffer, captured", budget: 602, capture: true, ..TX },
    Case { name: "rx one buffer, captured", budget: 833, capture: true, ..RX },
    Case { name: "tx one buffer, logged", budget: 155, logged: true, ..TX },
    Case { name: "rx one buffer, logged", budget: 410, logged: true, ..RX },
    Case { name: "tx one buffer, guarded", budget: 838, judged: Judged::Guard, ..TX },
    Case { name: "rx one buffer, guarded", budget: 1021, judged: Judged::Guard, ..RX },
    Case { name: "tx one buffer, policy", budget: 1514, judged: Judged::Policy, ..TX },
    Case { name: "rx one buffer, policy", budget: 1700, judged: Judged::Policy, ..RX },
    Case {
        name: "tx 1500 bytes, policy",
        budget: 1720,
        frame: 1526,
        parts: &[1526],
        judged: Judged::Policy,
        ..TX
    },
    Case { name: "rx 1500 bytes, policy", budget: 2072, frame: 1526, judged: Judged::Policy, ..RX },
];

/// A port that accepts every frame, and always has one.
#[derive(Debug)]
struct Endless {
    null: File,
    frame: usize,
}

impl AsFd for Endless {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.null.as_fd()
    }
}

impl PortQueue for Endless {
    fn send(&self, parts: &[IoPart<'_>]) -> io::Result<usize> {
        Ok(parts.iter().map(|part| part.len()).sum())
    }

    fn recv(&self, _parts: &[IoPart<'_>]) -> io::Result<usize> {
        Ok(self.frame)
    }
}

/// The same, with a frame that can be judged.
#[derive(Debug)]
struct EndlessFrames {
    endless: Endless,
    frame: Vec<u8>,
}

impl AsFd for EndlessFrames {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.endless.as_fd()
    }
}

impl PortQueue for EndlessFrames {
    fn send(&self, parts: &[IoPart<'_>]) -> io::Result<usize> {
        self.endless.send(parts)
    }

    fn recv(&self, parts: &[IoPart<'_>]) -> io::Result<usize> {
        write_parts(parts, 0, &self.frame);
        Ok(self.frame.len())
    }
}

/// The driver's side: all chains laid out, made available repeatedly in order.
struct Driver {
    mapping: Arc<MmapRegion>,
    layout: RingLayout,
    avail: u16,
}

impl Driver {
    fn new(case: &Case) -> Driver {
        let mapping = Arc::new(MmapRegion::new(MEMORY as usize).expect("memory"));
        let layout = RingLayout { size: SIZE, desc: 0, avail: 0x2000, used: 0x3000 };
        let driver = Driver { mapping, layout, avail: 0 };
        let write = u16::from(case.receive) * 2;
        for head in 0..SIZE {
            let buffers = BUFFERS + u64::from(head) * STRIDE;
            let (table, mut at) = (buffers + STRIDE - 0x1000, buffers);
            if let [len] = case.parts {
                driver.descriptor(u64::from(head) * 16, buffers, *len, write, 0);
            } else {
                driver.descriptor(u64::from(head) * 16, table, 16 * case.parts.len() as u32, 4, 0);
                for (number, len) in (0u16..).zip(case.parts) {
                    let next = u16::from(usize::from(number) + 1 < case.parts.len());
                    driver.descriptor(table + u64::from(number) * 16, at, *len, write | next, number + 1);
                    at += u64::from(*len) + 64;
                }
            }
            driver.store(layout.avail + 4 + u64::from(head) * 2, head);
        }
        // Notifications are not part of the measured work: `used_event` is just behind the index.
        driver.store(layout.avail + 4 + u64::from(SIZE) * 2, u16::MAX);
        driver
    }

    /// Writes a frame into each chain of one buffer.
    fn fill(&self, frame: &[u8]) {
        for head in 0..u64::from(SIZE) {
            let at = (BUFFERS + head * STRIDE) as usize;
            self.mapping.as_volatile_slice().write_slice(frame, at).expect("inside memory");
        }
    }

    fn store(&self, at: u64, value: u16) {
        self.mapping.as_volatile_slice().write_obj(value.to_le(), at as usize).expect("inside memory");
    }

    fn descriptor(&self, at: u64, addr: u64, len: u32, flags: u16, next: u16) {
        let memory = self.mapping.as_volatile_slice();
        memory.write_obj(addr.to_le(), at as usize).expect("inside memory");
        memory.write_obj(len.to_le(), at as usize + 8).expect("inside memory");
        self.store(at + 12, flags);
        self.store(at + 14, next);
    }

    /// Makes a whole ring available.
    fn refill(&mut self) {
        self.avail = self.avail.wrapping_add(SIZE);
        self.store(self.layout.avail + 2, self.avail);
        self.store(self.layout.avail + 4 + u64::from(SIZE) * 2, self.avail.wrapping_sub(SIZE + 1));
    }

    fn used(&self) -> u16 {
        let at = self.layout.used as usize + 2;
        u16::from_le(self.mapping.as_volatile_slice().read_obj(at).expect("inside memory"))
    }

    fn vring(&self, logged: bool) -> Vring {
        let region = Region::new(self.mapping.clone(), 0, 0, 0, MEMORY).expect("a region");
        let mut memory = GuestMemory::new(vec![region]).expect("one region");
        if logged {
            let bits = Arc::new(MmapRegion::new(LOG as usize).expect("memory"));
            memory = memory.logged(Arc::new(DirtyLog::new(bits, 0, LOG).expect("a log")));
        }
        let features = Features::EVENT_IDX.union(Features::INDIRECT_DESC);
        let mut ring = Ring::start(Arc::new(memory), self.layout, features).expect("a ring");
        ring.log_used_at(self.layout.used);
        Vring {
            index: 0,
            ring,
            kick: notifier(),
            call: None,
            err: None,
            bad_chain_logged: false,
            watch: None,
        }
    }
}

fn notifier() -> Arc<Notifier> {
    Arc::new(Notifier::new(eventfd(0, EventfdFlags::CLOEXEC).expect("eventfd")).expect("a notifier"))
}

/// The function whose instructions callgrind counts.
#[inline(never)]
fn counted(work: &mut dyn FnMut()) {
    work();
}

/// Runs a case: one process of its own under callgrind.
fn run(case: &Case) {
    let mut driver = Driver::new(case);
    let endless = Endless { null: File::open("/dev/null").expect("/dev/null"), frame: case.frame };
    let memory = CounterMemory::new(1).expect("memory");
    let counters = memory.pair(0);
    let mut port: Arc<dyn PortQueue> = match case.judged.filter() {
        None => Arc::new(endless),
        Some(filter) => {
            driver.fill(&judged::data(Way::Out, case.frame));
            let frames = EndlessFrames { endless, frame: judged::data(Way::In, case.frame) };
            filter.before(Arc::new(frames), counters.clone())
        }
    };
    let captured = case.capture.then(|| {
        let options = CaptureOptions { pair: None, snap: 262_144, rx: true, tx: true };
        let capture = Capture::new(options, 1).expect("memory");
        port = capture.before(0, port.clone());
        let memory = capture.file().expect("a file").try_clone().expect("a descriptor");
        (capture, readers(memory.into(), 1).expect("a ring").remove(0))
    });
    let mut health = Health::new("endless".to_owned(), Trouble::new(2, notifier()));
    let mut tx = Tx::new(driver.vring(case.logged), false);
    let mut rx = Rx::new(driver.vring(case.logged), Features::NET_MRG_RXBUF.union(Features::NET_GUEST_CSUM));
    let done = |counters: &Counters| (counters.tx_frames.get() + counters.rx_frames.get()) as usize;
    while done(&counters) < FRAMES {
        driver.refill();
        let mut turn = || {
            let result = match case.receive {
                true => rx.run(&*port, &mut health, &counters),
                false => tx.run(&*port, &mut health, &counters),
            };
            result.expect("the ring is whole");
        };
        while driver.used() != driver.avail {
            counted(&mut turn);
        }
        assert_eq!((counters.tx_filtered.get(), counters.rx_filtered.get()), (0, 0), "no frame is refused");
    }
    if let Some((capture, mut reader)) = captured {
        let read = std::iter::from_fn(|| reader.next_time(true).map(|_| reader.take())).count();
        assert_eq!((read, capture.lost()), (done(&counters), 0), "all of them are captured");
    }
    println!("{} frames", done(&counters));
}

/// Returns the instructions that callgrind counts for each frame of case `number`, or the reason why it
/// cannot.
fn count(number: usize) -> Result<u64, String> {
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--collect-atstart=no"]);
    valgrind.args(["--toggle-collect=*instructions::counted*"]).arg(own).args(["run", &number.to_string()]);
    let output = valgrind.output().map_err(|error| format!("valgrind does not run: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let frames = String::from_utf8_lossy(&output.stdout);
    let frames: Option<u64> = frames.split(' ').next().and_then(|count| count.parse().ok());
    let collected =
        said.lines().find_map(|line| line.split("Collected :").nth(1)?.trim().parse::<u64>().ok());
    match (frames, collected) {
        (Some(frames), Some(collected)) if frames > 0 && collected > 0 => Ok(collected / frames),
        _ => Err(format!("valgrind says: {said}")),
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, run_word, number] = &arguments[..]
        && run_word == "run"
        && let Some(case) = number.parse().ok().and_then(|number: usize| CASES.get(number))
    {
        run(case);
        return ExitCode::SUCCESS;
    }
    if Command::new("valgrind").arg("--version").output().is_err() {
        eprintln!("SKIP instructions: there is no valgrind: install Debian's package of that name");
        println!("test result: ok. 1 passed; 0 failed");
        return ExitCode::SUCCESS;
    }
    if cfg!(debug_assertions) {
        eprintln!("SKIP instructions: budgets are those of release builds: use --release");
        println!("test result: ok. 1 passed; 0 failed");
        return ExitCode::SUCCESS;
    }
    let mut failed = 0;
    for (number, case) in CASES.iter().enumerate() {
        let verdict = match count(number) {
            Ok(count) if count <= case.budget => {
                format!("{count} of at most {} instructions a frame", case.budget)
            }
            Ok(count) => {
                failed += 1;
                format!("FAILED: {count} instructions a frame, more than the budget of {}", case.budget)
            }
            Err(error) => {
                failed += 1;
                format!("FAILED: {error}")
            }
        };
        println!("{}: {verdict}", case.name);
    }
    let word = if failed == 0 { "ok" } else { "FAILED" };
    println!("test result: {word}. {} passed; {failed} failed", CASES.len() - failed);
    ExitCode::from(u8::from(failed > 0))
}
