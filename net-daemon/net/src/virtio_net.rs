//! The device for an embedding virtual machine monitor. It can be activated, notified and reset any number of
//! times.
//!
//! Life cycle: [`VirtioNetBuilder`](crate::builder::VirtioNetBuilder) builds a [`VirtioNet`]. Its transport
//! shows the driver [`VirtioNet::offered`] and [`VirtioNet::config`]. At `DRIVER_OK` it calls
//! [`VirtioNet::activate`], at a reset [`VirtioNet::reset`]. In between it only passes on notifications and
//! commands of the control virtqueue. Frames never pass through this type: workers wait for the kick
//! descriptors by themselves.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use log::{error, warn};
use thiserror::Error;
use volt_virtio::error_chain;
use volt_virtio::features::Features;
use volt_virtio::memory::GuestMemory;
use volt_virtio::notify::Notifier;
use volt_virtio::ring::{Ring, RingLayout, StartError};

use crate::config::NetConfig;
use crate::control::command::GUEST_OFFLOADS;
use crate::crash_note::Watch;
use crate::device::{DeviceError, NetDevice, PairVrings};
use crate::limiter::RateLimits;
use crate::vring::Vring;

/// A virtqueue that the driver made ready (virtio 1.2, section 4.2.3.2 for a transport's view of it).
#[derive(Clone, Debug)]
pub struct QueueSetup {
    /// Its number: 2N receives and 2N+1 transmits for queue pair N (5.1.2).
    pub index: u16,
    /// Size and guest addresses.
    pub layout: RingLayout,
    /// The driver notifies the device by it.
    pub kick: Arc<Notifier>,
    /// It interrupts the driver.
    pub call: Arc<Notifier>,
    /// Notified once when the driver has broken the ring. Only a reset repairs it.
    pub err: Arc<Notifier>,
}

/// The arguments of [`VirtioNet::activate`].
#[derive(Clone, Debug)]
pub struct Activation {
    /// The guest's memory.
    pub memory: Arc<GuestMemory>,
    /// The features that the driver acknowledged, a subset of those offered.
    pub features: Features,
    /// The data virtqueues that are ready. The control virtqueue is not among them: the caller serves it.
    pub queues: Vec<QueueSetup>,
}

/// The reason why a device was not activated. It is then as after a reset.
#[derive(Debug, Error)]
pub enum ActivateError {
    /// It was not reset since the last activation.
    #[error("the device is active already: reset it first")]
    Active,
    /// More queues than the device has.
    #[error("virtqueue {index} is none of the {pairs} queue pairs")]
    Queue {
        /// The queue's number.
        index: u16,
        /// Queue pairs of the device.
        pairs: usize,
    },
    /// A ring has an invalid size or address.
    #[error("virtqueue {index}")]
    Ring {
        /// The queue's number.
        index: u16,
        /// The fault.
        source: StartError,
    },
    /// No worker can be started.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// A [`NetDevice`] together with its driver, from `DRIVER_OK` to reset.
///
/// Only one thread may call at a time. No call waits for a frame or for the guest.
#[derive(Debug)]
pub struct VirtioNet {
    device: NetDevice,
    active: Option<Active>,
    paused: bool,
}

#[derive(Debug)]
struct Active {
    setup: Activation,
    pairs: u16,
    offloads: Features,
    /// Numbers of the virtqueues that the driver broke.
    broken: Vec<usize>,
}

impl VirtioNet {
    /// Creates a device that is not active.
    pub fn new(device: NetDevice) -> VirtioNet {
        VirtioNet { device, active: None, paused: false }
    }

    /// Returns the device inside, for its name and counters.
    pub fn device(&self) -> &NetDevice {
        &self.device
    }

    /// Returns the device alone, for a caller that serves its queues by other means. It must not be active.
    pub fn into_device(self) -> NetDevice {
        self.device
    }

    /// Returns the features that a driver may acknowledge. With several pairs they include MQ and CTRL_VQ,
    /// but no other feature of the control virtqueue. The caller serves that virtqueue.
    pub fn offered(&self) -> Features {
        self.device.offered()
    }

    /// Returns the initial configuration space (5.1.4). The caller applies changes at run time.
    pub fn config(&self) -> NetConfig {
        self.device.config()
    }

