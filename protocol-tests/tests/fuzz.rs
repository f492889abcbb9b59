//! The fuzz targets without a fuzzer: every file of the corpus (which once reached new code or found a
//! fault), and a bounded round of changed and random inputs, the same in each run. `scripts/fuzz` runs long.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

#[expect(unreachable_pub, reason = "a library of its own, for cargo-fuzz")]
#[path = "../fuzz/src/lib.rs"]
mod fuzz;

/// Limits of a target's random round: time and number of inputs; the first one reached ends it.
const ROUND: (Duration, usize) = (Duration::from_secs(4), 4000);

/// Targets run one at a time, because a target counts the descriptors of the process.
static ONE: Mutex<()> = Mutex::new(());

/// xorshift64*: the same inputs in each run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    /// Returns a corpus file with some changed bytes, or random bytes.
    fn input(&mut self, corpus: &[(PathBuf, Vec<u8>)]) -> Vec<u8> {
        let mut bytes = match self.below(4) {
            0 => (0..self.below(1000)).map(|_| self.next() as u8).collect(),
            _ => corpus[self.below(corpus.len())].1.clone(),
        };
        for _ in 0..self.below(8) {
            let (at, byte) = (self.below(bytes.len()), self.next() as u8);
            match self.below(3) {
                0 => bytes.insert(at, byte),
                _ if bytes.is_empty() => {}
                1 => drop(bytes.remove(at)),
                _ => bytes[at] = byte,
            }
        }
        bytes
    }
}

fn corpus(name: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

/// Runs `bytes`, and prints them if they cause a panic.
fn run(name: &str, what: &str, bytes: &[u8]) {
    struct Culprit<'a>(&'a str, &'a [u8]);
    impl Drop for Culprit<'_> {
        fn drop(&mut self) {
            if std::thread::panicking() {
                let hex: String = self.1.iter().map(|byte| format!("{byte:02x}")).collect();
                eprintln!("found by {}: {hex}", self.0);
            }
        }
    }
    let _culprit = Culprit(what, bytes);
    fuzz::target(name, bytes);
}

fn check(name: &str) {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let corpus = corpus(name);
    assert!(!corpus.is_empty(), "{name} has no corpus");
    for (path, bytes) in &corpus {
        run(name, &path.display().to_string(), bytes);
    }
    let (start, mut random, mut rounds) = (Instant::now(), Random(0x766f_6c74), 0);
    while rounds < ROUND.1 && start.elapsed() < ROUND.0 {
        let bytes = random.input(&corpus);
        run(name, &format!("random input {rounds}"), &bytes);
        rounds += 1;
    }
    println!("{name}: {} files of the corpus, {rounds} random inputs", corpus.len());
}

macro_rules! targets {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                check(stringify!($name));
            }
        )*

        #[test]
        fn every_target_is_run_here() {
            let names: Vec<_> = fuzz::TARGETS.iter().map(|(name, _)| *name).collect();
            assert_eq!(names, [$(stringify!($name)),*]);
        }
    };
}

targets! { block chains control filter frames kernel mmio pci rx session tx }
