//! Level-triggered interrupt lines, for devices that are not virtio and have rare events: PCI hot-plug and
//! the power button. The builder creates one for each.

use std::sync::Arc;

use kvm_ioctls::VmFd;
use log::error;

/// A pin of KVM's interrupt controllers. It is high while a device of the machine has an unread event. A
/// guest that has the pin masked, as every guest has during its boot, finds the level when it unmasks the
/// pin; an edge would be lost.
pub struct LevelLine(Box<dyn Fn(bool) + Send + Sync>);

impl LevelLine {
    /// Creates the line of pin `gsi` of `vm`, which must have its interrupt controllers.
    pub fn of(vm: Arc<VmFd>, gsi: u32) -> LevelLine {
        LevelLine::new(move |high| {
            if let Err(error) = vm.set_irq_line(gsi, high) {
                error!(
                    event = "interrupt_not_raised", gsi;
                    "KVM cannot change the level of interrupt {gsi}: {error}"
                );
            }
        })
    }

    /// Creates a line that calls `set` with every level. For tests without KVM.
    pub fn new(set: impl Fn(bool) + Send + Sync + 'static) -> LevelLine {
        LevelLine(Box::new(set))
    }

    /// Sets the level. High means that there is an event.
    pub fn set(&self, high: bool) {
        (self.0)(high);
    }
}
