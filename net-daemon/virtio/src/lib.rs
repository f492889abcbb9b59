//! `volt_virtio`: the device's side of virtio, for programs that serve virtqueues of another process's guest.
//!
//! | module | contents |
//! |---|---|
//! | [`features`] | feature bits, for all devices and for each device class |
//! | [`memory`] | guest memory: mappings, and the translation of guest addresses to pointers |
//! | [`dirty_log`] | the log of written pages, for live migration |
//! | [`part`] | pieces of guest memory for `readv` and `writev` |
//! | [`chain`], [`ring`] | descriptor chains, split virtqueues |
//! | [`gather`] | parts of chains that wait for a frame |
//! | [`notify`], [`poller`] | kick, call and err; epoll |
//!
//! It is independent of devices, protocols and programs: no log, no serialization. All unsafe code of a data
//! path is here, and in the ports of `volt_net` for system calls on guest memory.

pub mod chain;
pub mod dirty_log;
pub mod features;
pub mod gather;
pub mod memory;
pub mod notify;
pub mod part;
pub mod poller;
pub mod ring;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

/// The crate of the memory mappings for [`memory::Region::new`], in the matching version.
pub use vm_memory;

/// Returns an error with all its causes, in one line.
pub fn error_chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
