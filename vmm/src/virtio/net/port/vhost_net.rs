//! The data path in the host's kernel: vhost-net moves frames between the vrings and the interface.
//!
//! Each queue pair is a `/dev/vhost-net` file of its own, open from activation to reset, with the interface's
//! queue as its back-end. Interrupts and notifications are eventfds that never come here. What remains to
//! this process is the interface: offloads, and which queues take part. An interface that is deleted under
//! the kernel is not used again when it is back: the kernel tells nobody.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use log::{debug, warn};
use vhost::net::VhostNet;
use vhost::vhost_kern::net::Net as VhostNetFile;
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_queue::QueueT;
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap};
use volt_net::control::command::GUEST_OFFLOADS;
use volt_net::device::{DeviceError, NetDevice};
use volt_net::limiter::{LimitsChange, RateLimits};
use volt_virtio::features::Features;

use crate::virtio::Vring;
use crate::virtio::net::port::data_path::{DataPath, DataSetup, StartError};
use crate::virtio::net::port::error::{NODE, VhostNetError};
use crate::virtio::status::TrafficStatus;

/// Most frames that are dropped: more than an interface's queue usually holds (`txqueuelen`). Without an end
/// to it, frames that come as fast as they are taken out would keep the vCPU here.
const MOST_STALE: usize = 10_000;

/// Features that are about rings, and so the kernel's; the others are the interface's.
const RING: Features = Features::VERSION_1
    .union(Features::NET_MRG_RXBUF)
    .union(Features::EVENT_IDX)
    .union(Features::INDIRECT_DESC)
    .union(Features::IN_ORDER);
/// What this device cannot do without.
const NEEDED: Features = Features::VERSION_1.union(Features::NET_MRG_RXBUF);

/// Names the request that a result belongs to.
fn named<T>(request: &'static str, result: vhost::Result<T>) -> Result<T, VhostNetError> {
    result.map_err(|source| VhostNetError::Request { request, source })
}

type VhostFile = VhostNetFile<Arc<GuestMemoryMmap>>;

/// A network interface served by the kernel.
pub(super) struct VhostNetPath {
    label: String,
    /// Ring features of the kernel.
    features: Features,
    state: Mutex<State>,
}

struct State {
    /// Holds the interface; its pairs never run here.
    device: NetDevice,
    /// What the driver acknowledged, and for each pair a file if it uses it, from start to stop.
    acked: Features,
    pairs: Vec<Option<VhostFile>>,
}

/// The features of this kernel's vhost-net.
pub(super) fn probe() -> Result<Features, VhostNetError> {
    if !Path::new(NODE).exists() {
        let missing = std::io::Error::from_raw_os_error(libc::ENOENT);
        return Err(VhostNetError::Open(vhost::Error::VhostOpen(missing)));
    }
    let file = VhostNetFile::new(Arc::new(GuestMemoryMmap::<()>::new())).map_err(VhostNetError::Open)?;
    let features = Features::from_bits_retain(named("GET_FEATURES", file.get_features())?);
    let missing = NEEDED.difference(features);
    if missing.is_empty() { Ok(features.intersection(RING)) } else { Err(VhostNetError::Features(missing)) }
}

impl VhostNetPath {
    /// Lets the kernel, which has `features`, serve the interface of `device`.
    pub(super) fn new(label: &str, device: NetDevice, features: Features) -> VhostNetPath {
        let state = State { device, acked: Features::empty(), pairs: Vec::new() };
        VhostNetPath { label: label.to_owned(), features, state: Mutex::new(state) }
    }

    /// What of `offered`, a device's in this process, this one can offer.
    pub(super) fn offer(features: Features, offered: Features) -> Features {
        offered.difference(RING).union(offered.intersection(features))
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
        let memory = Arc::new(setup.memory.clone());
        for pair in 0..state.device.pairs() {
            let index = |vring: &&Vring| usize::from(vring.index) / 2 == pair;
            let vrings: Vec<_> = setup.vrings.iter().filter(index).collect();
            // A driver that made only one of them ready does not use the pair.
            let mut file = None;
            if vrings.len() == 2 {
                let queue = File::from(state.device.queue(pair).as_fd().try_clone_to_owned()?);
                let stale = discard(&queue);
                if stale > 0 {
                    debug!(
                        "{}: pair {pair}: dropped {stale} frames that waited for an earlier driver",
                        self.label
                    );
                }
                file = Some(open_pair(&memory, &setup, self.features, &vrings, &queue)?);
            }
            state.pairs.push(file);
        }
        state.attach(1);
        Ok(())
    }

    fn stop(&self) {
        let mut state = self.state();
        for file in std::mem::take(&mut state.pairs).into_iter().flatten() {
            for vring in [0, 1] {
                // Closing the file would do it as well, but says nothing.
                if let Err(error) = file.set_backend(vring, None) {
                    warn!("{}: vhost-net does not let go of vring {vring}: {error}", self.label);
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

    /// The kernel goes on: it sends what the guest has left in its rings, and receives until the guest's
    /// buffers are full.
    fn pause(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn resume(&self) {}

    fn traffic(&self) -> Option<TrafficStatus> {
        None
    }
}

impl State {
    /// Lets frames come by the first `pairs` pairs, as far as the kernel serves them.
    fn attach(&mut self, pairs: u16) {
        let served = self.pairs.iter().enumerate();
        let active: Vec<_> = served.map(|(pair, file)| pair < usize::from(pairs) && file.is_some()).collect();
        self.device.attach(&active);
    }
}

/// Takes out what waits in `queue`, and returns how many frames that were. They came with the offloads of an
/// earlier driver, and the kernel would hand them over as they are, to one that may have acknowledged none.
fn discard(mut queue: &File) -> usize {
    // What does not fit is dropped with the rest of its frame.
    let mut start = [0; 64];
    (0..MOST_STALE).take_while(|_| queue.read(&mut start).is_ok()).count()
}

/// A file that serves the two `vrings` of one pair with `queue` behind them.
fn open_pair(
    memory: &Arc<GuestMemoryMmap>,
    setup: &DataSetup<'_>,
    features: Features,
    vrings: &[&Vring],
    queue: &File,
) -> Result<VhostFile, StartError> {
    let file = VhostNetFile::new(memory.clone()).map_err(VhostNetError::Open)?;
    named("SET_OWNER", file.set_owner())?;
    // Without VHOST_NET_F_VIRTIO_NET_HDR: the frame header is the interface's, 12 bytes as in the ring.
    named("SET_FEATURES", file.set_features(setup.acked.intersection(features).bits()))?;
    let regions: Result<Vec<_>, _> =
        memory.iter().map(VhostUserMemoryRegionInfo::from_guest_region).collect();
    let regions = regions.map_err(|_| VhostNetError::Memory)?;
    named("SET_MEM_TABLE", file.set_mem_table(&regions))?;
    for vring in vrings {
        set_up_vring(&file, memory, setup, vring)?;
    }
    for at in [0, 1] {
        named("SET_BACKEND", file.set_backend(at, Some(queue)))?;
    }
    Ok(file)
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
        assert_eq!(discard(&queue), 0);
        for len in [1514, 0, 60] {
            wire.send(&vec![0; len]).unwrap();
        }
        assert_eq!(discard(&queue), 3);
        assert_eq!(discard(&queue), 0);
    }
}