    /// Starts the queues. Frames use the first pair until a call of [`VirtioNet::set_active_pairs`].
    ///
    /// # Errors
    ///
    /// See [`ActivateError`]. The device is then as after a reset.
    pub fn activate(&mut self, setup: Activation) -> Result<(), ActivateError> {
        if self.active.is_some() {
            return Err(ActivateError::Active);
        }
        let offloads = setup.features.intersection(GUEST_OFFLOADS);
        let active = Active { setup, pairs: 1, offloads, broken: Vec::new() };
        let first = self.run(&active).into_iter().next();
        self.active = Some(active);
        let Some((_, why)) = first else { return Ok(()) };
        if let Err(error) = self.reset() {
            warn!(
                event = "queue_pair_not_stopped", interface = self.device.port_name();
                "{}: {}", self.device.port_name(), error_chain(&error)
            );
        }
        Err(why)
    }

    /// Notifies the device of new buffers in queue `index`, like a write to its kick descriptor. For a
    /// transport that receives notifications as register writes.
    pub fn queue_notify(&self, index: u16) {
        let queues = self.active.iter().flat_map(|active| &active.setup.queues);
        queues.filter(|queue| queue.index == index).for_each(|queue| queue.kick.notify());
    }

    /// Makes frames use the first `pairs` pairs only (5.1.6.5.5). Pairs that do not exist are ignored.
    pub fn set_active_pairs(&mut self, pairs: u16) {
        let Some(mut active) = self.active.take() else { return };
        active.pairs = pairs;
        self.attach(&active);
        self.active = Some(active);
    }

    /// Sets the receive offloads in force (5.1.6.5.6), a subset of the acknowledged ones.
    pub fn set_guest_offloads(&mut self, offloads: Features) {
        let Some(active) = &mut self.active else { return };
        active.offloads = offloads.intersection(active.setup.features);
        // Earlier frames must not be delivered as they are: those in the port, and one that waits for
        // buffers.
        self.restart();
    }

    /// Releases the resources of [`VirtioNet::activate`]. Afterwards nothing touches guest memory.
    ///
    /// # Errors
    ///
    /// Fails if a worker does not stop. The guest's memory must then not be used for anything else.
    pub fn reset(&mut self) -> Result<(), DeviceError> {
        if self.active.take().is_none() {
            return Ok(());
        }
        self.stop_pairs()?;
        // Reports about these rings do not apply to the next ones.
        self.device.take_broken();
        self.device.give_up_stashes();
        // Frames for the next driver must not be larger than it can take.
        self.device.set_offloads(Features::empty());
        Ok(())
    }

    /// Detaches pairs whose receive queue the driver broke, as reported by its `err`. Call it when the
    /// device's owner is [woken](crate::builder::VirtioNetBuilder::wake).
    pub fn leave_out_broken(&mut self) {
        let Some(mut active) = self.active.take() else { return };
        let broken = self.device.take_broken();
        if !broken.is_empty() {
            active.broken.extend(broken);
            self.attach(&active);
        }
        self.active = Some(active);
    }

    /// Sets other rate limits at once.
    pub fn set_limits(&mut self, limits: RateLimits) {
        self.device.set_limits(limits);
        self.restart();
    }

    /// Stops access to rings and guest memory until [`VirtioNet::resume`], active or not. Frames to the guest
    /// wait in the port's queue, which drops the excess. Frames from the guest wait in its rings.
    ///
    /// # Errors
    ///
    /// Fails if a worker does not stop. The other pairs are stopped then.
    pub fn pause(&mut self) -> Result<(), DeviceError> {
        self.paused = true;
        self.stop_pairs()
    }

    /// Continues after [`VirtioNet::pause`], with the rings where they were. A queue that cannot continue is
    /// reported by its `err`.
    pub fn resume(&mut self) {
        if std::mem::take(&mut self.paused) {
            self.restart();
        }
    }

    /// Reopens a port that is gone (see [`NetDevice::port_gone`]), and moves the running pairs to it.
    ///
    /// # Errors
    ///
    /// While the port cannot be opened.
    pub fn reopen_port(&mut self) -> io::Result<()> {
        self.device.reopen_port()?;
        self.move_pairs();
        Ok(())
    }

    /// Like [`VirtioNet::reopen_port`], but with queues that another process has opened (see
    /// [`NetDevice::reopening`]).
    ///
    /// # Errors
    ///
    /// Fails if the descriptors are not queues of this port.
    pub fn adopt_port(&mut self, queues: Vec<OwnedFd>) -> io::Result<()> {
        self.device.adopt_port(queues)?;
        self.move_pairs();
        Ok(())
    }

    /// Moves the pairs to the new port.
    fn move_pairs(&mut self) {
        // Reports on the old queues do not apply to the new ones. Stopped workers cannot report on those yet.
        // `restart` handles a worker that does not stop.
        let _ = self.stop_pairs();
        self.device.port_gone();
        self.restart();
    }

