//! Scripted vhost-user peers and the lab.
//!
//! | module | what it is |
//! |---|---|
//! | [`wire`] | messages as bytes, a socket that can also send them wrongly |
//! | [`memory`] | guest memory in regions of any shape |
//! | [`ring`], [`nic`], [`frame`] | the driver's side: rings, queues with frames, frames that check themselves |
//! | [`frontend`], [`session`] | a front-end: each request as a method, and the usual script |
//! | [`backend`], [`device`] | a back-end that records what it is told, and the device's side of a ring |
//! | [`peer`] | a second back-end, on the `vhost-user-backend` crate, to calibrate the tests with |
//! | [`front_peer`], [`echo_guest`] | front-ends to calibrate with, also broken ones; a guest that echoes frames |
//! | [`succession`] | one volt-netd after the other under one front-end |
//! | [`netns`], [`daemon`], [`rig`] | a network namespace with a TAP; volt-netd as a process; both together |
//! | [`scrape`] | metrics, as a scraper reads them |
//! | [`silent_fs`], [`held`] | a file that holds whoever touches it; a frame thread that is held |
//! | [`capture`], [`pcapng`] | `volt-netd ctl capture`, and what its file says |
//! | [`trace`] | a process that is stopped at each system call |
//! | [`confinement`], [`calls`] | what the threads of a program may call, and which of that they do |
//! | [`systemd`] | a real systemd, as the first process of namespaces of its own |
//! | [`mod@bench`] | the measurements of the tool `volt-bench` |
//! | [`conform`] | the checks of the tool `volt-conform`, for any back-end |
//! | [`lab`] | real guests, here and in an emulated machine with KVM |
//!
//! The peers encode the wire themselves, by the specifications, and share no code with the programs they
//! test.

pub mod backend;
pub mod bench;
pub mod calls;
pub mod capture;
pub mod confinement;
pub mod conform;
pub mod daemon;
pub mod device;
pub mod echo_guest;
pub mod frame;
pub mod front_peer;
pub mod frontend;
pub mod held;
pub mod lab;
pub mod memory;
pub mod netns;
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
