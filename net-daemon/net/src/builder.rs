//! A builder for network devices, for programs that embed one.

use std::net::IpAddr;
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};
use thiserror::Error;
use volt_filter::setup::{FLOWS, Setup};
use volt_virtio::notify::{Notifier, NotifyError};

use crate::config::{MIN_MTU, Mac};
use crate::device::{DeviceOptions, NetDevice};
use crate::filter::{DeviceFilter, DeviceFilterError};
use crate::limiter::RateLimits;
use crate::port::Port;
use crate::port::tap::{Tap, TapError, TapOptions};
use crate::shared_words::WordsError;
use crate::virtio_net::VirtioNet;

/// Maximum number of queue pairs: vhost-user names a vring in 8 bits, and the control queue needs one.
pub const MAX_PAIRS: u16 = 127;

/// The reason why a device cannot be built.
#[derive(Debug, Error)]
pub enum BuildError {
    /// No queue pairs, or too many.
    #[error("{0} queue pairs: must be 1 to {MAX_PAIRS}")]
    Queues(u16),
    /// An MTU that virtio does not allow (5.1.4.1).
    #[error("an MTU of {0} bytes is less than the smallest, {MIN_MTU}")]
    Mtu(u16),
    /// The TAP interface cannot be used.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// No random bytes for an address.
    #[error("no random MAC address")]
    Random(#[source] getrandom::Error),
    /// No eventfd for the notification that the port is gone.
    #[error("cannot make an eventfd")]
    Wake(#[source] NotifyError),
    /// No memory for the counters.
    #[error(transparent)]
    Memory(#[from] WordsError),
    /// The guard.
    #[error(transparent)]
    Guard(#[from] DeviceFilterError),
}

/// Where frames go.
#[derive(Debug)]
enum Source {
    Tap(String),
    Port(Box<dyn Port>),
}

/// Builds a [`VirtioNet`]. Defaults: a random address, one queue pair, the port's MTU.
#[derive(Debug)]
pub struct VirtioNetBuilder {
    source: Source,
    mac: Option<Mac>,
    mtu: Option<u16>,
    queues: u16,
    limits: RateLimits,
    guard: Option<Vec<IpAddr>>,
    wake: Option<Arc<Notifier>>,
}

impl VirtioNetBuilder {
    /// Builds a device over the TAP interface `name`. The interface is created if it does not exist.
    pub fn new(name: impl Into<String>) -> VirtioNetBuilder {
        VirtioNetBuilder::from_source(Source::Tap(name.into()))
    }

    /// Builds a device over any port, including your own. The port must have as many queues as
    /// [`VirtioNetBuilder::queues`] sets.
    pub fn over(port: impl Port + 'static) -> VirtioNetBuilder {
        VirtioNetBuilder::from_source(Source::Port(Box::new(port)))
    }

    fn from_source(source: Source) -> VirtioNetBuilder {
        VirtioNetBuilder {
            source,
            mac: None,
            mtu: None,
            queues: 1,
            limits: RateLimits::default(),
            guard: None,
            wake: None,
        }
    }

    /// Sets the device's MAC address.
    pub fn mac(mut self, mac: Mac) -> VirtioNetBuilder {
        self.mac = Some(mac);
        self
    }

    /// Sets the MTU in bytes, for the driver and for an interface that is created.
    pub fn mtu(mut self, mtu: u16) -> VirtioNetBuilder {
        self.mtu = Some(mtu);
        self
    }

    /// Sets the number of queue pairs.
    pub fn queues(mut self, queues: u16) -> VirtioNetBuilder {
        self.queues = queues;
        self
    }

    /// Sets the rate limits. [`VirtioNet::set_limits`] changes them later.
    pub fn limits(mut self, limits: RateLimits) -> VirtioNetBuilder {
        self.limits = limits;
        self
    }

    /// Refuses frames with which the guest pretends to be another host: it has the device's MAC address and
    /// these IP addresses, at most 8. For other settings and policies, see
    /// [`NetDevice::set_filter`].
    pub fn guard(mut self, addresses: Vec<IpAddr>) -> VirtioNetBuilder {
        self.guard = Some(addresses);
        self
    }

    /// Sets the notifier for a port that is gone or a ring that is broken; see [`NetDevice::port_gone`] and
    /// [`VirtioNet::leave_out_broken`].
    pub fn wake(mut self, wake: Arc<Notifier>) -> VirtioNetBuilder {
        self.wake = Some(wake);
        self
    }

    /// Opens the port and creates the device.
    ///
    /// # Errors
    ///
    /// See [`BuildError`].
    pub fn build(self) -> Result<VirtioNet, BuildError> {
        let VirtioNetBuilder { source, mac, mtu, queues, limits, guard, wake } = self;
        if !(1..=MAX_PAIRS).contains(&queues) {
            return Err(BuildError::Queues(queues));
        }
        if let Some(mtu) = mtu.filter(|mtu| *mtu < MIN_MTU) {
            return Err(BuildError::Mtu(mtu));
        }
        let port = match source {
            Source::Tap(name) => Box::new(Tap::open(TapOptions {
                name,
                queues: queues.into(),
                persist: false,
                mtu,
                owner: None,
            })?),
            Source::Port(port) => port,
        };
        let mac = mac.or(port.mac()).map_or_else(Mac::random, Ok).map_err(BuildError::Random)?;
        let wake = wake.map_or_else(new_notifier, Ok)?;
        let options = DeviceOptions { pairs: queues, mac, mtu };
        let mut device = NetDevice::new(port, options, wake).map_err(BuildError::Memory)?;
        device.set_limits(limits);
        if let Some(addresses) = guard {
            let setup = Setup { mac: mac.0, addresses, learn: None, flows: FLOWS, policy: None };
            device.set_filter(Some(DeviceFilter::new(setup)?));
        }
        Ok(VirtioNet::new(device))
    }
}

fn new_notifier() -> Result<Arc<Notifier>, BuildError> {
    let fd = eventfd(0, EventfdFlags::CLOEXEC)
        .map_err(|errno| BuildError::Wake(NotifyError::System(errno.into())))?;
    Notifier::new(fd).map(Arc::new).map_err(BuildError::Wake)
}
