//! Enforcement of tables: no new privileges, Landlock, no capabilities, filters of system calls.
//!
//! Everything applies to a thread and to the threads and processes that it creates, and cannot be undone.

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

/// The newest Landlock version in use. Features that the kernel lacks are left out.
const LANDLOCK: ABI = ABI::V7;

/// Why a thread cannot be confined. The thread must not continue then.
#[derive(Debug, Error)]
pub enum SandboxError {
    /// The kernel refuses a filter.
    #[error("the kernel refuses a filter of system calls: it has no seccomp, or another sandbox forbids it")]
    Seccomp(#[from] seccompiler::Error),
    /// The kernel has Landlock, but refuses the rules.
    #[error("the kernel refuses Landlock's rules")]
    Landlock(#[from] RulesetError),
    /// The log's thread, which exists already, does not react.
    #[error(
        "the log's thread cannot be confined, because nobody reads standard error: read it, or redirect it \
         to a file"
    )]
    Log,
    /// Another error.
    #[error("{0} failed")]
    System(&'static str, #[source] io::Error),
    /// A role that is not in the program's table.
    #[error("there is no role '{0}'")]
    NoRole(&'static str),
}

/// The rights that a process keeps.
#[derive(Clone, Copy, Debug)]
pub struct Keep {
    /// Whether it keeps files by path, TCP ports, and abstract sockets outside the sandbox.
    pub outside: bool,
    /// Capabilities to keep, as far as the process has them.
    pub capabilities: CapabilitySet,
    /// User and group to switch to, if any.
    pub user: Option<(u32, u32)>,
}

impl Keep {
    /// Keeps nothing, for a process that maps guest memory.
    pub const NOTHING: Keep = Keep { outside: false, capabilities: CapabilitySet::empty(), user: None };
}

/// The kernel's support for Landlock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Landlock {
    /// The kernel supports everything in use.
    Whole,
    /// The kernel has an older version.
    Partly,
    /// Landlock is missing or disabled.
    Missing,
}

/// The roles of a program with their filters. All filters of a role apply together.
/// [`compile`](crate::compile::write) writes the value.
#[derive(Debug)]
pub struct Sandbox(pub &'static [(&'static str, &'static [Filter])]);

impl Sandbox {
    /// Confines this thread, and threads that it creates later, to `role`. Keeps the rights in `keep`.
    ///
    /// # Errors
    ///
    /// See [`SandboxError`].
    pub fn confine(&self, role: &'static Role, keep: Keep) -> Result<Landlock, SandboxError> {
        violation::handle().map_err(|error| SandboxError::System("handling violations", error))?;
        let failed = |what| move |errno: rustix::io::Errno| SandboxError::System(what, errno.into());
        set_no_new_privs(true).map_err(failed("giving up new privileges"))?;
        let landlock = if keep.outside { Landlock::Whole } else { restrict_paths()? };
        // Before the switch to another user, who may not do this.
        for capability in CapabilitySet::all().difference(keep.capabilities).iter() {
            // Fails without CAP_SETPCAP, which is harmless: the set matters for execve only, and no list has
            // that call.
            let _ = remove_capability_from_bounding_set(capability);
        }
        if let Some((user, group)) = keep.user {
            become_user(user, group).map_err(failed("changing the user"))?;
        }
        drop_capabilities(keep.capabilities).map_err(failed("dropping capabilities"))?;
        self.enter(role)?;
        Ok(landlock)
    }

    /// Adds the list of `role` to a thread that a confined thread has created.
    ///
    /// # Errors
    ///
    /// See [`SandboxError`].
    pub fn enter(&self, role: &'static Role) -> Result<(), SandboxError> {
        let found = self.0.iter().find(|(name, _)| *name == role.name);
        let (name, filters) = found.ok_or(SandboxError::NoRole(role.name))?;
        violation::this_thread_is(name);
        // Apply the filter that ends the process last: it may forbid calls needed to apply the others.
        filters.iter().rev().try_for_each(Filter::apply)?;
        Ok(())
    }
}

/// Forbids opening, creating and removing files by path, TCP ports, and abstract sockets outside the sandbox.
/// Signals are left to the filters, because some kernels refuse them between threads that were restricted one
/// by one.
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

/// Switches this thread to another user. Restores the parent-death signal, which the kernel clears.
fn become_user(user: u32, group: u32) -> rustix::io::Result<()> {
    let (user, group) = (Uid::from_raw(user), Gid::from_raw(group));
    // The child of a process that has switched already.
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

/// Drops all capabilities except `keep`, for good.
fn drop_capabilities(keep: CapabilitySet) -> rustix::io::Result<()> {
    // An old kernel has no ambient set.
    let _ = clear_ambient_capability_set();
    let kept = keep.intersection(capabilities(None)?.permitted);
    let inheritable = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: kept, permitted: kept, inheritable })
}
