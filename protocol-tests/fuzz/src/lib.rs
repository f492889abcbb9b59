//! Fuzz targets for what takes bytes from guests, front-ends and files, each with a model of what must come
//! of them.
//!
//! A target is a function of bytes that panics when something is wrong. cargo-fuzz runs it with bytes that
//! reach new code; the test `protocol-tests/tests/fuzz.rs`, which includes this file, runs it on the corpus
//! and on some random bytes. `scripts/fuzz` runs the campaigns.
//!
//! Most targets take a list of steps ([`arbitrary`] makes it of the bytes), as plain bytes would hardly get
//! past the first check. The models are written from the specifications and share no code with what they
//! check.

mod block;
mod chains;
mod control;
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

/// A target: its name and what runs it.
pub type Target = (&'static str, fn(&[u8]));

/// All targets, by name.
pub const TARGETS: [Target; 10] = [
    ("block", |bytes| run(bytes, block::run)),
    ("chains", |bytes| run(bytes, chains::run)),
    ("control", |bytes| run(bytes, control::run)),
    ("frames", |bytes| run(bytes, frames::run)),
    ("kernel", |bytes| run(bytes, kernel::run)),
    ("mmio", |bytes| run(bytes, mmio::run)),
    ("pci", |bytes| run(bytes, pci::run)),
    ("rx", |bytes| run(bytes, rx::run)),
    ("session", |bytes| run(bytes, session::run)),
    ("tx", |bytes| run(bytes, tx::run)),
];

/// Steps of one run that are carried out; a run is to take milliseconds.
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
/// When there is none, and when it finds something.
pub fn target(name: &str, bytes: &[u8]) {
    let (_, run) = TARGETS.iter().find(|(known, _)| *known == name).expect("a target's name");
    run(bytes);
}
