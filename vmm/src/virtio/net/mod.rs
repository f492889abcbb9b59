//! The network device whose port this process holds: a TAP or macvtap interface of the host.
//!
//! [`open`] makes a network device of any kind from its configuration. A [`Net`] is the device over an interface: it
//! answers the driver, serves the control vring ([`control`]), and starts and stops a [`DataPath`] for the rest:
//!
//! | module | holds |
//! |---|---|
//! | [`control`] | the control vring of every network device, vhost-user ones too |
//! | `in_process` | frames moved by workers of this process, on `volt_net`'s device |
//! | `kernel` | frames moved by the kernel's vhost-net |
//! | `glue` | between the types of the VMM's crates and those of `volt_net` |
//!
//! Any thread of these may go while the guest's driver is there, none outlives the device.

use std::io;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

use log::{info, warn};
use serde_json::{Value, json};
use thiserror::Error;
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use volt_net::event::notify::Notifier;
use volt_net::net::builder::{BuildError, VirtioNetBuilder};
use volt_net::net::config::{Mac, NetConfig, STATUS_LINK_UP};
use volt_net::net::device::{DeviceError, NetDevice};
use volt_net::net::lifecycle::{self, Lifecycle, VirtioNet};
use volt_net::net::limiter::{LimitsChange, RateLimits};
use volt_net::port::macvtap::{Macvtap, MacvtapError};
use volt_net::virtio::features::Features;

use crate::api::Status;
use crate::config::{self, NetDeviceConfig, NetPortConfig, PortKind};
use crate::gate::Gate;
use crate::irq::Interrupt;
use crate::virtio::faults;
use crate::virtio::net::control::{Change, OWN, Served};
use crate::virtio::net::in_process::InProcess;
use crate::virtio::net::kernel::Kernel;
pub use crate::virtio::net::kernel::KernelError;
use crate::virtio::vhost_user_net::{self, VhostUserNet};
use crate::virtio::worker::Worker;
use crate::virtio::{ActivateError, Activation, VirtioDevice, Vring, copy_config};

pub mod control;
mod glue;
mod in_process;
mod kernel;

