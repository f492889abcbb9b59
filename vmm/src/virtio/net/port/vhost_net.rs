//! The data path in the host's kernel: vhost-net moves frames between the vrings and the interface.
//!
//! Each queue pair has its own `/dev/vhost-net` file. The file is open as long as the device, and has the
//! interface's queue as its back-end from activation to reset. Interrupts and notifications are eventfds that
//! bypass this process. This process handles the interface: its offloads, and which queues are attached. An
//! interface that is deleted while the kernel uses it is not used again when it is back, because the kernel
//! notifies nobody.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError};

use log::{debug, warn};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_queue::QueueT;
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap};
use volt_net::control::command::GUEST_OFFLOADS;
use volt_net::device::{DeviceError, NetDevice};
use volt_net::limiter::{LimitsChange, RateLimits};
use volt_virtio::features::Features;

use crate::virtio::Vring;
use crate::virtio::net::port::data_path::{DataPath, DataSetup, StartError};
use crate::virtio::net::port::error::VhostNetError;
use crate::virtio::net::port::vhost_file::{VhostFile, named};
use crate::virtio::status::TrafficStatus;

/// Most frames that are dropped: more than an interface's queue usually holds (`txqueuelen`). Without a
/// limit, frames that arrive as fast as they are read would keep the vCPU here.
const MOST_STALE: usize = 10_000;

/// Features of the rings, which belong to the kernel. The others belong to the interface.
const RING: Features = Features::VERSION_1
    .union(Features::NET_MRG_RXBUF)
    .union(Features::EVENT_IDX)
    .union(Features::INDIRECT_DESC)
    .union(Features::IN_ORDER);
/// Features that this device needs.
const NEEDED: Features = Features::VERSION_1.union(Features::NET_MRG_RXBUF);

/// A network interface served by the kernel.
pub(super) struct VhostNetPath {
    label: String,
    /// Ring features of the kernel.
    features: Features,
    state: Mutex<State>,
}

struct State {
    /// Holds the interface. Its pairs never run in this process.
    device: NetDevice,
    /// The features that the driver acknowledged.
    acked: Features,
    pairs: Vec<KernelPair>,
}

struct KernelPair {
    file: VhostFile,
    /// Whether the driver uses the pair, from start to stop.
    runs: bool,
}

/// The kernel's vhost-net: a file for each pair of a device.
pub(super) struct Kernel {
    features: Features,
    files: Vec<VhostFile>,
}

impl Kernel {
    /// Opens the files of `pairs` pairs.
    pub(super) fn open(pairs: u16) -> Result<Kernel, VhostNetError> {
        let files = (0..pairs).map(|_| VhostFile::open()).collect::<Result<Vec<_>, _>>()?;
        let features = files.first().map_or(Ok(Features::empty()), VhostFile::ring_features)?;
        let missing = NEEDED.difference(features);
        match missing.is_empty() {
            true => Ok(Kernel { features: features.intersection(RING), files }),
            false => Err(VhostNetError::Features(missing)),
        }
    }

    /// Returns the part of `offered`, the features of a device in this process, that the kernel can offer,
    /// too.
    pub(super) fn offer(&self, offered: Features) -> Features {
        offered.difference(RING).union(offered.intersection(self.features))
    }
}

