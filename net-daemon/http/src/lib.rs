//! A small HTTP/1 server and client for Unix and TCP sockets: how volt-netd and volt-vmm are asked while they
//! run.
//!
//! - [`server`]: a thread that accepts clients and a thread for each of them, no async runtime. Who serves
//!   something implements [`Service`] and gives it to [`Server::start`]; dropping the [`Server`] is the end.
//! - [`client`]: [`ask`](client::ask), one request over a connection.
//!
//! A connection carries one request. Its body has a `content-length`, chunks are refused, and it may bring
//! file descriptors (`SCM_RIGHTS`) in any of its messages. Everything is bounded: clients, a head's bytes and
//! headers, a body's bytes, descriptors, and the time that each part of a request may take. Nothing but a
//! poll waits, and the system calls of a connection are few: ppoll, accept4, recvmsg, sendto, shutdown,
//! eventfd2, write, close, and what threads take.
//!
//! What is served, who may ask and what is logged are the callers' affair: this crate knows no JSON and no
//! log.

#![forbid(unsafe_code)]

pub mod client;
mod method;
mod request;
mod response;
pub mod server;
mod socket;
mod status;
mod target;

pub use method::Method;
pub use request::{Body, HEAD_MAX, HEADERS_MAX, Head, RequestError};
pub use response::{JSON, Response, TEXT};
pub use server::{Server, Service, Settings};
pub use socket::DESCRIPTORS_MAX;
pub use status::StatusCode;
pub use target::Target;
