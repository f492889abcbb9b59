//! The network device with an interface of the host: TAP or macvtap.
//!
//! A [`Net`] answers the driver, serves the control vring ([`control`]), and starts and stops a `DataPath`
//! for the frames. Each of its threads may end while the guest's driver runs. None outlives the device.
//!
//! | module | holds |
//! |---|---|
//! | [`error`] | why such a device cannot be created |
//! | `data_path` | the interface of a data path |
//! | `in_process` | frames moved by workers of this process, on `volt_net`'s device |
//! | `vhost_net`, `vhost_file` | frames moved by the kernel's vhost-net; one of its files |
//! | `convert` | conversion between the types of the VMM's crates and of `volt_net` |

use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

use log::{info, warn};
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use volt_net::builder::VirtioNetBuilder;
use volt_net::config::{Mac, NetConfig, STATUS_LINK_UP};
use volt_net::device::{DeviceError, NetDevice};
use volt_net::limiter::{LimitsChange, RateLimits};
use volt_net::port::macvtap::Macvtap;
use volt_net::port::peer::PeerPort;
use volt_net::port::peer_options::PeerOptions;
use volt_net::port::tap::{Tap, TapError, TapOptions};
use volt_net::virtio_net::VirtioNet;
use volt_program::display::of;
use volt_program::unix::SocketFile;
use volt_virtio::error_chain;
use volt_virtio::features::{Class, Features};
use volt_virtio::notify::Notifier;

use crate::board::pause_gate::PauseGate;
use crate::config::{NetPortConfig, PortKind, VhostNet};
use crate::opener;
use crate::virtio::handle::{DeviceHandle, DeviceKind, LimitsError};
use crate::virtio::net::changes::Change;
use crate::virtio::net::control::{self, OWN, Served};
use crate::virtio::net::port::data_path::{DataPath, DataSetup};
pub use crate::virtio::net::port::error::PortError;
use crate::virtio::net::port::in_process::InProcess;
use crate::virtio::net::port::vhost_net::{Kernel, VhostNetPath};
use crate::virtio::status::{DeviceDetails, DeviceStatus, NetStatus};
use crate::virtio::worker::Worker;
use crate::virtio::{ActivateError, Activation, VirtioDevice, copy_config};

mod convert;
mod data_path;
pub mod error;
mod in_process;
mod vhost_file;
mod vhost_net;

/// The interface to the device beside its transport. It does not keep the host's interface, which is closed
/// with the device.
struct Handle {
    label: String,
    pairs: u16,
    config: Arc<Mutex<NetConfig>>,
    path: RwLock<Option<Arc<dyn DataPath>>>,
}

impl Handle {
    /// Returns `None` if the device no longer exists.
    fn with<T>(&self, act: impl FnOnce(&dyn DataPath) -> T) -> Option<T> {
        self.path.read().unwrap_or_else(PoisonError::into_inner).as_deref().map(act)
    }

