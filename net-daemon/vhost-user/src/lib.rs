//! `volt_vhost_user`: the vhost-user back-end of a network device. Bytes of a connection become calls of the
//! device.
//!
//! A message goes [`channel`] → [`message`] → [`session`] → device, and its reply back by the channel. A
//! session lives as long as its connection and begins with nothing; what stays from one to the next is the
//! device's port.
//!
//! The protocol is described in QEMU's `docs/interop/vhost-user.rst`; names are those used there.
//!
//! # Serve vhost-user in your own program
//!
//! This is `examples/serve.rs`:
//!
#![doc = concat!("```no_run\n", include_str!("../examples/serve.rs"), "```")]
#![forbid(unsafe_code)]

pub mod backend_channel;
pub mod channel;
mod descriptors;
pub mod memory;
pub mod message;
pub mod session;
pub mod vring;
