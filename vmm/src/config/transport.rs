//! The transport of the virtio devices: `--transport pci|mmio`.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// The transport between the guest's drivers and the virtio devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    /// Registers announced by ACPI, and one interrupt for each device.
    Mmio,
    /// Functions on a PCI bus, with an interrupt for each vring.
    #[default]
    Pci,
}

impl fmt::Display for Transport {
    /// Writes its name in `--transport`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Transport::Mmio => "mmio",
            Transport::Pci => "pci",
        })
    }
}

/// Why a transport is refused.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("'{0}' is neither pci nor mmio")]
pub struct TransportNameError(String);

impl FromStr for Transport {
    type Err = TransportNameError;

    fn from_str(text: &str) -> Result<Transport, TransportNameError> {
        match text {
            "pci" => Ok(Transport::Pci),
            "mmio" => Ok(Transport::Mmio),
            _ => Err(TransportNameError(text.to_owned())),
        }
    }
}
