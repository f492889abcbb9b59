//! The device as an embedding virtual machine monitor sees it: activated, notified, reset, any number of
//! times.
//!
//! Life cycle: a [`VirtioNet`] comes from [`VirtioNetBuilder`](crate::builder::VirtioNetBuilder). Its
//! transport shows the driver [`VirtioNet::offered`] and [`VirtioNet::config`]; at `DRIVER_OK` it calls
//! [`VirtioNet::activate`], at a reset [`VirtioNet::reset`], and in between nothing but notifications and
//! what comes by the control virtqueue. Frames never pass through here: workers wait for the kick descriptors
//! by themselves.

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
    /// What the driver's notification writes to.
    pub kick: Arc<Notifier>,
    /// What interrupts the driver.
    pub call: Arc<Notifier>,
    /// Notified once when the driver has broken the ring, which only a reset mends.
    pub err: Arc<Notifier>,
}

/// What a device gets at `DRIVER_OK`.
#[derive(Clone, Debug)]
pub struct Activation {
    /// The guest's memory.
    pub memory: Arc<GuestMemory>,
    /// What the driver acknowledged, a subset of what was offered.
    pub features: Features,
    /// The data virtqueues that are ready, without the control virtqueue, which is its server's.
    pub queues: Vec<QueueSetup>,
}

/// Why a device was not activated. It is as after a reset then.
#[derive(Debug, Error)]
pub enum ActivateError {
    /// There was no reset since the last activation.
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
    /// A ring's size or place is not as it must be.
    #[error("virtqueue {index}")]
    Ring {
        /// The queue's number.
        index: u16,
        /// What is wrong.
        source: StartError,
    },
    /// There can be no worker.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// A [`NetDevice`] with the driver that it is active for, from `DRIVER_OK` to reset.
///
/// One thread at a time calls; no call waits for a frame or for the guest.
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
    /// A device that is not active.
    pub fn new(device: NetDevice) -> VirtioNet {
        VirtioNet { device, active: None, paused: false }
    }

    /// The device inside, for its name and counters.
    pub fn device(&self) -> &NetDevice {
        &self.device
    }

    /// The device alone, for who serves its queues by other means. It must not be active.
    pub fn into_device(self) -> NetDevice {
        self.device
    }

    /// The features that a driver may acknowledge. Of those that need a control virtqueue, which is the
    /// caller's to serve, MQ and CTRL_VQ are among them where there are several pairs.
    pub fn offered(&self) -> Features {
        self.device.offered()
    }

    /// The configuration space as it was made (5.1.4); what changes at run time is the caller's.
    pub fn config(&self) -> NetConfig {
        self.device.config()
    }

    /// Runs the queues. Frames flow on the first pair until [`VirtioNet::set_active_pairs`] says otherwise.
    ///
    /// # Errors
    ///
    /// See [`ActivateError`]; the device is then as after a reset.
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

    /// Tells the device that there is something in queue `index`, as writing to its kick descriptor does. For
    /// a transport whose notifications come as register writes.
    pub fn queue_notify(&self, index: u16) {
        let queues = self.active.iter().flat_map(|active| &active.setup.queues);
        queues.filter(|queue| queue.index == index).for_each(|queue| queue.kick.notify());
    }

    /// Lets frames come by the first `pairs` pairs and no others (5.1.6.5.5). Those that are not there are
    /// left out.
    pub fn set_active_pairs(&mut self, pairs: u16) {
        let Some(mut active) = self.active.take() else { return };
        active.pairs = pairs;
        self.attach(&active);
        self.active = Some(active);
    }

    /// Puts these receive offloads in force (5.1.6.5.6), a subset of those that the driver acknowledged.
    pub fn set_guest_offloads(&mut self, offloads: Features) {
        let Some(active) = &mut self.active else { return };
        active.offloads = offloads.intersection(active.setup.features);
        // Frames of before are not to be handed over as they are: those in the port, and one that waits for
        // buffers.
        self.restart();
    }

