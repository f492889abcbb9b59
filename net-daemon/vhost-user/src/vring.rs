//! A front-end's set-up of one vring, and whether it is complete.

use std::sync::Arc;

use log::warn;
use serde::{Deserialize, Serialize};
use volt_net::device::NetDevice;
use volt_net::state::{Exporter, FdId, Importer, Numbered, StateError};
use volt_net::unshared::SHARE_MEMORY;
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
    /// SET_VRING_BASE. It is only returned to front-ends that ask for it before the ring has run.
    pub base: u16,
    /// SET_VRING_KICK.
    pub kick: Option<SharedNotifier>,
    /// SET_VRING_CALL.
    pub call: Option<SharedNotifier>,
    /// SET_VRING_ERR.
    pub err: Option<SharedNotifier>,
    /// SET_VRING_ENABLE. Front-ends send it before, during and after the rest of the set-up.
    pub enabled: bool,
    /// Whether it has run enabled since it was started.
    pub was_enabled: bool,
    /// Whether it cannot run with this set-up. Logged once.
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

/// Whether and how to process a vring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Processing {
    /// Do not process it.
    None,
    /// Process it normally.
    Normal,
    /// A transmit ring that was disabled: drop the frames that the driver kicks for.
    Discard,
}

/// The state of a vring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VringStanding {
    /// It has no kick descriptor, or there is no guest memory, or no log while pages are to be logged. It is
    /// not processed.
    Stopped,
    /// It is started, but not enabled or disabled again.
    Disabled,
    /// It is being processed.
    Running,
    /// Its driver or its set-up broke it. It is not processed before a new set-up.
    Broken,
}

impl VringStanding {
    /// All states.
    pub const ALL: [VringStanding; 4] =
        [VringStanding::Stopped, VringStanding::Disabled, VringStanding::Running, VringStanding::Broken];

    /// Returns the name in JSON.
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
    /// Returns the state, for a driver that may have acknowledged features.
    /// `memory`: whether there is guest memory, with a log if one is due.
    pub fn standing(&self, acked: Option<Features>, memory: bool) -> VringStanding {
        match acked.map(|acked| self.processing(acked)) {
            _ if self.broken => VringStanding::Broken,
            _ if self.kick.is_none() || !memory => VringStanding::Stopped,
            Some(Processing::Normal) => VringStanding::Running,
            _ => VringStanding::Disabled,
        }
    }

    /// Exports the set-up.
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

    /// Imports a set-up.
    ///
    /// # Errors
    ///
    /// Fails if a descriptor did not come.
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

    /// Allows another attempt after a change of the set-up.
    pub fn mend(&mut self) {
        self.broken = false;
    }

    /// Stops the ring. It starts again with a new kick descriptor.
    pub fn stop(&mut self) {
        self.kick = None;
        self.was_enabled = false;
        self.mend();
    }

    /// Returns the processing that SET_VRING_ENABLE allows. Without `VHOST_USER_F_PROTOCOL_FEATURES` there is
    /// no such request, and started rings are enabled.
    ///
    /// A ring is not touched before its first enable: a front-end that reconnects sends the kick first, and
    /// frames drained then would be lost.
    pub fn processing(&self, acked: Features) -> Processing {
        match self {
            _ if self.enabled || !acked.contains(Features::PROTOCOL_FEATURES) => Processing::Normal,
            VringSetup { was_enabled: true, .. } => Processing::Discard,
            _ => Processing::None,
        }
    }

    /// Returns the guest address at which writes to the used ring are logged and its length in bytes, if
    /// they are logged.
    pub fn used_log(&self) -> Option<(u64, u64)> {
        // Flags, index, elements and `avail_event` (virtio 1.2, 2.7.8).
        let len = 6 + 8 * u64::from(self.size?);
        Some((self.addr?.used_log()?, len))
    }

    /// Returns the ring in `memory`; `None` if the set-up is incomplete.
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
                "vring {index} cannot start: its addresses are not in the memory that the front-end shared, \
                 which must be all of the guest's memory; {SHARE_MEMORY}"
            );
            self.broken = true;
            return None;
        };
        match Ring::start(memory.clone(), layout, acked) {
            Ok(mut ring) => {
                if let Some(address) = addr.used_log() {
                    ring.log_used_at(address);
                }
                Some(ring)
            }
            Err(error) => {
                let why = volt_virtio::error_chain(&error);
                warn!(event = "vring_not_started", vring = index; "vring {index} cannot start: {why}");
                self.broken = true;
                None
            }
        }
    }

    /// Returns the ring with its notifiers, if it is started.
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

/// Translates ring addresses to guest addresses.
fn layout(size: u16, addr: VringAddr, memory: &GuestMemory) -> Option<RingLayout> {
    let guest = |address| if addr.guest { Some(address) } else { memory.user_to_guest(address) };
    Some(RingLayout { size, desc: guest(addr.desc)?, avail: guest(addr.avail)?, used: guest(addr.used)? })
}
