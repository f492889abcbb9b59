//! What a virtual machine is made of, as plain data, and how each option is read from text.
//!
//! The command line fills a [`VmConfig`], the builder reads it. A device that the API adds is read from the
//! same option list by the same code ([`DiskConfig`], [`NetDeviceConfig`]). Nothing here opens anything.
//!
//! | module | holds |
//! |---|---|
//! | [`cmdline`] | the kernel command line: what is added to the user's |
//! | [`disk`] | `--disk` |
//! | [`memory`] | `--mem` |
//! | [`net`] | `--net`, `--tap`, `--net-socket` |
//! | [`serial`] | `--serial` |
//! | [`transport`] | `--transport` |
#![forbid(unsafe_code)]

use std::path::PathBuf;

pub mod cmdline;
pub mod disk;
pub mod memory;
pub mod net;
pub mod serial;
pub mod transport;

pub use disk::DiskConfig;
pub use net::{MAX_QUEUE_PAIRS, NetDeviceConfig, NetPortConfig, NetSocketConfig, PortKind, VhostNet};
pub use serial::SerialConfig;
pub use transport::Transport;

/// A whole virtual machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmConfig {
    /// A bzImage, or an uncompressed vmlinux with a PVH entry point.
    pub kernel: PathBuf,
    /// The initial RAM file system.
    pub initramfs: Option<PathBuf>,
    /// The complete kernel command line.
    pub cmdline: String,
    /// Guest memory in bytes.
    pub memory: u64,
    /// Guest memory of huge pages.
    pub hugepages: bool,
    /// Number of vCPUs.
    pub cpus: u8,
    /// How the guest reaches disks, networks and what else is virtio.
    pub transport: Transport,
    /// Disks in the order in which the guest names them.
    pub disks: Vec<DiskConfig>,
    /// Network devices in the order in which the guest names them.
    pub nets: Vec<NetDeviceConfig>,
    /// The serial port.
    pub serial: SerialConfig,
    /// Where the API is served.
    pub api_socket: Option<PathBuf>,
}
