//! The conformance checks of `volt-conform`, for any vhost-user-net back-end.
//!
//! A [`Check`] is a short script of a front-end with a name, a promise, and the promise's section in the
//! specification. [`catalogue`] returns all checks. Each gets a fresh [`bench::Bench`] and returns `Ok` or a
//! [`Finding`]. A back-end that hangs or dies is a finding too: every wait has a limit.

use crate::nic::NicError;
use crate::session::SessionError;
use crate::wire::WireError;

pub mod bench;
mod channels;
pub mod frontend;
mod hostile;
mod instance;
mod logged;
mod marks;
mod memory;
mod messages;
mod migration;
mod offloads;
mod orders;
mod queues;
pub mod random;
pub mod report;
mod rings;
pub mod run;
pub mod sections;
mod states;
pub mod target;

/// Time limit for an operation that should take microseconds.
pub const LIMIT: std::time::Duration = std::time::Duration::from_secs(2);

/// The parts of the back-end that a check must reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Only the socket.
    Control,
    /// Transmit chains that are returned, wherever their frames go.
    Completion,
    /// The far side: the check sees leaving frames and makes frames arrive.
    Frames,
}

/// Strictness of a promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// A specification demands it, by a MUST or by its definition of a message, format or ring.
    /// Recommendations (SHOULD), options (MAY) and omissions are not `Must`.
    Must,
    /// A peer in use depends on it, a specification recommends it, or it protects from a hostile peer.
    Robust,
}

impl Needs {
    /// Returns the level as `--list` shows it.
    pub fn text(self) -> &'static str {
        match self {
            Needs::Control => "control plane",
            Needs::Completion => "transmit completion",
            Needs::Frames => "far side",
        }
    }
}

impl Level {
    /// Returns the need as `--list` shows it.
    pub fn text(self) -> &'static str {
        match self {
            Level::Must => "must",
            Level::Robust => "robust",
        }
    }
}

/// A single promise of a back-end.
#[derive(Clone, Copy, Debug)]
pub struct Check {
    /// Group and name, separated by a slash.
    pub name: &'static str,
    /// The promise.
    pub promise: &'static str,
    /// The promise's section in the specification, or the software that depends on it.
    pub source: &'static str,
    /// How strict the promise is.
    pub level: Level,
    /// The parts of the back-end that the check must reach.
    pub needs: Needs,
    /// The script.
    pub run: Script,
}

impl Check {
    /// Returns the group part of the name.
    pub fn group(&self) -> &'static str {
        self.name.split('/').next().unwrap_or_default()
    }
}

/// The peer that the script plays.
#[derive(Clone, Copy, Debug)]
pub enum Script {
    /// A front-end, for a back-end under test.
    Frontend(fn(&mut bench::Bench) -> Result<(), Finding>),
    /// A back-end, for a front-end under test.
    Backend(fn(&mut frontend::Stage) -> Result<(), Finding>),
}

/// The reason why a check did not pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// The back-end gave a wrong answer or behaved wrongly.
    Fail(String),
    /// The back-end does not offer the tested feature.
    NotOffered(String),
    /// The back-end closed the connection or sent no answer.
    Broken(String),
    /// The process under test ended.
    Died {
        /// The signal or exit status.
        status: std::process::ExitStatus,
        /// Its last output, and the check's finding.
        why: String,
    },
    /// The check needs a far side, and the caller named none.
    NoAccess(String),
}

impl Finding {
    /// Returns the reason as text.
    pub fn reason(&self) -> String {
        match self {
            Finding::Fail(why) | Finding::NotOffered(why) | Finding::Broken(why) | Finding::NoAccess(why) => {
                why.clone()
            }
            Finding::Died { status, why } => format!("ended with {status}: {why}"),
        }
    }
}

impl From<WireError> for Finding {
    fn from(error: WireError) -> Finding {
        match error {
            WireError::Closed(_) | WireError::Timeout(..) | WireError::Io(_) => {
                Finding::Broken(error.to_string())
            }
            WireError::Unexpected(_) | WireError::Refused { .. } => Finding::Fail(error.to_string()),
        }
    }
}

impl From<NicError> for Finding {
    fn from(error: NicError) -> Finding {
        Finding::Fail(error.to_string())
    }
}

impl From<SessionError> for Finding {
    fn from(error: SessionError) -> Finding {
        match error {
            SessionError::Wire(error) => error.into(),
            SessionError::Nic(error) => error.into(),
        }
    }
}

impl From<std::io::Error> for Finding {
    fn from(error: std::io::Error) -> Finding {
        Finding::Broken(error.to_string())
    }
}

/// Returns [`Finding::Fail`] unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($text:tt)+) => {
        if !$condition {
            return Err($crate::conform::Finding::Fail(format!($($text)+)));
        }
    };
}
/// Declares the checks of a group: name, level, needs, source, promise, script.
macro_rules! checks {
    ($($name:literal, $level:ident, $needs:ident, $source:literal, $promise:literal, $run:expr;)*) => {
        pub(super) const CHECKS: &[$crate::conform::Check] = &[$($crate::conform::Check {
            name: $name,
            promise: $promise,
            source: $source,
            level: $crate::conform::Level::$level,
            needs: $crate::conform::Needs::$needs,
            run: $crate::conform::Script::Frontend($run),
        }),*];
    };
}
use {checks, ensure};

/// Returns all checks, group by group.
pub fn catalogue() -> Vec<&'static Check> {
    let groups = [
        messages::CHECKS,
        channels::CHECKS,
        memory::CHECKS,
        states::CHECKS,
        orders::CHECKS,
        rings::CHECKS,
        offloads::CHECKS,
        queues::CHECKS,
        migration::CHECKS,
        marks::CHECKS,
        hostile::CHECKS,
    ];
    groups.into_iter().flatten().collect()
}
