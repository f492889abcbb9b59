//! Reopening of an interface that was deleted, and connecting to a peer again, also by a privileged process
//! for an unprivileged one.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use crate::port::macvtap::Macvtap;
use crate::port::peer::connect;
use crate::port::state::Reopening;
use crate::port::tap::Tap;
use crate::port::xdp::{XdpFds, open_fds};

/// Opens the interface. Creates it if this program created it before. The queues are for
/// [`Port::adopt`](crate::port::Port::adopt). `given` is the port's descriptor, which is connected if it is a
/// datagram socket; then there are no queues.
///
/// # Errors
///
/// Fails while it cannot be opened.
pub fn open_again(what: &Reopening, given: Option<BorrowedFd<'_>>) -> io::Result<Vec<OwnedFd>> {
    match what {
        Reopening::Tap { options, existed } => Tap::open_again(options, *existed),
        Reopening::Macvtap { name, queues } => Macvtap::open_again(name, *queues),
        Reopening::Xdp(options) => open_fds(options).map(XdpFds::into_vec).map_err(io::Error::other),
        Reopening::Stream { path } => Ok(vec![connect::stream(path)?]),
        Reopening::Datagram { path, vfkit } => {
            connect::datagram(&given.ok_or(io::ErrorKind::InvalidInput)?, path, *vfkit)?;
            Ok(Vec::new())
        }
    }
}