    /// Releases the device. Waits for a call in progress.
    fn let_go(&self) {
        *self.path.write().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl DeviceHandle for Handle {
    fn status(&self) -> DeviceStatus {
        let config = *self.config.lock().unwrap_or_else(PoisonError::into_inner);
        let net = NetStatus {
            guest_mac: config.mac.to_string(),
            link_up: config.status & STATUS_LINK_UP != 0,
            queue_pairs: self.pairs,
            traffic: self.with(|path| path.traffic()).flatten(),
        };
        DeviceStatus { device: self.label.clone(), details: Some(DeviceDetails::Net(net)) }
    }

    fn change_limits(&self, change: LimitsChange) -> Result<RateLimits, LimitsError> {
        let limits = self.with(|path| path.change_limits(change)).ok_or(LimitsError::Gone)?;
        limits.ok_or(LimitsError::Kernel)
    }

    fn pause(&self) -> Result<(), DeviceError> {
        self.with(|path| path.pause()).unwrap_or(Ok(()))
    }

    fn resume(&self) {
        self.with(|path| path.resume());
    }
}

/// A network device with an interface of the host.
pub struct Net {
    name: String,
    label: String,
    features: Features,
    pairs: u16,
    vring_sizes: Vec<u16>,
    /// The address after a reset. The driver may set another one with the control vring.
    mac: Mac,
    config: Arc<Mutex<NetConfig>>,
    gate: Arc<PauseGate>,
    /// Serves the control vring, from activation to reset.
    control: Option<Worker>,
    path: Arc<dyn DataPath>,
    /// Has the same path for other threads, which may outlive this device.
    handle: Arc<Handle>,
    /// The file of the socket for the peer.
    own: Option<OwnSocket>,
}

/// The file of an own socket, which is removed with its device.
struct OwnSocket(SocketFile);

impl Drop for OwnSocket {
    fn drop(&mut self) {
        opener::remove_socket(&self.0);
    }
}

impl Net {
    /// Opens the interface.
    ///
    /// # Errors
    ///
    /// See [`PortError`].
    pub fn open(config: &NetPortConfig, gate: &Arc<PauseGate>) -> Result<Net, PortError> {
        if config.guard.is_some() && config.vhost_net != VhostNet::Off {
            return Err(PortError::Guarded { label: label(&config.name) });
        }
        let wake = convert::notifier(&EventFd::new(EFD_NONBLOCK)?)?;
        let NetPortConfig { mac, mtu, queues, .. } = *config;
        let mut own = None;
        let builder = match &config.kind {
            PortKind::Tap => VirtioNetBuilder::over(open_tap(config)?),
            PortKind::Macvtap => {
                let port =
                    Macvtap::open_by(&config.name, queues.into(), |what| opener::open_interface(what, None))?;
                VirtioNetBuilder::over(port)
            }
            PortKind::Peer(peer) => {
                let (port, file) = open_peer(&config.name, peer)?;
                own = file;
                VirtioNetBuilder::over(port)
            }
        };
        let builder = config.guard.iter().cloned().fold(builder, VirtioNetBuilder::guard);
        let builder = builder.queues(queues).limits(config.limits).wake(wake.clone());
        let builder = mac.into_iter().fold(builder, VirtioNetBuilder::mac);
        let builder = mtu.into_iter().fold(builder, VirtioNetBuilder::mtu);
        let name = &config.name;
        let device = builder.build().map_err(|source| PortError::Interface { name: name.clone(), source })?;
        let mut net = match kernel(&label(name), config)? {
            Some(kernel) => Net::in_kernel(name, device.into_device(), kernel, gate),
            None => Net::in_process(name, device, wake, gate)?,
        };
        net.own = own;
        Ok(net)
    }

    /// Creates a device whose frames the kernel moves.
    fn in_kernel(name: &str, device: NetDevice, kernel: Kernel, gate: &Arc<PauseGate>) -> Net {
        let (offered, net_config) = (kernel.offer(device.offered()), device.config());
        let config = Arc::new(Mutex::new(net_config));
        let path = Arc::new(VhostNetPath::new(&label(name), device, kernel));
        Net::new(name, offered, net_config, config, path, gate)
    }

    /// Creates a device whose frames this process moves. `device` notifies `wake`.
    fn in_process(
        name: &str,
        device: VirtioNet,
        wake: Arc<Notifier>,
        gate: &Arc<PauseGate>,
    ) -> Result<Net, PortError> {
        let (offered, net_config) = (device.offered(), device.config());
        let config = Arc::new(Mutex::new(net_config));
        let path = Arc::new(InProcess::new(&label(name), device, wake, config.clone())?);
        Ok(Net::new(name, offered, net_config, config, path, gate))
    }

    fn start_data_path(&mut self, activation: &Activation) -> Result<(), ActivateError> {
        for index in [0, 1] {
            if !activation.vrings.iter().any(|vring| vring.index == index) {
                return Err(ActivateError::NoVring(index));
            }
        }
        let end = control::control_index(activation.features, self.pairs);
        let data = activation.vrings.partition_point(|vring| vring.index < end);
        let Activation { memory, features, vrings, interrupt } = activation;
        let setup = DataSetup { memory, acked: *features, vrings: &vrings[..data], interrupt };
        self.path.start(setup).map_err(|error| ActivateError::DataPath(Box::new(error)))
    }

    fn serve_control(&mut self, activation: &mut Activation) -> Result<Arc<OnceLock<bool>>, ActivateError> {
        let (path, started) = (self.path.clone(), Arc::<OnceLock<bool>>::default());
        let served = Served { label: &self.label, pairs: self.pairs, config: &self.config, gate: &self.gate };
        self.control = control::serve(&served, activation, started.clone(), move |change| match change {
            Change::Pairs(pairs) => path.set_active_pairs(pairs),
            Change::Offloads(offloads) => path.set_offloads(offloads),
        })?;
        Ok(started)
    }

    /// Creates a device that offers `offered` and the features of the control vring.
    fn new(
        name: &str,
        offered: Features,
        net_config: NetConfig,
        config: Arc<Mutex<NetConfig>>,
        path: Arc<dyn DataPath>,
        gate: &Arc<PauseGate>,
    ) -> Net {
        let (name, label, pairs) = (name.to_owned(), label(name), net_config.max_pairs);
        let features = offered.union(OWN).union(Features::NET_CTRL_GUEST_OFFLOADS);
        info!(
            event = "port_ready", device:% = label, pairs;
            "{label}: MAC {}, {}, offering {}",
            net_config.mac,
            of(pairs.into(), "queue pair"),
            features.named(Class::Net)
        );
        let vring_sizes = control::vring_sizes(pairs);
        let (mac, gate) = (net_config.mac, gate.clone());
        let for_others = RwLock::new(Some(path.clone()));
        let handle = Handle { label: label.clone(), pairs, config: config.clone(), path: for_others };
        let handle = Arc::new(handle);
        Net {
            name,
            label,
            features,
            pairs,
            vring_sizes,
            mac,
            config,
            gate,
            control: None,
            path,
            handle,
            own: None,
        }
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        // First, so that nothing else uses the path, and with it the interface.
        self.handle.let_go();
    }
}

/// Opens a TAP interface, or creates it.
fn open_tap(config: &NetPortConfig) -> Result<Tap, PortError> {
    let NetPortConfig { name, queues, mtu, .. } = config;
    let options =
        TapOptions { name: name.clone(), queues: (*queues).into(), persist: false, mtu: *mtu, owner: None };
    let failed = |source: TapError| PortError::Interface { name: name.clone(), source: source.into() };
    Tap::open_by(options, |what| opener::open_interface(what, None)).map_err(failed)
}

/// Opens a port to a peer. Also returns the file of the own socket, if there is one.
fn open_peer(name: &str, options: &PeerOptions) -> Result<(PeerPort, Option<OwnSocket>), PortError> {
    let failed = |source| PortError::Peer { name: name.to_owned(), source };
    let (own, file) = opener::bind(options).map_err(|error| failed(error.into()))?.unzip();
    let file = file.map(OwnSocket);
    let port = PeerPort::open(options.clone(), own, opener::open_interface).map_err(failed)?;
    Ok((port, file))
}

/// Starts the log lines of the device with interface `name`.
fn label(name: &str) -> String {
    format!("net {name}")
}

/// Opens the kernel's vhost-net, if it is to move the frames and can.
fn kernel(label: &str, config: &NetPortConfig) -> Result<Option<Kernel>, PortError> {
    if config.vhost_net == VhostNet::Off {
        return Ok(None);
    }
    match Kernel::open(config.queues) {
        Ok(kernel) => Ok(Some(kernel)),
        Err(error) if config.vhost_net == VhostNet::On => {
            warn!(
                event = "vhost_net_not_used", device:% = label;
                "{label}: this process moves the frames, not the kernel: {}", error_chain(&error)
            );
            Ok(None)
        }
        Err(source) => Err(PortError::VhostNet { label: label.to_owned(), source }),
    }
}

impl VirtioDevice for Net {
    fn device_id(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn kind(&self) -> DeviceKind {
        DeviceKind::Net
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn label(&self) -> &str {
        &self.label
    }

    fn handle(&self) -> Arc<dyn DeviceHandle> {
        self.handle.clone()
    }

    fn mac(&self) -> Option<Mac> {
        Some(self.mac)
    }

    fn features(&self) -> Features {
        self.features
    }

    fn vring_sizes(&self) -> &[u16] {
        &self.vring_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = *self.config.lock().unwrap_or_else(PoisonError::into_inner);
        copy_config(&config.to_bytes(), offset, data);
    }

    /// Starts the control vring first, so that it has its thread even if the data path fails.
    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let started = self.serve_control(&mut activation)?;
        let result = self.start_data_path(&activation);
        if result.is_err() {
            self.path.stop();
        }
        let _ = started.set(result.is_ok());
        result
    }

    fn reset(&mut self) {
        self.control = None;
        self.path.stop();
        self.config.lock().unwrap_or_else(PoisonError::into_inner).mac = self.mac;
    }
}

#[cfg(test)]
mod guard_tests;
#[cfg(test)]
pub(crate) mod tests;
#[cfg(test)]
mod trouble_tests;
