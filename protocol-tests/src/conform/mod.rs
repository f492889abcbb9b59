//! Conformance checks for any vhost-user-net back-end, as the tool `volt-conform` runs them.
//!
//! A [`Check`] is a short script of a front-end with a name, a promise, and the section of the specification
//! that makes it. [`catalogue`] has them all; each gets a fresh [`bench::Bench`] and answers `Ok` or a
//! [`Finding`]. A back-end that hangs or dies is a finding too: nothing here waits without a limit.

use crate::nic::NicError;
use crate::session::SessionError;
use crate::wire::WireError;

pub mod bench;
mod channels;
pub mod frontend;
mod hostile;
mod instance;
mod memory;
mod messages;
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

/// How long anything may take that should take microseconds.
pub const LIMIT: std::time::Duration = std::time::Duration::from_secs(2);

/// What of the back-end a check must reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// The socket alone.
    Control,
    /// Transmit chains that come back, wherever their frames go.
    Completion,
    /// The far side: frames can be seen to leave and made to arrive.
    Frames,
}

/// How binding a check's promise is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// A specification demands it: by a MUST, or by what it says a message, a format or a ring is, so that
    /// nothing else is left. What it only recommends (SHOULD), permits (MAY) or does not mention is no must.
    Must,
    /// A peer in use depends on it, a specification recommends it, or a hostile one must not win.
    Robust,
}

impl Needs {
    /// As `--list` shows it.
    pub fn text(self) -> &'static str {
        match self {
            Needs::Control => "control plane",
            Needs::Completion => "transmit completion",
            Needs::Frames => "far side",
        }
    }
}

impl Level {
    /// As `--list` shows it.
    pub fn text(self) -> &'static str {
        match self {
            Level::Must => "must",
            Level::Robust => "robust",
        }
    }
}

/// One promise of a back-end.
#[derive(Clone, Copy, Debug)]
pub struct Check {
    /// Group and name, with a slash between.
    pub name: &'static str,
    /// The promise.
    pub promise: &'static str,
    /// Where the specification makes it, or what depends on it.
    pub source: &'static str,
    /// How binding it is.
    pub level: Level,
    /// What it must reach.
    pub needs: Needs,
    /// The script.
    pub run: Script,
}

impl Check {
    /// The group in its name.
    pub fn group(&self) -> &'static str {
        self.name.split('/').next().unwrap_or_default()
    }
}

/// What plays the other side.
#[derive(Clone, Copy, Debug)]
pub enum Script {
    /// A front-end, for a back-end under test.
    Frontend(fn(&mut bench::Bench) -> Result<(), Finding>),
    /// A back-end, for a front-end under test.
    Backend(fn(&mut frontend::Stage) -> Result<(), Finding>),
}

/// Why a check did not pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// The back-end answered or did the wrong thing.
    Fail(String),
    /// The back-end does not offer what the check is about.
    NotOffered(String),
    /// The back-end closed the connection or fell silent where it should have answered.
    Broken(String),
    /// The process under test ended.
    Died {
        /// By which signal, or with which exit status.
        status: std::process::ExitStatus,
        /// Its last words, and what the check had found.
        why: String,
    },
    /// The check needs a far side and the caller named none.
    NoAccess(String),
}

impl Finding {
    /// The reason in words.
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

/// Ends a check with [`Finding::Fail`] unless the condition holds.
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

/// All checks, group by group.
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
        hostile::CHECKS,
    ];
    groups.into_iter().flatten().collect()
}
