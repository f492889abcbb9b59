//! What a front-end has said of one vring, and when that is enough to run it.

use std::sync::Arc;

use log::warn;
use serde::{Deserialize, Serialize};
use volt_net::device::NetDevice;
use volt_net::state::{Exporter, FdId, Importer, Numbered, StateError};
use volt_net::vring::Vring;
use volt_virtio::features::Features;
use volt_virtio::memory::GuestMemory;
use volt_virtio::notify::Notifier;
use volt_virtio::ring::{Ring, RingLayout};

use crate::message::VringAddr;

/// A notifier that a running ring shares.
pub type SharedNotifier = Numbered<Arc<Notifier>>;

/// The set-up of one vring. It is *started* when a kick descriptor has come, and *enabled* by
/// SET_VRING_ENABLE.
#[derive(Debug, Default)]
pub struct VringSetup {
    /// SET_VRING_NUM.
    pub size: Option<u16>,
    /// SET_VRING_ADDR.
    pub addr: Option<VringAddr>,
    /// SET_VRING_BASE: only ever given back to front-ends that ask before the ring has run.
    pub base: u16,
    /// SET_VRING_KICK.
    pub kick: Option<SharedNotifier>,
    /// SET_VRING_CALL.
    pub call: Option<SharedNotifier>,
    /// SET_VRING_ERR.
    pub err: Option<SharedNotifier>,
    /// SET_VRING_ENABLE; front-ends send it before, within and after the rest of the set-up.
    pub enabled: bool,
    /// It has run enabled since it was started.
    pub was_enabled: bool,
    /// It cannot run as it is set up; said once.
    pub broken: bool,
}

/// A vring in a state.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct VringSetupState {
    size: Option<u16>,
    addr: Option<VringAddr>,
    base: u16,
    kick: Option<FdId>,
    call: Option<FdId>,
    err: Option<FdId>,
    enabled: bool,
    was_enabled: bool,
    broken: bool,
}

/// Whether and how a vring may be processed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Processing {
    /// Not at all.
    None,
    /// As it should be.
    Normal,
    /// A transmit ring that was disabled: what the driver kicks for is dropped.
    Discard,
}

/// How a vring stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VringStanding {
    /// It has no kick descriptor, and is not processed.
    Stopped,
    /// It is started, and the front-end has not enabled it or has disabled it since.
    Disabled,
    /// It is processed.
    Running,
    /// Its driver or its set-up broke it; it is not processed before it is set up again.
    Broken,
}

impl VringStanding {
    /// All there are.
    pub const ALL: [VringStanding; 4] =
        [VringStanding::Stopped, VringStanding::Disabled, VringStanding::Running, VringStanding::Broken];

    /// As it is in JSON.
    pub fn name(self) -> &'static str {
        match self {
            VringStanding::Stopped => "stopped",
            VringStanding::Disabled => "disabled",
            VringStanding::Running => "running",
            VringStanding::Broken => "broken",
        }
    }
}

impl VringSetup {
    /// How it stands for a driver that has acknowledged these features, if it has.
    pub fn standing(&self, acked: Option<Features>) -> VringStanding {
        match acked.map(|acked| self.processing(acked)) {
            _ if self.broken => VringStanding::Broken,
            _ if self.kick.is_none() => VringStanding::Stopped,
            Some(Processing::Normal) => VringStanding::Running,
            _ => VringStanding::Disabled,
        }
    }

    /// Writes the set-up out.
    pub fn export<'a>(&'a self, out: &mut Exporter<'a>) -> VringSetupState {
        let mut fd = |notifier: &'a Option<SharedNotifier>| notifier.as_ref().map(|n| n.export(out));
        VringSetupState {
            size: self.size,
            addr: self.addr,
            base: self.base,
            kick: fd(&self.kick),
            call: fd(&self.call),
            err: fd(&self.err),
            enabled: self.enabled,
            was_enabled: self.was_enabled,
            broken: self.broken,
        }
    }

    /// Reads a set-up back.
    ///
    /// # Errors
    ///
    /// When a descriptor did not come.
    pub fn import(state: &VringSetupState, from: &mut Importer) -> Result<VringSetup, StateError> {
        let mut fd = |id: Option<FdId>| {
            let mut again = |id| -> Result<_, StateError> {
                Ok(Numbered::known(id, Arc::new(Notifier::again(from.take(id)?))))
            };
            id.map(&mut again).transpose()
        };
        Ok(VringSetup {
            size: state.size,
            addr: state.addr,
            base: state.base,
            kick: fd(state.kick)?,
            call: fd(state.call)?,
            err: fd(state.err)?,
            enabled: state.enabled,
            was_enabled: state.was_enabled,
            broken: state.broken,
        })
    }

    /// A change of the set-up is a new chance.
    pub fn mend(&mut self) {
        self.broken = false;
    }

    /// Stops the ring: it starts again with a new kick descriptor.
    pub fn stop(&mut self) {
        self.kick = None;
        self.was_enabled = false;
        self.mend();
    }

    /// What SET_VRING_ENABLE allows. Without `VHOST_USER_F_PROTOCOL_FEATURES` there is no such request, and
    /// started rings are enabled.
    ///
    /// Nothing is touched before a ring's first enable: a reconnecting front-end sends its kick before it,
    /// and what is drained then would be lost.
    pub fn processing(&self, acked: Features) -> Processing {
        match self {
            _ if self.enabled || !acked.contains(Features::PROTOCOL_FEATURES) => Processing::Normal,
            VringSetup { was_enabled: true, .. } => Processing::Discard,
            _ => Processing::None,
        }
    }

    /// The ring as it lies in `memory`; `None` while something of the set-up is missing.
    ///
    /// A set-up that can never run is logged, and not tried again before it changes.
    pub fn ring(&mut self, index: usize, memory: &Arc<GuestMemory>, acked: Features) -> Option<Ring> {
        if self.broken {
            return None;
        }
        let (size, addr) = (self.size?, self.addr?);
        let Some(layout) = layout(size, addr, memory) else {
            warn!(
                event = "vring_not_started", vring = index;
                "vring {index} cannot start: its addresses are not in the memory that the front-end shared; \
                 with QEMU, use a memory backend with share=on for all of the guest's memory"
            );
            self.broken = true;
            return None;
        };
        match Ring::start(memory.clone(), layout, acked) {
            Ok(ring) => Some(ring),
            Err(error) => {
                let why = volt_virtio::error_chain(&error);
                warn!(event = "vring_not_started", vring = index; "vring {index} cannot start: {why}");
                self.broken = true;
                None
            }
        }
    }

    /// The ring with its notifiers, if it is started.
    pub fn vring(
        &mut self,
        index: usize,
        memory: &Arc<GuestMemory>,
        acked: Features,
        device: &mut NetDevice,
    ) -> Option<Vring> {
        let shared = |notifier: &Option<SharedNotifier>| notifier.as_deref().cloned();
        let kick = shared(&self.kick)?;
        let ring = self.ring(index, memory, acked)?;
        let watch = device.watch(index);
        let (call, err) = (shared(&self.call), shared(&self.err));
        Some(Vring { index, ring, kick, call, err, bad_chain_logged: false, watch })
    }
}

/// Ring addresses are given in the front-end's address space.
fn layout(size: u16, addr: VringAddr, memory: &GuestMemory) -> Option<RingLayout> {
    Some(RingLayout {
        size,
        desc: memory.user_to_guest(addr.desc)?,
        avail: memory.user_to_guest(addr.avail)?,
        used: memory.user_to_guest(addr.used)?,
    })
}
