//! `volt_net`: a virtio network device over a TAP interface, and the vhost-user session that serves it.
//!
//! | module | holds |
//! |---|---|
//! | [`virtio`] | feature bits, guest memory, split rings, descriptor chains |
//! | [`net`] | the device: configuration space, control queue, RX and TX of a queue pair |
//! | [`port`] | the host's side: TAP interfaces, sockets |
//! | [`event`] | waiting, being notified, a queue pair's worker |
//! | [`vhost_user`] | a front-end's connection and session |
//! | [`unix`] | Unix sockets with a path, and who is at their other end |
//! | [`state`] | all of it as data, for another process to go on with |
//!
//! # In a program of your own
//!
//! ```no_run
//! use volt_net::net::builder::VirtioNetBuilder;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let device = VirtioNetBuilder::new("tap0").mac("52:54:00:12:34:56".parse()?).mtu(1500).queues(2).build()?;
//! # Ok(())
//! # }
//! ```
//!
//! Its life from `DRIVER_OK` to reset is the trait [`net::lifecycle::Lifecycle`]. Frames go to a [`NetworkBackend`]: a
//! [TAP](port::tap::Tap) or [macvtap](port::macvtap::Macvtap) interface, [socket pairs](port::socket::SocketPort), or an
//! implementation of yours. `examples/embed.rs` has one, and runs a device from end to end.

pub mod event;
pub mod net;
pub mod port;
pub mod state;
pub mod unix;
pub mod vhost_user;
pub mod virtio;

/// The crate whose memory mappings [`virtio::memory::Region::new`] takes, in the version that this one uses.
pub use vm_memory;

/// What a device sends frames to and receives them from, by the name that other projects know it under.
pub use port::Port as NetworkBackend;
/// One queue of a [`NetworkBackend`].
pub use port::PortQueue as BackendQueue;

/// An error with everything that caused it, in one line.
pub fn error_chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