/// Why there is no network device.
#[derive(Debug, Error)]
pub enum NetError {
    /// The one behind a socket.
    #[error(transparent)]
    Socket(#[from] vhost_user_net::NetError),
    /// The one over an interface.
    #[error("network interface {name}")]
    Port {
        /// Of the interface.
        name: String,
        /// What is wrong.
        #[source]
        source: BuildError,
    },
    /// The macvtap interface cannot be used.
    #[error(transparent)]
    Macvtap(#[from] MacvtapError),
    /// The kernel cannot do what is required of it.
    #[error("{label}: vhost-net is required")]
    Kernel {
        /// The device.
        label: String,
        /// Why not.
        #[source]
        source: KernelError,
    },
    /// No thread, no eventfd.
    #[error("the host is out of resources for a network device")]
    Host(#[from] io::Error),
}

/// Why a data path did not start.
#[derive(Debug, Error)]
enum StartError {
    #[error(transparent)]
    Device(#[from] lifecycle::ActivateError),
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error("the host is out of resources")]
    Host(#[from] io::Error),
}

/// Makes the network device that `config` describes, for a machine that is paused by `gate`.
///
/// Waits for the back-end behind a socket.
///
/// # Errors
///
/// See [`NetError`].
pub fn open(config: &NetDeviceConfig, gate: &Arc<Gate>) -> Result<Box<dyn VirtioDevice>, NetError> {
    Ok(match config {
        NetDeviceConfig::Socket(config) => Box::new(VhostUserNet::connect(config, gate)?),
        NetDeviceConfig::Port(config) => Box::new(Net::open(config, gate)?),
    })
}

/// What a data path gets at `DRIVER_OK`.
struct DataSetup<'a> {
    memory: &'a GuestMemoryMmap,
    /// What the driver acknowledged.
    acked: Features,
    /// The receive and transmit vrings that are ready.
    vrings: &'a [Vring],
    interrupt: &'a Arc<dyn Interrupt>,
}

/// Whoever moves the frames of a [`Net`]. Called by a vCPU's thread and by the control vring's.
trait DataPath: Send + Sync {
    /// Serves the vrings, the first pair's alone at first. [`DataPath::stop`] follows an error too.
    fn start(&self, setup: DataSetup<'_>) -> Result<(), StartError>;

    /// Stops, so that nothing of the guest's memory is touched after the return. Without a start it does nothing.
    fn stop(&self);

    /// Lets frames come by the first `pairs` pairs and no others.
    fn set_active_pairs(&self, pairs: u16);

    /// Puts these receive offloads in force.
    fn set_offloads(&self, offloads: Features);

    /// Changes the rate limits and answers all that are in force then; `None` where frames pass elsewhere.
    fn change_limits(&self, change: LimitsChange) -> Option<RateLimits>;

    /// Touches nothing of the guest's until [`DataPath::resume`], as far as this process moves the frames.
    fn pause(&self) -> Result<(), DeviceError>;

    /// Goes on after [`DataPath::pause`].
    fn resume(&self);

    /// Limits and counters as the API shows them (`docs/api.md`); `None` where frames pass elsewhere.
    fn traffic(&self) -> Option<Traffic>;
}

/// What this process knows of the frames that it moves.
struct Traffic {
    limits: RateLimits,
    /// By vring.
    vrings: Vec<Value>,
}

/// Controls whoever moves a network device's frames, from any thread and for as long as one likes. It does not keep the
/// interface, which is closed with the device.
#[derive(Clone)]
pub struct DataControl(Arc<RwLock<Option<Arc<dyn DataPath>>>>);

impl DataControl {
    /// Changes the rate limits, at once, and answers all that are in force then.
    ///
    /// # Errors
    ///
    /// Where the kernel moves the frames, and when the device has gone.
    pub fn change_limits(&self, change: LimitsChange) -> Result<RateLimits, RateControlError> {
        let limits = self.with(|path| path.change_limits(change)).ok_or(RateControlError::Gone)?;
        limits.ok_or(RateControlError::Kernel)
    }

    /// Touches nothing of the guest's until [`DataControl::resume`], as far as this process moves the frames. What the kernel
    /// moves goes on as far as the guest has left it buffers.
    ///
    /// # Errors
    ///
    /// When a worker does not stop.
    pub fn pause(&self) -> Result<(), DeviceError> {
        self.with(|path| path.pause()).unwrap_or(Ok(()))
    }

    /// Goes on after [`DataControl::pause`]; otherwise it does nothing.
    pub fn resume(&self) {
        self.with(|path| path.resume());
    }

    /// `None` when the device has gone.
    fn with<T>(&self, act: impl FnOnce(&dyn DataPath) -> T) -> Option<T> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).as_deref().map(act)
    }

    /// The device goes. Waits for a call in progress.
    fn let_go(&self) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// The rate of a device cannot be limited here.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum RateControlError {
    /// Its frames do not come by.
    #[error(
        "the kernel's vhost-net moves this device's frames, past any limit here: use 'tc' on the interface"
    )]
    Kernel,
    /// The guest has given it back.
    #[error("the device has just been removed")]
    Gone,
}

/// A network device over an interface of the host.
pub struct Net {
    label: String,
    features: Features,
    pairs: u16,
    vring_sizes: Vec<u16>,
    /// The address after a reset; the driver may set another by the control vring.
    mac: Mac,
    config: Arc<Mutex<NetConfig>>,
    gate: Arc<Gate>,
    /// Serves the control vring, from activation to reset.
    control: Option<Worker>,
    path: Arc<dyn DataPath>,
    /// The same for others, who may outlive this device.
    data_control: DataControl,
}

impl Net {
    /// Opens the interface.
    ///
    /// # Errors
    ///
    /// See [`NetError`].
    pub fn open(config: &NetPortConfig, gate: &Arc<Gate>) -> Result<Net, NetError> {
        let gone = glue::notifier(&EventFd::new(EFD_NONBLOCK)?)?;
        let builder = match config.kind {
            PortKind::Tap => VirtioNetBuilder::new(&config.name),
            PortKind::Macvtap => VirtioNetBuilder::over(Macvtap::open(&config.name, config.queues.into())?),
        };
        let NetPortConfig { mac, mtu, queues, .. } = *config;
        let builder = builder.queues(queues).limits(config.limits).wake(gone.clone());
        let builder = mac.into_iter().fold(builder, VirtioNetBuilder::mac);
        let builder = mtu.into_iter().fold(builder, VirtioNetBuilder::mtu);
        let device =
            builder.build().map_err(|source| NetError::Port { name: config.name.clone(), source })?;
        let label = format!("net {}", config.name);
        match kernel_features(&label, config.vhost_net)? {
            Some(features) => Ok(Net::in_kernel(label, device.into_device(), features, gate)),
            None => Net::in_process(label, device, gone, gate),
        }
    }

