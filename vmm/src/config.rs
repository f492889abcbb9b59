//! What a virtual machine is made of, as plain data: the command line fills it, the builder reads it.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use volt_net::net::config::Mac;
use volt_net::net::limiter::RateLimits;

/// One `--disk` or `--rootfs`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskConfig {
    /// The image, a raw file or a block device.
    pub path: PathBuf,
    /// The guest may only read.
    pub read_only: bool,
    /// The user says that it is raw, whatever its first bytes look like.
    pub raw: bool,
}

/// One `--net`, `--tap` or `--net-socket`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetDeviceConfig {
    /// Frames go to an interface of the host from here.
    Port(NetPortConfig),
    /// They go by a vhost-user back-end.
    Socket(NetSocketConfig),
}

impl NetDeviceConfig {
    /// Its interface, or the path of its socket.
    pub fn name(&self) -> String {
        match self {
            NetDeviceConfig::Port(port) => port.name.clone(),
            NetDeviceConfig::Socket(socket) => socket.socket.display().to_string(),
        }
    }
}

/// A kind of interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortKind {
    /// A TAP interface: used when it is there, created when not.
    Tap,
    /// A macvtap interface, which is there.
    Macvtap,
}

impl PortKind {
    /// As `--net` names it.
    pub fn name(self) -> &'static str {
        match self {
            PortKind::Tap => "tap",
            PortKind::Macvtap => "macvtap",
        }
    }
}

/// Whether the kernel's vhost-net moves an interface's frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VhostNet {
    /// This process does.
    #[default]
    Off,
    /// The kernel does where it can, otherwise this process.
    On,
    /// The kernel does, or there is no device.
    Require,
}

/// A network device over an interface of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetPortConfig {
    /// What the interface is.
    pub kind: PortKind,
    /// Its name.
    pub name: String,
    /// The guest's address; otherwise the macvtap's own, or random.
    pub mac: Option<Mac>,
    /// The MTU the guest is told; otherwise the interface's.
    pub mtu: Option<u16>,
    /// Queue pairs, 1 or more.
    pub queues: u16,
    /// Who moves the frames.
    pub vhost_net: VhostNet,
    /// How many of them.
    pub limits: RateLimits,
}

/// A network device served by a vhost-user back-end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetSocketConfig {
    /// The back-end's listening Unix socket.
    pub socket: PathBuf,
    /// The guest's address; otherwise the back-end's, otherwise random.
    pub mac: Option<Mac>,
    /// The MTU the guest is told; otherwise the back-end's.
    pub mtu: Option<u16>,
    /// Queue pairs, 1 or more.
    pub queues: u16,
    /// How long to wait for the back-end at start; `None` waits for ever.
    pub timeout: Option<Duration>,
    /// The guest sees its link down when the back-end is away that long; `None` never shows it.
    pub link_down_after: Option<Duration>,
}

/// Where the guest's serial port leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SerialConfig {
    /// This process's standard input and output.
    Stdio,
    /// There is no serial port.
    None,
    /// Output into a file, no input.
    File(PathBuf),
}

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
