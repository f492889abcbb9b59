//! The transport of the virtio devices: `--transport pci|mmio`.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// How the guest's drivers reach the virtio devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    /// Registers that ACPI names, and one interrupt for each device.
    Mmio,
    /// Functions of a PCI bus, with an interrupt for each vring.
    #[default]
    Pci,
}

impl fmt::Display for Transport {
    /// As `--transport` names it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Transport::Mmio => "mmio",
            Transport::Pci => "pci",
        })
    }
}

/// There is no such transport.
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