    /// Stops the pairs and starts them again. Rings continue where they are, except broken ones. A pair that
    /// cannot start is reported by its queues' `err`.
    fn restart(&mut self) {
        let Some(mut active) = self.active.take() else { return };
        // A pair that does not stop is not started either: see `NetDevice::start`.
        if let Err(error) = self.stop_pairs() {
            error!(
                event = "queue_pair_not_stopped", interface = self.device.port_name();
                "{}: {}", self.device.port_name(), error_chain(&error)
            );
        }
        active.broken.extend(self.device.take_broken());
        for (pair, error) in self.run(&active) {
            error!(
                event = "queue_pair_not_started", interface = self.device.port_name(), pair;
                "{}: {}", self.device.port_name(), error_chain(&error)
            );
            let queues = active.setup.queues.iter().filter(|queue| queue.pair() == pair);
            queues.for_each(|queue| queue.err.notify());
        }
        self.active = Some(active);
    }

    /// Starts the queues, or leaves that to [`VirtioNet::resume`]. Returns the pairs that do not run, with
    /// the reasons.
    fn run(&mut self, active: &Active) -> Vec<(usize, ActivateError)> {
        if self.paused {
            return Vec::new();
        }
        let Activation { memory, queues, .. } = &active.setup;
        let features = active.in_force();
        let pairs = self.device.pairs();
        let mut vrings: Vec<PairVrings> = (0..pairs).map(|_| PairVrings::default()).collect();
        let mut failed = Vec::new();
        for queue in queues.iter().filter(|queue| active.serves(queue)) {
            let Some(pair) = vrings.get_mut(queue.pair()) else {
                failed.push((queue.pair(), ActivateError::Queue { index: queue.index, pairs }));
                continue;
            };
            match queue.vring(memory, features, self.device.watch(queue.index.into())) {
                Ok(vring) if queue.receives() => pair.rx = Some(vring),
                Ok(vring) => pair.tx = Some(vring),
                Err(error) => failed.push((queue.pair(), error)),
            }
        }
        self.device.set_offloads(features);
        for (pair, vrings) in vrings.into_iter().enumerate() {
            if failed.iter().all(|(other, _)| *other != pair)
                && let Err(error) = self.device.start(pair, vrings, features)
            {
                failed.push((pair, error.into()));
            }
        }
        self.attach(active);
        failed
    }

    /// Attaches the pairs that the driver uses, that run, and that receive. Frames on any other pair would be
    /// lost.
    fn attach(&mut self, active: &Active) {
        let mut takes_part = vec![false; self.device.pairs()];
        for queue in active.setup.queues.iter().filter(|queue| queue.receives() && active.serves(queue)) {
            if let Some(takes_part) = takes_part.get_mut(queue.pair()) {
                *takes_part = queue.pair() < usize::from(active.pairs) && self.device.runs(queue.pair());
            }
        }
        self.device.attach(&takes_part);
    }

    fn stop_pairs(&mut self) -> Result<(), DeviceError> {
        // Stops all pairs, even if one does not stop. Rings that the driver broke are reported already.
        let stopped: Vec<_> = (0..self.device.pairs()).map(|pair| self.device.stop(pair)).collect();
        stopped.into_iter().try_for_each(|result| result.map(drop))
    }
}

impl Active {
    /// Whether `queue` is served: its driver has not broken it.
    fn serves(&self, queue: &QueueSetup) -> bool {
        !self.broken.contains(&usize::from(queue.index))
    }

    /// Returns the features, with the receive offloads that the driver has switched on.
    fn in_force(&self) -> Features {
        self.setup.features.difference(GUEST_OFFLOADS).union(self.offloads)
    }
}

impl QueueSetup {
    /// Returns the queue's pair.
    fn pair(&self) -> usize {
        usize::from(self.index / 2)
    }

    fn receives(&self) -> bool {
        self.index.is_multiple_of(2)
    }

    fn vring(
        &self,
        memory: &Arc<GuestMemory>,
        features: Features,
        watch: Option<Watch>,
    ) -> Result<Vring, ActivateError> {
        let ring = Ring::start(memory.clone(), self.layout, features);
        Ok(Vring {
            index: self.index.into(),
            ring: ring.map_err(|source| ActivateError::Ring { index: self.index, source })?,
            kick: self.kick.clone(),
            call: Some(self.call.clone()),
            err: Some(self.err.clone()),
            bad_chain_logged: false,
            watch,
        })
    }
}

#[cfg(test)]
mod tests;
