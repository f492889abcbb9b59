//! The measurements of `volt-bench`: the cost of a frame in any vhost-user-net back-end, beside the floor of
//! the same run.
//!
//! A [`case::Case`] describes the frames. A [`host::FarEnd`] belongs to the TAP behind the back-end, or to an
//! equal one for the [`floor`], whose bare loops make only the back-end's system calls. A [`card::Card`] is a
//! polling driver with its own memory on [`ring::PollRing`]s, faster than any back-end. [`run`] drives both
//! ways, [`latency`] sends single frames, [`continuity`] replaces the back-end meanwhile, [`migration`] moves
//! the card to another, [`filtered`] compares filters, [`peers`] ports to peers, [`xdp`] a TAP and AF_XDP.
//! [`suite`] repeats the measurements in interleaved rounds; [`report`] and [`plot`] show medians and spread.
//! [`guests`] boots real guests instead; [`scale`] runs many daemons at once.
//!
//! The CPU time is that of the back-end's process, read while it sleeps before and after a run, when the
//! kernel's account is exact. A round is therefore right to the nanosecond, even where threads share cores
//! and elapsed time means little.

pub mod card;
pub mod case;
pub mod continuity;
pub mod event;
pub mod filtered;
pub mod floor;
pub mod gap_report;
pub mod guests;
pub mod host;
pub mod latency;
pub mod migration;
pub mod peers;
pub mod plot;
pub mod process;
pub mod report;
pub mod ring;
pub mod run;
pub mod scale;
pub mod suite;
pub mod xdp;
pub mod xdp_loop;

use std::io;

use crate::session::SessionError;
use crate::wire::WireError;

/// The reason why a measurement has no result. A slow back-end is no reason.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The operating system refused.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The back-end's end of the connection failed.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The session of a scripted front-end failed.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// Frames that did not return, or another event that makes figures meaningless.
    #[error("{0}")]
    Wrong(String),
}

impl From<rustix::io::Errno> for BenchError {
    fn from(errno: rustix::io::Errno) -> BenchError {
        BenchError::Io(errno.into())
    }
}

/// Binds the calling thread to processor `cpu`.
pub fn pin(cpu: usize) -> io::Result<()> {
    let mut set = rustix::thread::CpuSet::new();
    set.set(cpu);
    Ok(rustix::thread::sched_setaffinity(None, &set)?)
}
