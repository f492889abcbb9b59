//! The bypass book: ways to get a frame past the filter of volt-netd, each tried, and judged at the far side.
//!
//! | module | content |
//! |---|---|
//! | [`packet`] | IP packets with any headers, in Ethernet frames |
//! | [`transport`] | TCP, UDP and ICMP |
//! | [`link`] | ARP, neighbour discovery, DHCP |
//! | [`hosts`] | the addresses of the tests, in both families |
//! | [`book`] | a filtered guest between its wire and its memory |
//! | [`hostile`] | traffic of refused and allowed frames while the daemon is replaced |
//! | [`forged`] | frames for the guest of `tests/qemu_filter.rs`, which sends them itself |
//! | [`page`] | the lines of the page `docs/reference/bypass-book.md` |
//!
//! Frames are encoded here from the RFCs, by no code that the filter uses.

pub mod book;
pub mod forged;
pub mod hostile;
pub mod hosts;
pub mod link;
pub mod packet;
pub mod page;
pub mod transport;
