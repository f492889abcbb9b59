//! Reopening of an interface that was deleted, also by a privileged process for an unprivileged one.

use std::io;
use std::os::fd::OwnedFd;

use crate::port::macvtap::Macvtap;
use crate::port::state::Reopening;
use crate::port::tap::Tap;

/// Opens the interface. Creates it if this program created it before. The queues are for
/// [`Port::adopt`](crate::port::Port::adopt).
///
/// # Errors
///
/// Fails while it cannot be opened.
pub fn open_again(what: &Reopening) -> io::Result<Vec<OwnedFd>> {
    match what {
        Reopening::Tap { options, existed } => Tap::open_again(options, *existed),
        Reopening::Macvtap { name, queues } => Macvtap::open_again(name, *queues),
    }
}
