//! Kicks for rings that never fill: the driver writes to memory that this process does not see.
//!
//! A virtual machine monitor that maps its guest's memory privately (QEMU's `share=off`) hands over a file
//! that the guest never writes to. Everything is in order but that no ring ever moves.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use log::warn;

use crate::vring::Vring;

/// More than QEMU's own, one for each of the pair's rings when it starts.
const ENOUGH: u32 = 3;
/// A ring has moved, or it was said that none does.
const OVER: u32 = u32::MAX;

/// What is known of the rings of a pair, from one start to the next. Looked at with a kick, until a ring has
/// moved.
#[derive(Debug, Default)]
pub struct UnsharedCheck(AtomicU32);

impl UnsharedCheck {
    /// A kick came for one of `vrings`, which run together.
    #[inline]
    pub fn kicked<'a>(&self, vrings: impl Iterator<Item = &'a Vring>) {
        if self.0.load(Relaxed) != OVER {
            self.look(vrings);
        }
    }

    #[cold]
    fn look<'a>(&self, mut vrings: impl Iterator<Item = &'a Vring>) {
        if vrings.any(|vring| vring.ring.has_moved()) {
            self.0.store(OVER, Relaxed);
        } else if self.0.fetch_add(1, Relaxed) + 1 == ENOUGH {
            self.0.store(OVER, Relaxed);
            warn!(
                event = "memory_not_shared";
                "the driver kicks, and nothing comes into its rings: the guest's memory is not shared with \
                 this daemon; with QEMU, use a memory backend with share=on (with Cloud Hypervisor, --memory \
                 shared=on)"
            );
        }
    }
}
