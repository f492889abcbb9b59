//! Eventfds that become messages to a local APIC, with KVM's routes (Linux, virt/kvm/api.rst,
//! `KVM_SET_GSI_ROUTING`).
//!
//! Each source of interrupts has a [`MsiLine`]: an eventfd, and a GSI that belongs to it for the lifetime of
//! the line. Connecting a line gives its GSI the route to a message, and its eventfd to KVM. A masked vector
//! disconnects its line. Then the eventfd counts, and a nonzero count is sent when the line is connected
//! again. That is the pending bit of MSI-X, without a thread that handles each interrupt.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KVM_MAX_IRQ_ROUTES, KvmIrqRouting, kvm_irq_routing_entry,
    kvm_irq_routing_entry__bindgen_ty_1 as Route, kvm_irq_routing_irqchip, kvm_irq_routing_msi,
};
use kvm_ioctls::VmFd;
use log::warn;
use vmm_sys_util::errno;
use vmm_sys_util::eventfd::EventFd;

use crate::faults;
use crate::pci::msix::Message;

/// Pins of the IOAPIC, and therefore the first GSI that is free for messages.
const IOAPIC_PINS: u32 = 24;
/// Inputs of each of the two PICs.
const PIC_PINS: u32 = 8;
/// GSIs for messages: a route each, besides those of the pins.
const LINES: u32 = KVM_MAX_IRQ_ROUTES as u32 - IOAPIC_PINS - 2 * PIC_PINS;

/// The routes of a virtual machine: KVM's own for its interrupt controllers, and one for each message.
pub struct MsiRoutes {
    vm: Arc<VmFd>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The largest number of lines in use at a time, and the GSIs among them that were given back.
    lines: u32,
    free: Vec<u32>,
    messages: BTreeMap<u32, Message>,
}

impl MsiRoutes {
    /// Creates the routes of `vm`. It must have its interrupt controllers, and nothing else may set routes.
    pub fn new(vm: Arc<VmFd>) -> MsiRoutes {
        MsiRoutes { vm, state: Mutex::default() }
    }

    /// Returns an unused GSI, or `None` if there are no more.
    fn take_gsi(&self) -> Option<u32> {
        let mut state = self.state();
        if let Some(gsi) = state.free.pop() {
            return Some(gsi);
        }
        let gsi = (state.lines < LINES).then_some(IOAPIC_PINS + state.lines)?;
        state.lines += 1;
        Some(gsi)
    }

    /// Takes back a GSI that is no longer used. Its route stays in KVM without effect until the next change.
    fn give_back(&self, gsi: u32) {
        let mut state = self.state();
        state.messages.remove(&gsi);
        state.free.push(gsi);
    }

    /// Sends `message` for `gsi` from now on.
    fn set(&self, gsi: u32, message: Message) -> Result<(), errno::Error> {
        let mut state = self.state();
        if state.messages.get(&gsi) == Some(&message) {
            return Ok(());
        }
        let before = state.messages.insert(gsi, message);
        let entries: Vec<_> =
            pins().chain(state.messages.iter().map(|(gsi, message)| msi(*gsi, *message))).collect();
        // Never more than KVM_MAX_IRQ_ROUTES: see LINES.
        let result = KvmIrqRouting::from_entries(&entries)
            .map_err(|_| errno::Error::new(libc::E2BIG))
            .and_then(|routing| self.vm.set_gsi_routing(&routing));
        if result.is_err() {
            match before {
                Some(message) => state.messages.insert(gsi, message),
                None => state.messages.remove(&gsi),
            };
        }
        result
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns KVM's default routes: 16 GSIs to the PICs, 24 to the IOAPIC.
fn pins() -> impl Iterator<Item = kvm_irq_routing_entry> {
    let pin = |gsi, irqchip, pin| kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_IRQCHIP,
        u: Route { irqchip: kvm_irq_routing_irqchip { irqchip, pin } },
        ..Default::default()
    };
    let pics = (0..2 * PIC_PINS).map(move |gsi| {
        let chip = if gsi < PIC_PINS { KVM_IRQCHIP_PIC_MASTER } else { KVM_IRQCHIP_PIC_SLAVE };
        pin(gsi, chip, gsi % PIC_PINS)
    });
    pics.chain((0..IOAPIC_PINS).map(move |gsi| pin(gsi, KVM_IRQCHIP_IOAPIC, gsi)))
}

fn msi(gsi: u32, message: Message) -> kvm_irq_routing_entry {
    let route = kvm_irq_routing_msi {
        address_lo: message.address as u32,
        address_hi: (message.address >> 32) as u32,
        data: message.data,
        ..Default::default()
    };
    kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, u: Route { msi: route }, ..Default::default() }
}

/// One source of interrupts.
pub struct MsiLine {
    eventfd: Arc<EventFd>,
    /// The routes and the GSI. `None` in tests that do not need KVM.
    wire: Option<(Arc<MsiRoutes>, u32)>,
    message: Option<Message>,
}

impl MsiLine {
    /// Creates a line for writes to `eventfd`, which must be non-blocking and used by nothing else. Returns
    /// `None` if there are no more lines.
    pub fn new(eventfd: Arc<EventFd>, routes: &Arc<MsiRoutes>) -> Option<MsiLine> {
        let gsi = routes.take_gsi()?;
        Some(MsiLine { eventfd, wire: Some((Arc::clone(routes), gsi)), message: None })
    }

    /// Creates a line that leads nowhere, for tests.
    pub fn unconnected(eventfd: Arc<EventFd>) -> MsiLine {
        MsiLine { eventfd, wire: None, message: None }
    }

    /// Returns the message that is sent now.
    pub fn message(&self) -> Option<Message> {
        self.message
    }

    /// Sends `message` for every write from now on, and for earlier ones that were not sent. With `None`,
    /// sends nothing.
    pub fn connect(&mut self, message: Option<Message>) {
        if message == self.message {
            return;
        }
        let result = match (&self.wire, message) {
            (None, _) => Ok(()),
            (Some((routes, gsi)), Some(message)) => routes
                .set(*gsi, message)
                .and_then(|()| if self.message.is_some() { Ok(()) } else { self.give(routes, *gsi) }),
            (Some((routes, gsi)), None) => routes.vm.unregister_irqfd(&self.eventfd, *gsi),
        };
        match result {
            Ok(()) => self.message = message,
            Err(error) => {
                if faults::may_log() {
                    warn!(
                        event = "interrupt_not_changed";
                        "KVM cannot change an interrupt to {message:x?}: {error}"
                    );
                }
            }
        }
    }

    /// Gives the eventfd to KVM.
    fn give(&self, routes: &MsiRoutes, gsi: u32) -> Result<(), errno::Error> {
        // Read and written again, because KVM sends for a count that it finds in an eventfd, but does not
        // reset it.
        let pending = self.eventfd.read().is_ok();
        let result = routes.vm.register_irqfd(&self.eventfd, gsi);
        if pending {
            let _ = self.eventfd.write(1);
        }
        result
    }

    /// Returns whether an interrupt waits to be sent.
    pub fn is_pending(&self) -> bool {
        self.message.is_none() && self.take_pending() && self.eventfd.write(1).is_ok()
    }

    /// Drops an interrupt that waits to be sent. Returns whether there was one.
    pub fn take_pending(&self) -> bool {
        self.eventfd.read().is_ok()
    }
}

impl Drop for MsiLine {
    fn drop(&mut self) {
        self.connect(None);
        if let Some((routes, gsi)) = &self.wire {
            routes.give_back(*gsi);
        }
    }
}
