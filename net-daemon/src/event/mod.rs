//! Waiting and being woken: typed epoll, the eventfds of a ring, the worker thread of a queue pair.

pub mod notify;
pub mod poller;
pub(crate) mod relay;
pub mod worker;