    /// A device whose frames the kernel moves, with `kernel`'s features.
    fn in_kernel(label: String, device: NetDevice, kernel: Features, gate: &Arc<Gate>) -> Net {
        let (offered, net_config) = (Kernel::offer(kernel, device.offered()), device.config());
        let config = Arc::new(Mutex::new(net_config));
        let path = Arc::new(Kernel::new(&label, device, kernel));
        Net::new(label, offered, net_config, config, path, gate)
    }

    /// A device whose frames this process moves; `device` notifies `gone`.
    fn in_process(
        label: String,
        device: VirtioNet,
        gone: Arc<Notifier>,
        gate: &Arc<Gate>,
    ) -> Result<Net, NetError> {
        let (offered, net_config) = (device.offered(), device.config());
        let config = Arc::new(Mutex::new(net_config));
        let path = Arc::new(InProcess::new(&label, device, gone, config.clone())?);
        Ok(Net::new(label, offered, net_config, config, path, gate))
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

    /// A device that offers `offered` and what the control vring makes possible.
    fn new(
        label: String,
        offered: Features,
        net_config: NetConfig,
        config: Arc<Mutex<NetConfig>>,
        path: Arc<dyn DataPath>,
        gate: &Arc<Gate>,
    ) -> Net {
        let pairs = net_config.max_pairs;
        let features = offered.with(OWN).with(Features::CTRL_GUEST_OFFLOADS);
        info!("{label}: MAC {}, {pairs} queue pairs, offering {features}", net_config.mac);
        let vring_sizes = control::vring_sizes(pairs);
        let (mac, gate) = (net_config.mac, gate.clone());
        let data_control = DataControl(Arc::new(RwLock::new(Some(path.clone()))));
        Net { label, features, pairs, vring_sizes, mac, config, gate, control: None, path, data_control }
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        // First: then the path, and with it the interface, is nobody else's.
        self.data_control.let_go();
    }
}

/// Limits as the API shows them.
pub fn limits_json(limits: RateLimits) -> Value {
    json!({ "rx_rate": limits.rx.to_string(), "tx_rate": limits.tx.to_string() })
}

/// The features of the kernel's vhost-net, when it is to move the frames and can.
fn kernel_features(label: &str, wanted: config::VhostNet) -> Result<Option<Features>, NetError> {
    if wanted == config::VhostNet::Off {
        return Ok(None);
    }
    match kernel::probe() {
        Ok(features) => Ok(Some(features)),
        Err(error) if wanted == config::VhostNet::On => {
            warn!("{label}: frames are moved by this process, not by the kernel: {}", faults::chain(&error));
            Ok(None)
        }
        Err(source) => Err(NetError::Kernel { label: label.to_owned(), source }),
    }
}

impl VirtioDevice for Net {
    fn device_id(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn label(&self) -> &str {
        &self.label
    }

    fn status(&self) -> Status {
        let (label, config, pairs) = (self.label.clone(), self.config.clone(), self.pairs);
        let path = self.data_control.clone();
        Box::new(move || {
            let config = *config.lock().unwrap_or_else(PoisonError::into_inner);
            let mut status = json!({
                "device": label,
                "kind": "net",
                "guest_mac": config.mac.to_string(),
                "link_up": config.status & STATUS_LINK_UP != 0,
                "queue_pairs": pairs,
            });
            if let Some(Traffic { limits, vrings }) = path.with(|path| path.traffic()).flatten() {
                status["limits"] = limits_json(limits);
                status["vrings"] = vrings.into();
            }
            status
        })
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

    fn data_control(&self) -> Option<DataControl> {
        Some(self.data_control.clone())
    }

    /// The control vring first, so that it has its thread whatever becomes of the data path.
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
pub(crate) mod tests;
#[cfg(test)]
mod trouble_tests;
