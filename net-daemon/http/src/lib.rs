//! A small HTTP/1 server and client for Unix and TCP sockets, for the control of volt-netd and volt-vmm at
//! run time.
//!
//! - [`server`]: a thread that accepts clients and a thread for each client, no async runtime. A program
//!   implements [`Service`] and passes it to [`Server::start`]. Dropping the [`Server`] ends it.
//! - [`client`]: [`ask`](client::ask) sends one request over a connection.
//!
//! A connection carries one request. Its body has a `content-length`; chunked bodies are refused. It may
//! bring file descriptors (`SCM_RIGHTS`) in any of its messages. Everything is bounded: clients, the size of
//! a head, the number of its headers, the size of a body, descriptors, and the time for each part of a
//! request. Only polls block, and a connection uses few system calls: ppoll, accept4, recvmsg, sendto,
//! shutdown, eventfd2, write, close, and those of threads.
//!
//! Callers decide about routes, permissions and logs: this crate contains no JSON and no logging.

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
