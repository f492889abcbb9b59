//! Fuzz targets for the code that parses input from guests, front-ends and files, each with a model of the
//! expected result.
//!
//! A target is a function of bytes that panics at a fault. cargo-fuzz runs it with bytes that reach new code.
//! The test `protocol-tests/tests/fuzz.rs`, which includes this file, runs it on the corpus and on some
//! random bytes. `scripts/fuzz` runs the campaigns.
//!
//! Most targets take a list of steps, which [`arbitrary`] makes of the bytes: plain bytes would rarely pass
//! the first check. The models follow the specifications and share no code with the code under test.

mod answers;
mod block;
mod chains;
mod control;
mod filter;
mod frames;
mod guest;
mod kernel;
mod message;
mod mmio;
mod pci;
mod rig;
mod rx;
mod session;
mod tx;

use arbitrary::{Arbitrary, Unstructured};

/// A target: its name and its function.
pub type Target = (&'static str, fn(&[u8]));

/// All targets, by name.
pub const TARGETS: [Target; 11] = [
    ("block", |bytes| run(bytes, block::run)),
    ("chains", |bytes| run(bytes, chains::run)),
    ("control", |bytes| run(bytes, control::run)),
    ("filter", |bytes| run(bytes, filter::run)),
    ("frames", |bytes| run(bytes, frames::run)),
    ("kernel", |bytes| run(bytes, kernel::run)),
    ("mmio", |bytes| run(bytes, mmio::run)),
    ("pci", |bytes| run(bytes, pci::run)),
    ("rx", |bytes| run(bytes, rx::run)),
    ("session", |bytes| run(bytes, session::run)),
    ("tx", |bytes| run(bytes, tx::run)),
];

/// Most steps of one run, which should take milliseconds.
const STEPS: usize = 256;

fn run<T: for<'a> Arbitrary<'a>>(bytes: &[u8], body: impl FnOnce(T)) {
    if let Ok(input) = T::arbitrary_take_rest(Unstructured::new(bytes)) {
        body(input);
    }
}

/// Runs the target called `name`.
///
/// # Panics
///
/// If there is none, or if it finds a fault.
pub fn target(name: &str, bytes: &[u8]) {
    let (_, run) = TARGETS.iter().find(|(known, _)| *known == name).expect("a target's name");
    run(bytes);
}
