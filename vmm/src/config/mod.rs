//! The configuration of a virtual machine as plain data, and the parsers of its options.
//!
//! The command line fills a [`VmConfig`], which the builder reads. The API parses the options of a device to
//! add with the same code ([`DiskConfig`], [`NetDeviceConfig`]). Nothing here opens a file.
//!
//! | module | holds |
//! |---|---|
//! | [`cmdline`] | the kernel command line, completed with defaults |
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

/// The configuration of a virtual machine.
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
    /// Whether guest memory consists of huge pages.
    pub hugepages: bool,
    /// Number of vCPUs.
    pub cpus: u8,
    /// Transport of the virtio devices.
    pub transport: Transport,
    /// Disks, in the guest's order.
    pub disks: Vec<DiskConfig>,
    /// Network devices, in the guest's order.
    pub nets: Vec<NetDeviceConfig>,
    /// The serial port.
    pub serial: SerialConfig,
    /// Path of the API socket.
    pub api_socket: Option<PathBuf>,
}
