//! Scripted vhost-user peers and the lab.
//!
//! | module | content |
//! |---|---|
//! | [`wire`] | messages as bytes, a socket that can also send invalid ones |
//! | [`memory`] | guest memory in regions of any shape |
//! | [`ring`], [`nic`], [`frame`] | the driver's side: rings, queues with frames, frames that check themselves |
//! | [`frontend`], [`session`] | a front-end: each request as a method, and the usual script |
//! | [`backend`], [`device`] | a back-end that records its messages, and the device's side of a ring |
//! | [`peer`] | a second back-end, on the `vhost-user-backend` crate, to calibrate the tests with |
//! | [`front_peer`], [`echo_guest`] | front-ends to calibrate with; a guest that echoes frames |
//! | [`dirty_log`], [`migration`] | the log of written pages; an oracle that finds missing marks |
//! | [`succession`] | replacements of volt-netd under one front-end |
//! | [`bypass`] | ways past the filter, and a filtered guest to try them |
//! | [`nft`] | policies as rules of nftables |
//! | [`netns`], [`daemon`], [`rig`] | a network namespace with a TAP; volt-netd as a process; both together |
//! | [`scrape`] | a scraper's view of the metrics |
//! | [`silent_fs`], [`held`] | a file that blocks its users; a blocked frame thread |
//! | [`capture`], [`pcapng`] | `volt-netd ctl capture`, and a parser of its file |
//! | [`trace`] | a process traced at each system call |
//! | [`confinement`], [`calls`] | system calls that a program's threads may make, and those they do make |
//! | [`systemd`] | a real systemd, as the first process of separate namespaces |
//! | [`mod@bench`] | the measurements of the tool `volt-bench` |
//! | [`conform`] | the checks of the tool `volt-conform`, for any back-end |
//! | [`lab`] | real guests, here and in an emulated machine with KVM |
//!
//! The peers encode the wire themselves, from the specifications, and share no code with the programs they
//! test.

pub mod backend;
pub mod bench;
pub mod bypass;
pub mod calls;
pub mod capture;
pub mod confinement;
pub mod conform;
pub mod daemon;
pub mod device;
pub mod dirty_log;
pub mod echo_guest;
pub mod far_end;
pub mod frame;
pub mod front_peer;
pub mod frontend;
pub mod held;
pub mod lab;
pub mod memory;
pub mod migration;
pub mod netns;
pub mod nft;
pub mod nic;
pub mod pcapng;
pub mod peer;
pub mod rig;
pub mod ring;
pub mod scrape;
pub mod session;
pub mod silent_fs;
pub mod succession;
pub mod systemd;
pub mod trace;
pub mod wire;
