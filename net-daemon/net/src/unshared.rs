//! Detection of guest memory that is not shared: kicks arrive, but the rings never fill.
//!
//! A virtual machine monitor that maps its guest's memory privately (QEMU's `share=off`) hands over a file
//! that the guest never writes to. Everything else works, but no ring ever moves.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use log::warn;

use crate::vring::Vring;

/// The remedy, for messages of memory that is not shared.
pub const SHARE_MEMORY: &str = "with QEMU, use a memory backend with share=on (-object \
    memory-backend-memfd,id=mem,size=SIZE,share=on -numa node,memdev=mem); with Cloud Hypervisor, --memory \
    shared=on";

/// More than the kicks that QEMU itself sends: one for each of the pair's rings at its start.
const ENOUGH: u32 = 3;
/// A ring has moved.
const OVER: u32 = u32::MAX;
/// No ring has moved, and the warning was logged.
const UNSHARED: u32 = u32::MAX - 1;

/// The number of kicks of a pair since its start. Checked at each kick until a ring has moved.
#[derive(Debug, Default)]
pub struct UnsharedCheck(AtomicU32);

impl UnsharedCheck {
    /// Notes a kick for one of `vrings`, which run together.
    #[inline]
    pub fn kicked<'a>(&self, vrings: impl Iterator<Item = &'a Vring>) {
        if self.0.load(Relaxed) != OVER {
            self.look(vrings);
        }
    }

    /// Whether the guest's memory seems not to be shared.
    pub fn is_unshared(&self) -> bool {
        self.0.load(Relaxed) == UNSHARED
    }

    #[cold]
    fn look<'a>(&self, mut vrings: impl Iterator<Item = &'a Vring>) {
        if vrings.any(|vring| vring.ring.has_moved()) {
            self.0.store(OVER, Relaxed);
        } else if self.0.load(Relaxed) != UNSHARED && self.0.fetch_add(1, Relaxed) + 1 == ENOUGH {
            self.0.store(UNSHARED, Relaxed);
            warn!(
                event = "memory_not_shared";
                "the driver kicks, but its rings stay empty: the guest's memory is not shared with this \
                 daemon; {SHARE_MEMORY}"
            );
        }
    }
}
