//! `volt_net`: a virtio network device (virtio 1.2, section 5.1) over a TAP or macvtap interface, or sockets.
//!
//! | module | holds |
//! |---|---|
//! | [`builder`], [`virtio_net`] | the device for a virtual machine monitor: built, activated, notified, reset |
//! | [`device`] | what it offers, and the seam at which its queue pairs start and stop |
//! | [`worker`] | the thread of a queue pair |
//! | [`pair`], [`tx`], [`rx`], [`vring`] | a queue pair, guest to wire and wire to guest |
//! | [`control`] | the control virtqueue |
//! | [`batch`], [`health`], [`unshared`] | a batch's turns, a port's errors, memory that is not shared |
//! | [`trouble`], [`thread`] | what workers tell the device's owner; how they are begun and stopped |
//! | [`config`], [`counters`], [`limiter`] | configuration space, counters, rate limits |
//! | [`report`] | what a running pair says of its rings |
//! | [`port`] | the host's side: interfaces and sockets |
//! | [`capture`] | copies of frames, for another process to look at |
//! | [`state`] | all of it as data, for another process to go on with |
//! | [`shared_words`], [`crash_note`] | memory that outlives a process, and what it was doing |
//!
//! Frames go worker → [`pair`] → [`tx`] → port, and worker → [`pair`] → [`rx`] → ring → call; everything else
//! is set-up around that.
//!
//! # In a program of your own
//!
//! ```no_run
//! use volt_net::builder::VirtioNetBuilder;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let device = VirtioNetBuilder::new("tap0").mac("52:54:00:12:34:56".parse()?).mtu(1500).queues(2).build()?;
//! # Ok(())
//! # }
//! ```
//!
//! Its life from `DRIVER_OK` to reset is in [`virtio_net::VirtioNet`]. Frames go to a [`port::Port`]:
//! a [TAP](port::tap::Tap) or [macvtap](port::macvtap::Macvtap) interface, [socket
//! pairs](port::socket::SocketPort), or an implementation of yours. `examples/embed.rs` has one, and runs a
//! device from end to end.
//!
//! A thread that is slow to stop is woken by the signal SIGRTMIN+1. The first one to start installs a handler
//! for it that does nothing; a program that uses that signal for something else has to leave it.

pub mod batch;
pub mod builder;
pub mod capture;
pub mod config;
pub mod control;
pub mod counters;
pub mod crash_note;
pub mod device;
pub mod health;
pub mod limiter;
mod offloads;
pub mod pair;
pub mod port;
pub mod report;
pub mod rx;
pub mod shared_words;
pub mod state;
pub mod thread;
pub mod trouble;
pub mod tx;
pub mod unshared;
pub mod virtio_net;
pub mod vring;
pub mod worker;

/// What the interfaces of this crate take of memory, rings and notifiers, in the version that it uses.
pub use volt_virtio;

#[cfg(test)]
pub(crate) mod testing;
