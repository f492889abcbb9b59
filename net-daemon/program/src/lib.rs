//! The common parts of the programs volt-netd and volt-vmm, which the libraries below them do not use: the
//! [log](logging), [metrics], [standard output](output), [tables](display), [`--watch`](mod@watch), [sockets
//! with a path](unix), [users](accounts), [signals], the [opener], the [check] of a host, and
//! returning [memory] to the system.

pub mod accounts;
pub mod check;
pub mod display;
pub mod logging;
pub mod memory;
pub mod metrics;
pub mod opener;
pub mod output;
mod peer;
pub mod signals;
pub mod unix;
pub mod watch;
