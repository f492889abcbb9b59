//! Why a device cannot be added or removed, in words for the caller.

use std::time::Duration;

use thiserror::Error;

use crate::virtio::handle::DeviceKind;
use crate::virtio::pci::slots::SlotError;

/// Why a device cannot be added or removed.
#[derive(Debug, Error)]
pub enum PlugError {
    /// The transport has no hot-plug.
    #[error(
        "the virtio-mmio transport cannot add or remove devices while the guest runs: start volt-vmm with \
         --transport pci"
    )]
    Mmio,
    /// The name is taken.
    #[error("a {} {name} exists already", kind.name())]
    Taken {
        /// Kind of the device.
        kind: DeviceKind,
        /// Its name.
        name: String,
    },
    /// No such device.
    #[error("there is no {} {name}: {}", kind.name(), there_are(names))]
    Absent {
        /// Kind of the device.
        kind: DeviceKind,
        /// The name or number in the request.
        name: String,
        /// The names of all devices of this kind.
        names: Vec<String>,
    },
    /// The bus cannot take the device.
    #[error(transparent)]
    Slot(#[from] SlotError),
    /// The machine ends.
    #[error("the machine ends")]
    Ended,
    /// The guest did not eject the device.
    #[error(
        "the guest has not released {} {name} within {} s: it may still do so; the request can be repeated",
        kind.name(), waited.as_secs()
    )]
    Late {
        /// Kind of the device.
        kind: DeviceKind,
        /// Its name.
        name: String,
        /// The time that the guest had.
        waited: Duration,
    },
}

/// Lists the names and numbers in a sentence.
fn there_are(names: &[String]) -> String {
    match names {
        [] => "there are none".to_owned(),
        [one] => format!("there is {one:?}, or 0"),
        [.., _] => format!("they are {names:?}, or 0 to {} in this order", names.len() - 1),
    }
}
