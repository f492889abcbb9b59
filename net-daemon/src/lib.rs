//! `volt_net`: a virtio network device over a TAP interface, and the vhost-user session that serves it.
//!
//! | module | holds |
//! |---|---|
//! | [`virtio`] | feature bits, guest memory, split rings, descriptor chains |
//! | [`net`] | the device: configuration space, control queue, RX and TX of a queue pair |
//! | [`port`] | the host's side: TAP interfaces, sockets |
//! | [`event`] | waiting, being notified, a queue pair's worker |
//! | [`vhost_user`] | a front-end's connection and session |
//! | [`unix`] | Unix sockets that listen |
//! | [`state`] | all of it as data, for another process to go on with |

pub mod event;
pub mod net;
pub mod port;
pub mod state;
pub mod unix;
pub mod vhost_user;
pub mod virtio;

/// An error with everything that caused it, in one line.
pub fn error_chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
