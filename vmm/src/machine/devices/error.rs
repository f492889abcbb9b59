//! Why a device does not come or go, in words for whoever asked.

use std::time::Duration;

use thiserror::Error;

use crate::virtio::handle::DeviceKind;
use crate::virtio::pci::slots::SlotError;

/// Why a device does not come or go.
#[derive(Debug, Error)]
pub enum PlugError {
    /// The transport.
    #[error(
        "the virtio-mmio transport cannot add or remove devices while the guest runs: start volt-vmm with \
         --transport pci"
    )]
    Mmio,
    /// Two of a name.
    #[error("there is a {} {name} already", kind.name())]
    Taken {
        /// What it is.
        kind: DeviceKind,
        /// Its name.
        name: String,
    },
    /// No such device.
    #[error("there is no {} {name}: {}", kind.name(), there_are(names))]
    Absent {
        /// What was asked for.
        kind: DeviceKind,
        /// By which name or number.
        name: String,
        /// What there is.
        names: Vec<String>,
    },
    /// The bus does not take it.
    #[error(transparent)]
    Slot(#[from] SlotError),
    /// It is too late for either.
    #[error("the machine ends")]
    Ended,
    /// The guest did not eject it.
    #[error(
        "the guest has not given {} {name} back within {} s; it may still do so, and can be asked again",
        kind.name(), waited.as_secs()
    )]
    Late {
        /// What it is.
        kind: DeviceKind,
        /// Its name.
        name: String,
        /// The time it had.
        waited: Duration,
    },
}

/// How to name those that there are.
fn there_are(names: &[String]) -> String {
    match names {
        [] => "there is none at all".to_owned(),
        [one] => format!("there is {one:?}, or 0"),
        [.., _] => format!("they are {names:?}, or 0 to {} in this order", names.len() - 1),
    }
}
