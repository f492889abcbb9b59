//! What `volt-bench` measures: the cost of a frame in any vhost-user-net back-end, beside the floor of the
//! same run.
//!
//! A [`case::Case`] says what is sent. A [`host::FarEnd`] is that of the TAP behind the back-end, or of an
//! equal one for the [`floor`], whose bare loops make the calls that the back-end makes and nothing else. A
//! [`card::Card`] is a polling driver with memory of its own on [`ring::PollRing`]s, faster than any
//! back-end; [`run`] drives both ways, [`latency`] sends one frame at a time, [`continuity`] replaces the
//! back-end under it. [`suite`] repeats all of it in interleaved rounds, [`report`] and [`plot`] show medians
//! and spread. [`guests`] boots real guests instead; [`scale`] runs many daemons at once.
//!
//! The processor time is that of the back-end's process, taken while it sleeps before and after a run, when
//! the kernel's account of it is exact. So a round is right to the nanosecond where threads share cores and
//! elapsed time means little.

pub mod card;
pub mod case;
pub mod continuity;
pub mod event;
pub mod floor;
pub mod gap_report;
pub mod guests;
pub mod host;
pub mod latency;
pub mod plot;
pub mod process;
pub mod report;
pub mod ring;
pub mod run;
pub mod scale;
pub mod suite;

use std::io;

use crate::wire::WireError;

/// Why a measurement has no result. A slow back-end is none of the reasons.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The operating system refused.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The back-end's side of the connection.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// Frames that did not come back, or anything else that makes figures meaningless.
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
