//! An interface that was deleted is opened again, also by a process that may do so for one that may not.

use std::io;
use std::os::fd::OwnedFd;

use crate::port::macvtap::Macvtap;
use crate::port::state::Reopening;
use crate::port::tap::Tap;

/// Opens the interface, and creates it where it was this program's. Its queues are for
/// [`Port::adopt`](crate::port::Port::adopt).
///
/// # Errors
///
/// While it cannot be opened.
pub fn open_again(what: &Reopening) -> io::Result<Vec<OwnedFd>> {
    match what {
        Reopening::Tap { options, existed } => Tap::open_again(options, *existed),
        Reopening::Macvtap { name, queues } => Macvtap::open_again(name, *queues),
    }
}
