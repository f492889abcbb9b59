//! Support of this host and its kernel for interfaces, determined without touching an interface in use. For
//! programs that check a host.
#![expect(unsafe_code, reason = "a private namespace")]

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

/// The result for an existing TAP interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interface {
    /// This process may use one queue pair, if no other process uses the interface.
    One,
    /// This process may use several queue pairs.
    Several,
    /// Unknown: `/sys` shows another network namespace.
    Elsewhere,
}

/// Returns whether this process may use TAP interface `name`, as far as is known without opening it.
///
/// # Errors
///
/// Returns the reason why it may not.
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
    // -1 is no owner: the kernel lets everybody open it.
    let owner = said("owner").and_then(|owner| owner.parse::<u32>().ok());
    if owner.is_some_and(|owner| owner != geteuid().as_raw()) && !may_create() {
        return Err(TapError::Permission(name.to_owned()));
    }
    Ok(if flags & libc::IFF_MULTI_QUEUE == 0 { Interface::One } else { Interface::Several })
}

/// Returns the features that a TAP interface of this kernel adds to those of every port. Creates an interface
/// to find out, in a private network namespace. The process stays in that namespace.
///
/// # Errors
///
/// Fails if the namespace or the interface cannot be created.
pub fn features() -> Result<Features, TapError> {
    let apart =
        |source| TapError::System { name: "network namespace".to_owned(), doing: "creating one", source };
    // SAFETY: plain flags. If the process has other threads, the first call fails.
    let made = [libc::CLONE_NEWUSER | libc::CLONE_NEWNET, libc::CLONE_NEWNET]
        .into_iter()
        .any(|flags| unsafe { libc::unshare(flags) } == 0);
    if !made {
        return Err(apart(io::Error::last_os_error()));
    }
    let options = TapOptions { name: "probe".to_owned(), queues: 1, persist: false, mtu: None, owner: None };
    Ok(Tap::open(options)?.extra_features())
}
