//! `volt_vhost_user`: the vhost-user back-end of a network device. Bytes of a connection become calls of the
//! device.
//!
//! A message passes [`channel`] → [`message`] → [`session`] → device, and its reply returns through the
//! channel. A session lives as long as its connection, and begins empty. Only the device with its port stays
//! from one session to the next.
//!
//! QEMU's `docs/interop/vhost-user.rst` describes the protocol. Names in this crate are those used there.
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
mod mapping;
pub mod memory;
pub mod message;
pub mod migration_log;
pub mod session;
pub mod vring;
