//! Descriptors named on the command line.
#![expect(unsafe_code, reason = "a number from the command line becomes an owned descriptor")]

use std::collections::BTreeSet;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Mutex;

use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};
use thiserror::Error;

/// Why a descriptor cannot be taken.
#[derive(Debug, Error)]
pub(crate) enum FdError {
    #[error("descriptor {0} is not open: the program that starts volt-netd must leave it open")]
    Closed(RawFd),
    #[error("descriptor {0} is given twice")]
    Twice(RawFd),
}

/// Numbers taken so far: each can have only one owner.
static TAKEN: Mutex<BTreeSet<RawFd>> = Mutex::new(BTreeSet::new());

/// Takes the descriptors with these numbers, and sets close-on-exec.
pub(crate) fn take(numbers: &[RawFd]) -> Result<Vec<OwnedFd>, FdError> {
    numbers.iter().map(|number| take_one(*number)).collect()
}

fn take_one(number: RawFd) -> Result<OwnedFd, FdError> {
    if number < 0 {
        return Err(FdError::Closed(number));
    }
    if !TAKEN.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).insert(number) {
        return Err(FdError::Twice(number));
    }
    // SAFETY: only borrowed, to check whether it is open.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    let flags = fcntl_getfd(borrowed).map_err(|_| FdError::Closed(number))?;
    fcntl_setfd(borrowed, flags | FdFlags::CLOEXEC).map_err(|_| FdError::Closed(number))?;
    // SAFETY: it is open, nothing else in this program has taken it (TAKEN), and the user passed it to this
    // process. This runs before the program opens descriptors, one of which could have the same number.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
