//! Level-triggered interrupt lines, for devices that are not virtio and have something to tell now and then:
//! PCI hot-plug and the power button. The builder makes one for each.

use std::sync::Arc;

use kvm_ioctls::VmFd;
use log::error;

/// A pin of KVM's interrupt controllers whose level says whether a device of the machine has something to
/// tell. It stays until that was read: a guest that has the pin masked, as every one has that boots, finds it
/// when it unmasks it, where an edge would be lost.
pub struct LevelLine(Box<dyn Fn(bool) + Send + Sync>);

impl LevelLine {
    /// Pin `gsi` of `vm`, which has its interrupt controllers.
    pub fn of(vm: Arc<VmFd>, gsi: u32) -> LevelLine {
        LevelLine::new(move |high| {
            if let Err(error) = vm.set_irq_line(gsi, high) {
                error!(
                    event = "interrupt_not_raised", gsi;
                    "KVM does not change the level of interrupt {gsi}: {error}"
                );
            }
        })
    }

    /// Tells every level to `set`. For tests of what does not need KVM.
    pub fn new(set: impl Fn(bool) + Send + Sync + 'static) -> LevelLine {
        LevelLine(Box::new(set))
    }

    /// High: there is something to tell.
    pub fn set(&self, high: bool) {
        (self.0)(high);
    }
}
