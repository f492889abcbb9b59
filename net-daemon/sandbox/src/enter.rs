//! Tables are put in force: no new privileges, Landlock, no capabilities, the filters of system calls.
//!
//! All of it holds for a thread and for what that makes, and none of it can be taken back.

use std::io;

use landlock::{ABI, Access, AccessFs, AccessNet, Ruleset, RulesetAttr, RulesetError, RulesetStatus, Scope};
use rustix::process::{Gid, Uid, geteuid, parent_process_death_signal, set_parent_process_death_signal};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs, set_thread_groups,
    set_thread_res_gid, set_thread_res_uid,
};
use thiserror::Error;

use crate::filter::Filter;
use crate::role::Role;
use crate::violation;

/// The newest Landlock that is asked for. What a kernel has not of it is left out.
const LANDLOCK: ABI = ABI::V7;

/// Why a thread is not confined. It must not go on then.
#[derive(Debug, Error)]
pub enum SandboxError {
    /// The kernel takes no filter.
    #[error(
        "the kernel takes no filter of system calls: it is without seccomp, or another sandbox forbids it"
    )]
    Seccomp(#[from] seccompiler::Error),
    /// The kernel has Landlock, and does not take its rules.
    #[error("the kernel does not take Landlock's rules")]
    Landlock(#[from] RulesetError),
    /// The log's thread, which was there before.
    #[error(
        "the log's thread cannot be confined, as nobody reads standard error: read it, or send it to a file"
    )]
    Log,
    /// Anything else.
    #[error("{0} failed")]
    System(&'static str, #[source] io::Error),
    /// A role that is not in the program's table.
    #[error("there is no role '{0}'")]
    NoRole(&'static str),
}

/// What a process keeps of what it could do.
#[derive(Clone, Copy, Debug)]
pub struct Keep {
    /// Files by their path, TCP ports, and what is outside of the sandbox.
    pub outside: bool,
    /// Capabilities, as far as it has them.
    pub capabilities: CapabilitySet,
    /// The user and the group that it is from here on, if it is to be others.
    pub user: Option<(u32, u32)>,
}

impl Keep {
    /// For a process that maps a guest's memory.
    pub const NOTHING: Keep = Keep { outside: false, capabilities: CapabilitySet::empty(), user: None };
}

/// How much of Landlock this kernel has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Landlock {
    /// All that is asked for.
    Whole,
    /// An older version.
    Partly,
    /// Nothing, or it is switched off.
    Missing,
}

/// The roles of a program with their filters, all of which are to be in force.
/// [`compile`](crate::compile::write) writes it.
#[derive(Debug)]
pub struct Sandbox(pub &'static [(&'static str, &'static [Filter])]);

impl Sandbox {
    /// Confines this thread, and those that it makes from here on, to `role`, and leaves it what is to
    /// `keep`.
    ///
    /// # Errors
    ///
    /// See [`SandboxError`].
    pub fn confine(&self, role: &'static Role, keep: Keep) -> Result<Landlock, SandboxError> {
        violation::handle().map_err(|error| SandboxError::System("handling violations", error))?;
        let failed = |what| move |errno: rustix::io::Errno| SandboxError::System(what, errno.into());
        set_no_new_privs(true).map_err(failed("giving up new privileges"))?;
        let landlock = if keep.outside { Landlock::Whole } else { restrict_paths()? };
        // While it may: another user may not.
        for capability in CapabilitySet::all().difference(keep.capabilities).iter() {
            // Refused to who lacks CAP_SETPCAP, whose set does not matter: nothing is executed any more.
            let _ = remove_capability_from_bounding_set(capability);
        }
        if let Some((user, group)) = keep.user {
            become_user(user, group).map_err(failed("changing the user"))?;
        }
        drop_capabilities(keep.capabilities).map_err(failed("dropping capabilities"))?;
        self.enter(role)?;
        Ok(landlock)
    }

    /// The same for a thread whose maker is confined: its own list in addition.
    ///
    /// # Errors
    ///
    /// See [`SandboxError`].
    pub fn enter(&self, role: &'static Role) -> Result<(), SandboxError> {
        let found = self.0.iter().find(|(name, _)| *name == role.name);
        let (name, filters) = found.ok_or(SandboxError::NoRole(role.name))?;
        violation::this_thread_is(name);
        // What ends the process last: until then nothing may be missing for the others.
        filters.iter().rev().try_for_each(Filter::apply)?;
        Ok(())
    }
}

/// No file may be opened, made or removed by its path, no TCP port be used, no abstract socket be reached.
/// Signals are the filters': some kernels refuse them between threads that were restricted one by one.
fn restrict_paths() -> Result<Landlock, RulesetError> {
    let rules = Ruleset::default()
        .handle_access(AccessFs::from_all(LANDLOCK))?
        .handle_access(AccessNet::from_all(LANDLOCK))?
        .scope(Scope::AbstractUnixSocket)?
        .create()?;
    Ok(match rules.restrict_self()?.ruleset {
        RulesetStatus::FullyEnforced => Landlock::Whole,
        RulesetStatus::PartiallyEnforced => Landlock::Partly,
        RulesetStatus::NotEnforced => Landlock::Missing,
    })
}

/// This thread is another user's. Whatever was to end it with its parent still does: the kernel forgets that.
fn become_user(user: u32, group: u32) -> rustix::io::Result<()> {
    let (user, group) = (Uid::from_raw(user), Gid::from_raw(group));
    // As the child of one that is.
    if geteuid() == user {
        return Ok(());
    }
    let with_parent = parent_process_death_signal()?;
    set_thread_groups(&[group])?;
    set_thread_res_gid(group, group, group)?;
    set_thread_res_uid(user, user, user)?;
    if with_parent.is_some() {
        set_parent_process_death_signal(with_parent)?;
    }
    Ok(())
}

/// No others are left, and none can come back.
fn drop_capabilities(keep: CapabilitySet) -> rustix::io::Result<()> {
    // An old kernel has none.
    let _ = clear_ambient_capability_set();
    let kept = keep.intersection(capabilities(None)?.permitted);
    let inheritable = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: kept, permitted: kept, inheritable })
}
