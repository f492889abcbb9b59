//! Eventfds that become messages to a local APIC, by KVM's routes (Linux, virt/kvm/api.rst,
//! `KVM_SET_GSI_ROUTING`).
//!
//! Each source of interrupts has a [`MsiLine`]: an eventfd, and a GSI of its own for as long as the line
//! lives. To connect a line is to give its GSI the route to a message and its eventfd to KVM. While a line is
//! not connected, which is what a masked vector comes to, its eventfd counts, and what it counted is sent
//! when it is connected again: the pending bit of MSI-X, which so needs nobody to look at each interrupt.

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

/// Pins of the IOAPIC, and so the first GSI that is free for messages.
const IOAPIC_PINS: u32 = 24;
/// Inputs of each of the two PICs.
const PIC_PINS: u32 = 8;
/// GSIs for messages: a route each, beside those of the pins.
const LINES: u32 = KVM_MAX_IRQ_ROUTES as u32 - IOAPIC_PINS - 2 * PIC_PINS;

/// The routes of a virtual machine: KVM's own for its interrupt controllers, and one for each message.
pub struct MsiRoutes {
    vm: Arc<VmFd>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// How many were ever needed at a time, and those among them that were given back.
    lines: u32,
    free: Vec<u32>,
    messages: BTreeMap<u32, Message>,
}

impl MsiRoutes {
    /// Routes of `vm`, which has its interrupt controllers, and nobody else who sets routes.
    pub fn new(vm: Arc<VmFd>) -> MsiRoutes {
        MsiRoutes { vm, state: Mutex::default() }
    }

    /// A GSI that nobody else has; `None` when there are no more.
    fn take_gsi(&self) -> Option<u32> {
        let mut state = self.state();
        if let Some(gsi) = state.free.pop() {
            return Some(gsi);
        }
        let gsi = (state.lines < LINES).then_some(IOAPIC_PINS + state.lines)?;
        state.lines += 1;
        Some(gsi)
    }

    /// Takes a GSI back that nothing leads to any more. Its route stays with KVM, where it does nothing,
    /// until the next change.
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

/// What KVM routes by itself until it is told otherwise: 16 GSIs to the PICs, 24 to the IOAPIC.
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
    /// Where it can be connected; none in tests of what does not need KVM.
    wire: Option<(Arc<MsiRoutes>, u32)>,
    message: Option<Message>,
}

impl MsiLine {
    /// A line for what is written to `eventfd`, which is non-blocking and nobody else's; `None` when there
    /// are no more.
    pub fn new(eventfd: Arc<EventFd>, routes: &Arc<MsiRoutes>) -> Option<MsiLine> {
        let gsi = routes.take_gsi()?;
        Some(MsiLine { eventfd, wire: Some((Arc::clone(routes), gsi)), message: None })
    }

    /// A line that leads nowhere. For tests.
    pub fn unconnected(eventfd: Arc<EventFd>) -> MsiLine {
        MsiLine { eventfd, wire: None, message: None }
    }

    /// What is sent now.
    pub fn message(&self) -> Option<Message> {
        self.message
    }

    /// Sends `message` for every write from now on, and for those that were not sent; nothing with `None`.
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
                        "KVM does not change an interrupt to {message:x?}: {error}"
                    );
                }
            }
        }
    }

    /// Gives the eventfd to KVM.
    fn give(&self, routes: &MsiRoutes, gsi: u32) -> Result<(), errno::Error> {
        // Taken out and put back, because what KVM finds in an eventfd it sends, but does not take out.
        let pending = self.eventfd.read().is_ok();
        let result = routes.vm.register_irqfd(&self.eventfd, gsi);
        if pending {
            let _ = self.eventfd.write(1);
        }
        result
    }

    /// Whether something waits to be sent.
    pub fn is_pending(&self) -> bool {
        self.message.is_none() && self.take_pending() && self.eventfd.write(1).is_ok()
    }

    /// Forgets what waits to be sent; answers whether there was something.
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
