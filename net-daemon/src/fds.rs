//! Descriptors that the command line names.
#![expect(unsafe_code, reason = "a number from the command line becomes an owned descriptor")]

use std::collections::BTreeSet;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Mutex;

use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};
use thiserror::Error;

/// Why a number is no descriptor to take.
#[derive(Debug, Error)]
pub(crate) enum FdError {
    #[error("descriptor {0} is not open: the program that starts volt-netd has to leave it open")]
    Closed(RawFd),
    #[error("descriptor {0} is given twice")]
    Twice(RawFd),
}

/// Numbers taken so far: each can have one owner only.
static TAKEN: Mutex<BTreeSet<RawFd>> = Mutex::new(BTreeSet::new());

/// Takes the descriptors with these numbers, and keeps them from programs that this one might start.
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
    // SAFETY: only borrowed to be asked whether it is open.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    let flags = fcntl_getfd(borrowed).map_err(|_| FdError::Closed(number))?;
    fcntl_setfd(borrowed, flags | FdFlags::CLOEXEC).map_err(|_| FdError::Closed(number))?;
    // SAFETY: it is open, nobody else in this program has taken it (TAKEN), and the user who named it gave it
    // to us. Called before this program opens any descriptor that the user could name by chance.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