    /// Gives up what [`VirtioNet::activate`] took: after the return nothing of the guest's memory is touched.
    ///
    /// # Errors
    ///
    /// When a worker does not come back; the guest's memory must then not be given to anything else.
    pub fn reset(&mut self) -> Result<(), DeviceError> {
        if self.active.take().is_none() {
            return Ok(());
        }
        self.stop_pairs()?;
        // What was said of these rings is not about the next ones.
        self.device.take_broken();
        self.device.give_up_stashes();
        // Frames for the next driver must not be larger than it can take.
        self.device.set_offloads(Features::empty());
        Ok(())
    }

    /// Lets no more frames come by pairs whose receive queue the driver broke, which have said so by its
    /// `err`. To be called when the device's owner is [woken](crate::builder::VirtioNetBuilder::wake).
    pub fn leave_out_broken(&mut self) {
        let Some(mut active) = self.active.take() else { return };
        let broken = self.device.take_broken();
        if !broken.is_empty() {
            active.broken.extend(broken);
            self.attach(&active);
        }
        self.active = Some(active);
    }

    /// Puts other rate limits in force, at once.
    pub fn set_limits(&mut self, limits: RateLimits) {
        self.device.set_limits(limits);
        self.restart();
    }

    /// Touches neither rings nor guest memory until [`VirtioNet::resume`], active or not. Frames wait where
    /// they are: those to the guest in the port's queue, which drops what is too much, those from the guest
    /// in its rings.
    ///
    /// # Errors
    ///
    /// When a worker does not come back; the pairs that did are stopped then.
    pub fn pause(&mut self) -> Result<(), DeviceError> {
        self.paused = true;
        self.stop_pairs()
    }

    /// Goes on after [`VirtioNet::pause`], with the rings where they were. A queue that cannot says so by its
    /// `err`.
    pub fn resume(&mut self) {
        if std::mem::take(&mut self.paused) {
            self.restart();
        }
    }

    /// Opens a port that was found gone again (see [`NetDevice::port_gone`]), and moves the running pairs
    /// there.
    ///
    /// # Errors
    ///
    /// While the port cannot be opened.
    pub fn reopen_port(&mut self) -> io::Result<()> {
        self.device.reopen_port()?;
        self.move_pairs();
        Ok(())
    }

    /// The same with queues that another process has opened (see [`NetDevice::reopening`]).
    ///
    /// # Errors
    ///
    /// When they are no such queues.
    pub fn adopt_port(&mut self, queues: Vec<OwnedFd>) -> io::Result<()> {
        self.device.adopt_port(queues)?;
        self.move_pairs();
        Ok(())
    }

    /// To another port.
    fn move_pairs(&mut self) {
        // What workers said of the old queues is no news of the new ones, of which they know nothing before
        // they run again. One that does not stop is told of there.
        let _ = self.stop_pairs();
        self.device.port_gone();
        self.restart();
    }

    /// Stops the pairs and runs them again. Rings continue where they are, but for those that are broken. A
    /// pair that cannot says so by its queues' `err`.
    fn restart(&mut self) {
        let Some(mut active) = self.active.take() else { return };
        // Whichever does not stop is not started either: see NetDevice::start.
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

    /// Runs the queues, or leaves that to [`VirtioNet::resume`]. Answers which pairs do not run, and why.
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

    /// Lets frames come by the pairs that the driver uses, of those that run and receive: another one's would
    /// be lost.
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
        // All of them, also behind one that does not stop. Rings that the driver broke have said so already.
        let stopped: Vec<_> = (0..self.device.pairs()).map(|pair| self.device.stop(pair)).collect();
        stopped.into_iter().try_for_each(|result| result.map(drop))
    }
}

impl Active {
    /// Whether `queue` is served: until its driver breaks it.
    fn serves(&self, queue: &QueueSetup) -> bool {
        !self.broken.contains(&usize::from(queue.index))
    }

    /// The features with the receive offloads that the driver has switched on.
    fn in_force(&self) -> Features {
        self.setup.features.difference(GUEST_OFFLOADS).union(self.offloads)
    }
}

impl QueueSetup {
    /// Which pair it is of.
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
