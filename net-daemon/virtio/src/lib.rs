//! `volt_virtio`: the device's side of virtio, for whoever serves a virtqueue of another process's guest.
//!
//! | module | holds |
//! |---|---|
//! | [`features`] | feature bits, those that all devices have and those of each device class |
//! | [`memory`] | guest memory: mappings, and the way from a guest address to a pointer |
//! | [`part`] | pieces of guest memory for `readv` and `writev` |
//! | [`chain`], [`ring`] | descriptor chains, split virtqueues |
//! | [`gather`] | parts of chains that wait for a frame |
//! | [`notify`], [`poller`] | kick, call and err; waiting for them |
//!
//! It knows no device, no protocol and no program: no log, no serialization. All that is unsafe about a data
//! path is here and, where a system call reads and writes guest memory, in the ports of `volt_net`.

pub mod chain;
pub mod features;
pub mod gather;
pub mod memory;
pub mod notify;
pub mod part;
pub mod poller;
pub mod ring;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

/// The crate whose memory mappings [`memory::Region::new`] takes, in the version that this one uses.
pub use vm_memory;

/// An error with everything that caused it, in one line.
pub fn error_chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
