//! A frame thread that a descriptor holds.

use std::os::fd::OwnedFd;

use rustix::event::{EventfdFlags, eventfd};

use crate::frame::numbered;
use crate::session::Session;
use crate::wire::request;

/// A call descriptor that holds whoever notifies by it: a counter that is full, and made blocking again
/// behind the daemon's back.
#[derive(Debug)]
pub struct Held(OwnedFd);

impl Held {
    /// Holds the thread of the first pair, which notifies of the frame with this number. That frame has gone
    /// out by then.
    ///
    /// # Panics
    /// When the daemon does not take the descriptor.
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

    /// Lets the thread go.
    ///
    /// # Panics
    /// When nothing holds it.
    pub fn release(self) {
        rustix::io::read(&self.0, &mut [0; 8]).expect("emptied");
    }
}
