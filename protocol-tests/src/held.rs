//! A frame thread blocked by a descriptor.

use std::os::fd::OwnedFd;

use rustix::event::{EventfdFlags, eventfd};

use crate::frame::numbered;
use crate::session::Session;
use crate::wire::request;

/// A call descriptor that blocks a thread that signals it: a full counter, made blocking again without the
/// daemon's knowledge.
#[derive(Debug)]
pub struct Held(OwnedFd);

impl Held {
    /// Blocks the thread of the first pair when it signals the frame with this number. The frame itself has
    /// already left.
    ///
    /// # Panics
    /// If the daemon does not accept the descriptor.
    pub fn new(session: &mut Session, number: u32) -> Held {
        let full = eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd");
        rustix::io::write(&full, &(u64::MAX - 1).to_ne_bytes()).expect("full");
        session.frontend.set_vring_fd(request::SET_VRING_CALL, 1, Some(&full)).expect("taken");
        session.frontend.sync().expect("served");
        rustix::io::ioctl_fionbio(&full, false).expect("blocking");
        session.tx(0).offer(&Default::default(), &numbered(number, 90), &[]).expect("room");
        session.tx(0).kick_always().expect("kicked");
        Held(full)
    }

    /// Releases the thread.
    ///
    /// # Panics
    /// If no thread is blocked.
    pub fn release(self) {
        rustix::io::read(&self.0, &mut [0; 8]).expect("emptied");
    }
}
