//! The flow table: what was allowed already, and the neighbours that the guest was shown.
//!
//! | module | contents |
//! |---|---|
//! | [`table`] | the entries, in memory that outlives the process |
//! | [`key`] | what tells flows apart |
//! | [`entry`] | one flow |
//! | [`tcp`] | the state of a TCP connection |
//!
//! Any queue may carry any frame of a flow, and answers may come on another, so all threads share one table.
//! A frame of a known flow takes no lock. Only the insertion of a flow takes the lock of its shard.

pub mod entry;
pub mod key;
pub mod table;
pub mod tcp;