impl VhostNetPath {
    /// Creates the path in which the kernel serves the interface of `device`.
    pub(super) fn new(label: &str, device: NetDevice, kernel: Kernel) -> VhostNetPath {
        let Kernel { features, files } = kernel;
        let pairs = files.into_iter().map(|file| KernelPair { file, runs: false }).collect();
        let state = State { device, acked: Features::empty(), pairs };
        VhostNetPath { label: label.to_owned(), features, state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DataPath for VhostNetPath {
    fn start(&self, setup: DataSetup<'_>) -> Result<(), StartError> {
        let mut state = self.state();
        state.acked = setup.acked;
        state.device.set_offloads(setup.acked);
        let State { device, pairs, .. } = &mut *state;
        for (at, pair) in pairs.iter_mut().enumerate() {
            let index = |vring: &&Vring| usize::from(vring.index) / 2 == at;
            let vrings: Vec<_> = setup.vrings.iter().filter(index).collect();
            // A driver that made only one of them ready does not use the pair.
            if vrings.len() != 2 {
                continue;
            }
            let queue = device.queue(at);
            let stale = discard(&queue)?;
            if stale > 0 {
                debug!("{}: pair {at}: dropped {stale} frames that waited for an earlier driver", self.label);
            }
            pair.runs = true;
            set_up(&pair.file, &setup, self.features, &vrings)?;
            for vring in [0, 1] {
                pair.file.set_queue(vring, Some(queue.as_fd())).map_err(VhostNetError::Queue)?;
            }
        }
        state.attach(1);
        Ok(())
    }

    fn stop(&self) {
        let mut state = self.state();
        for pair in &mut state.pairs {
            if !std::mem::take(&mut pair.runs) {
                continue;
            }
            for vring in [0, 1] {
                if let Err(error) = pair.file.set_queue(vring, None) {
                    warn!(
                        event = "vhost_net_vring_kept", device:% = self.label, vring;
                        "{}: vhost-net does not release vring {vring}: {error}", self.label
                    );
                }
            }
        }
        state.acked = Features::empty();
        state.device.set_offloads(Features::empty());
    }

    fn set_active_pairs(&self, pairs: u16) {
        self.state().attach(pairs);
    }

    fn set_offloads(&self, offloads: Features) {
        let mut state = self.state();
        let in_force = state.acked.difference(GUEST_OFFLOADS).union(offloads);
        state.device.set_offloads(in_force);
    }

    fn change_limits(&self, _change: LimitsChange) -> Option<RateLimits> {
        None
    }

    /// The kernel continues. It sends the frames in the guest's rings, and receives until the guest's buffers
    /// are full.
    fn pause(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn resume(&self) {}

    fn traffic(&self) -> Option<TrafficStatus> {
        None
    }
}

impl State {
    /// Attaches the first `pairs` pairs, if the kernel serves them.
    fn attach(&mut self, pairs: u16) {
        let served = self.pairs.iter().enumerate();
        let active: Vec<_> = served.map(|(at, pair)| at < usize::from(pairs) && pair.runs).collect();
        self.device.attach(&active);
    }
}

/// Drops the frames that wait in `queue`, and returns their number. They arrived under the offloads of an
/// earlier driver. The kernel would pass them unchanged to the present one, which may have acknowledged no
/// offloads.
fn discard(queue: &impl AsFd) -> io::Result<usize> {
    let mut queue = File::from(queue.as_fd().try_clone_to_owned()?);
    // The rest of a longer frame is dropped with it.
    let mut start = [0; 64];
    Ok((0..MOST_STALE).take_while(|_| queue.read(&mut start).is_ok()).count())
}

/// Prepares a file for the two `vrings` of one pair.
fn set_up(
    file: &VhostFile,
    setup: &DataSetup<'_>,
    features: Features,
    vrings: &[&Vring],
) -> Result<(), VhostNetError> {
    let memory = setup.memory;
    file.set_memory(memory);
    // Without VHOST_NET_F_VIRTIO_NET_HDR: the frame header is the interface's, with 12 bytes as in the ring.
    named("SET_FEATURES", file.set_features(setup.acked.intersection(features).bits()))?;
    let regions: Result<Vec<_>, _> =
        memory.iter().map(VhostUserMemoryRegionInfo::from_guest_region).collect();
    let regions = regions.map_err(|_| VhostNetError::Memory)?;
    named("SET_MEM_TABLE", file.set_mem_table(&regions))?;
    vrings.iter().try_for_each(|vring| set_up_vring(file, memory, setup, vring))
}

fn set_up_vring(
    file: &VhostFile,
    memory: &GuestMemoryMmap,
    setup: &DataSetup<'_>,
    vring: &Vring,
) -> Result<(), VhostNetError> {
    let Vring { index, queue, kick } = vring;
    let at = usize::from(index % 2);
    let places = VringConfigData {
        queue_max_size: queue.max_size(),
        queue_size: queue.size(),
        flags: 0,
        desc_table_addr: queue.desc_table(),
        used_ring_addr: queue.used_ring(),
        avail_ring_addr: queue.avail_ring(),
        log_addr: None,
    };
    let base = queue.used_idx(memory, Ordering::Acquire).map_err(|_| VhostNetError::Memory)?;
    named("SET_VRING_NUM", file.set_vring_num(at, queue.size()))?;
    named("SET_VRING_BASE", file.set_vring_base(at, base.0))?;
    named("SET_VRING_ADDR", file.set_vring_addr(at, &places))?;
    named("SET_VRING_CALL", file.set_vring_call(at, setup.interrupt.call(*index)))?;
    named("SET_VRING_KICK", file.set_vring_kick(at, kick))
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixDatagram;

    use super::*;

    #[test]
    fn frames_of_an_earlier_driver_are_not_handed_over() {
        let (queue, wire) = UnixDatagram::pair().unwrap();
        queue.set_nonblocking(true).unwrap();
        let queue = File::from(OwnedFd::from(queue));
        assert_eq!(discard(&queue).unwrap(), 0);
        for len in [1514, 0, 60] {
            wire.send(&vec![0; len]).unwrap();
        }
        assert_eq!(discard(&queue).unwrap(), 3);
        assert_eq!(discard(&queue).unwrap(), 0);
    }
}
