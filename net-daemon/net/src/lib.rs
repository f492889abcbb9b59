//! `volt_net`: a virtio network device (virtio 1.2, section 5.1) over a TAP or macvtap interface or over
//! sockets.
//!
//! | module | contents |
//! |---|---|
//! | [`builder`], [`virtio_net`] | the device for a virtual machine monitor: build, activate, notify, reset |
//! | [`device`] | features and configuration; start and stop of queue pairs |
//! | [`worker`] | the thread of a queue pair |
//! | [`pair`], [`tx`], [`rx`], [`vring`] | a queue pair: guest to wire and wire to guest |
//! | [`control`] | the control virtqueue |
//! | [`batch`], [`health`], [`unshared`] | batches, errors of a port, guest memory that is not shared |
//! | [`announcement`] | a guest's arrival by live migration, told to the network |
//! | [`trouble`], [`thread`] | reports of workers to the device's owner; start and stop of threads |
//! | [`config`], [`counters`], [`limiter`] | configuration space, counters, rate limits |
//! | [`report`] | reports of a running pair on its rings |
//! | [`port`] | the host's side: interfaces and sockets |
//! | [`capture`] | copies of frames for another process |
//! | [`filter`] | judges each frame, before it is sent or delivered |
//! | [`state`] | the device as data, for hand-over to another process |
//! | [`shared_words`], [`crash_note`] | memory that outlives a process, and notes on its work in progress |
//!
//! A frame to the wire passes worker → [`pair`] → [`tx`] → port. A frame to the guest passes worker →
//! [`pair`] → [`rx`] → ring → call. All other code is set-up.
//!
//! # Use in your own program
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
//! [`virtio_net::VirtioNet`] describes the life of a device from `DRIVER_OK` to reset. Frames go to a
//! [`port::Port`]: a [TAP](port::tap::Tap) or [macvtap](port::macvtap::Macvtap) interface, [socket
//! pairs](port::socket::SocketPort), the socket of a [peer](port::peer::PeerPort), or your own
//! implementation, as in `examples/embed.rs`.
//!
//! This is `examples/both_ways.rs`, which plays monitor and driver:
//!
#![doc = concat!("```\n", include_str!("../examples/both_ways.rs"), "```")]
//!
//! The signal SIGRTMIN+1 wakes a thread that is slow to stop. The first thread to start installs a handler
//! that does nothing. A program must not use this signal for anything else.

pub mod announcement;
pub mod batch;
pub mod builder;
pub mod capture;
mod checksum;
pub mod config;
pub mod control;
pub mod counters;
pub mod crash_note;
pub mod device;
pub mod filter;
pub mod health;
mod lengths;
pub mod limiter;
mod offloads;
pub mod pair;
pub mod port;
pub mod report;
pub mod rx;
mod segments;
pub mod shared_words;
pub mod state;
pub mod thread;
pub mod trouble;
pub mod tx;
pub mod unshared;
pub mod virtio_net;
pub mod vring;
pub mod worker;

/// The crate whose memory, rings and notifiers appear in this crate's interfaces, in the matching version.
pub use volt_virtio;

#[cfg(test)]
pub(crate) mod testing;
