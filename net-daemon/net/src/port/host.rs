//! What this host and its kernel give for interfaces, found out without touching one that is in use. Called
//! by programs that are asked to check it.
#![expect(unsafe_code, reason = "a namespace of this process's own")]

use std::fs;
use std::io;

use rustix::process::geteuid;
use rustix::thread::{CapabilitySet, capabilities};
use volt_virtio::features::Features;

use crate::port::tap::{self, Tap, TapError, TapOptions};
use crate::port::{Port, link};

/// Whether the TAP driver can be opened.
///
/// # Errors
///
/// See [`TapError::Driver`].
pub fn driver() -> Result<(), TapError> {
    tap::driver().map(drop)
}

/// Whether this process may create interfaces.
pub fn may_create() -> bool {
    capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::NET_ADMIN))
}

/// What is known of a TAP interface that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interface {
    /// This process may use one queue pair of it, if nobody else has it.
    One,
    /// This process may use several.
    Several,
    /// Nothing: `/sys` shows those of another network namespace.
    Elsewhere,
}

/// Whether this process may use TAP interface `name`, as far as that can be known without opening it.
///
/// # Errors
///
/// Why not.
pub fn interface(name: &str) -> Result<Interface, TapError> {
    tap::check_name(name)?;
    let index = link::index(name).map_err(|_| TapError::Missing(name.to_owned()))?;
    let said = |file: &str| {
        let text = fs::read_to_string(format!("/sys/class/net/{name}/{file}")).ok()?;
        Some(text.trim().to_owned())
    };
    if said("ifindex") != Some(index.to_string()) {
        return Ok(Interface::Elsewhere);
    }
    let flags = said("tun_flags");
    let flags = flags.and_then(|flags| i32::from_str_radix(flags.trim_start_matches("0x"), 16).ok());
    let flags = flags.filter(|flags| flags & libc::IFF_TAP != 0).ok_or(TapError::NotTap(name.to_owned()))?;
    // -1 is nobody, which the kernel takes for everybody.
    let owner = said("owner").and_then(|owner| owner.parse::<u32>().ok());
    if owner.is_some_and(|owner| owner != geteuid().as_raw()) && !may_create() {
        return Err(TapError::Permission(name.to_owned()));
    }
    Ok(if flags & libc::IFF_MULTI_QUEUE == 0 { Interface::One } else { Interface::Several })
}

/// The features that a TAP interface of this kernel adds to those that every port has. It is found by one
/// that is made for the purpose in a network namespace of this process's own, in which the process stays.
///
/// # Errors
///
/// When there can be no such namespace, or no interface in it.
pub fn features() -> Result<Features, TapError> {
    let apart = |source| TapError::System {
        name: "a network namespace of its own".to_owned(),
        doing: "making it",
        source,
    };
    // SAFETY: plain flags. Where the process has other threads, the first one fails.
    let made = [libc::CLONE_NEWUSER | libc::CLONE_NEWNET, libc::CLONE_NEWNET]
        .into_iter()
        .any(|flags| unsafe { libc::unshare(flags) } == 0);
    if !made {
        return Err(apart(io::Error::last_os_error()));
    }
    let options = TapOptions { name: "probe".to_owned(), queues: 1, persist: false, mtu: None, owner: None };
    Ok(Tap::open(options)?.extra_features())
}
