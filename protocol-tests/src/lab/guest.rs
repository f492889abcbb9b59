//! Guests: kernel, size and program, and the command lines that boot them.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::traffic::{GUEST, HOST};
use super::{guest_file, program};

/// Debian's kernel packages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// `linux-image-amd64`
    Generic,
    /// `linux-image-cloud-amd64`
    Cloud,
}

/// The forms in which a kernel is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Image {
    /// As packaged: compressed, with the Linux boot protocol's header.
    BzImage,
    /// The ELF file inside it, with a PVH entry.
    Vmlinux,
}

/// The executor of a QEMU guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accel {
    /// QEMU's emulation.
    Tcg,
    /// KVM.
    Kvm,
}

/// The transport of a volt-vmm guest's virtio devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transport {
    /// virtio-mmio.
    Mmio,
    /// virtio-pci.
    Pci,
}

impl Transport {
    /// Returns the name for volt-vmm's `--transport`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mmio => "mmio",
            Self::Pci => "pci",
        }
    }
}

/// A guest.
#[derive(Clone, Debug)]
pub struct Spec {
    /// The kernel package.
    pub flavour: Flavour,
    /// The form of the kernel.
    pub image: Image,
    /// Virtual processors.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory: u32,
    /// Transport under volt-vmm.
    pub transport: Transport,
    /// Kernel options besides those of every guest; they set how much the kernel prints.
    pub kernel_options: &'static str,
    /// The kernel parameter `ip=`; empty for a guest that configures its network itself.
    pub network: String,
    /// Another initramfs than that of `scripts/setup`.
    pub initramfs: Option<PathBuf>,
    /// Shell words for the guest's `volt.run` (`scripts/guest/init`); no double quotes.
    pub run: String,
}

impl Spec {
    /// Returns a guest with a generic kernel as packaged, two processors, 512 MiB and virtio-mmio.
    pub fn new(run: &str) -> Self {
        Self {
            flavour: Flavour::Generic,
            image: Image::BzImage,
            cpus: 2,
            memory: 512,
            transport: Transport::Mmio,
            kernel_options: "quiet",
            network: format!("ip={GUEST}::{HOST}:255.255.255.0:volt:eth0:off"),
            initramfs: None,
            run: run.into(),
        }
    }

    fn directory(&self) -> &'static str {
        match self.flavour {
            Flavour::Generic => "generic",
            Flavour::Cloud => "cloud",
        }
    }

    fn kernel(&self) -> PathBuf {
        let file = match self.image {
            Image::BzImage => "vmlinuz",
            Image::Vmlinux => "vmlinux",
        };
        guest_file(self.directory()).join(file)
    }

    fn initramfs(&self) -> PathBuf {
        let usual = || guest_file(&format!("initramfs-{}", self.directory()));
        self.initramfs.clone().unwrap_or_else(usual)
    }

    fn command_line(&self) -> String {
        // The kernel's self-tests of ciphers are hard on an emulated processor, and seen to hang one of QEMU
        // 7.2's.
        format!("console=ttyS0 mitigations=off cryptomgr.notests {}", self.parameters().join(" "))
    }

    /// Returns the kernel parameters of every guest.
    fn parameters(&self) -> [String; 4] {
        let Self { run, kernel_options, network, .. } = self;
        [(*kernel_options).to_owned(), "panic=-1".to_owned(), network.clone(), format!("volt.run=\"{run}\"")]
    }

    /// Returns a command for User-mode Linux with one processor and a network device at a vhost-user socket.
    /// It is a process that traces its children: it runs in a separate PID namespace, so that they end with
    /// it in any case.
    pub fn uml(&self, socket: &Path) -> Command {
        let mut command = Command::new("unshare");
        command
            .args(["--pid", "--fork", "--kill-child"])
            .arg(guest_file("uml/linux.uml"))
            .arg(format!("mem={}M", self.memory))
            .arg(format!("initrd={}", guest_file("initramfs-uml").display()))
            .args(["con=null", "con0=null,fd:1"])
            .arg(format!("virtio_uml.device={}:1", socket.display()))
            .args(self.parameters());
        command
    }

    /// Returns a command for QEMU, with `network` for the two options of its network device.
    pub fn qemu(&self, accel: Accel, network: &QemuNet) -> Command {
        let mut command = Command::new("qemu-system-x86_64");
        match accel {
            Accel::Tcg => command.args(["-accel", "tcg,thread=multi", "-cpu", "max"]),
            Accel::Kvm => command.args(["-accel", "kvm", "-cpu", "host"]),
        };
        let Self { cpus, memory, .. } = self;
        command
            .args(["-nodefaults", "-vga", "none", "-display", "none", "-serial", "stdio"])
            // A panic must not hide in a successful second boot.
            .arg("-no-reboot")
            .args(["-smp", &cpus.to_string(), "-m", &memory.to_string()])
            .arg("-object")
            .arg(format!("memory-backend-memfd,id=mem,size={memory}M,share=on"))
            .args(["-numa", "node,memdev=mem"])
            .args(network.options())
            .arg("-kernel")
            .arg(self.kernel())
            .arg("-initrd")
            .arg(self.initramfs())
            // On a busy machine an emulated timer can fail the kernel's check at boot, which then panics.
            .args(["-append", &format!("no_timer_check {}", self.command_line())]);
        command
    }

    /// Returns a command for volt-vmm, with one network device of `pairs` queue pairs behind a socket.
    pub fn vmm(&self, socket: &Path, pairs: u16) -> Command {
        self.vmm_net(&[&format!("socket={},queues={pairs}", socket.display())])
    }

    /// Returns a command for volt-vmm, with a `--net` for each of `nets`.
    pub fn vmm_net(&self, nets: &[&str]) -> Command {
        let mut command = Command::new(program("volt-vmm"));
        command
            .arg("--kernel")
            .arg(self.kernel())
            .arg("--initramfs")
            .arg(self.initramfs())
            .args(["--cmdline", &self.command_line()])
            .args(["--mem", &format!("{}M", self.memory), "--cpus", &self.cpus.to_string()])
            .args(["--transport", self.transport.name()])
            .args(nets.iter().flat_map(|net| ["--net", net]));
        command
    }
}

/// A QEMU guest's network device.
#[derive(Clone, Debug)]
pub enum QemuNet {
    /// Served by a vhost-user back-end.
    VhostUser {
        /// The back-end's socket.
        socket: PathBuf,
        /// Queue pairs.
        pairs: u16,
        /// Properties of the device, as `name=value` separated by commas.
        properties: String,
    },
    /// QEMU's own TAP device, for comparison: it shows faults of the lab.
    Tap {
        /// The interface.
        name: String,
        /// Whether vhost-net moves the frames.
        vhost: bool,
        /// Properties of the device, as `name=value` separated by commas.
        properties: String,
    },
}

impl QemuNet {
    fn options(&self) -> Vec<String> {
        match self {
            Self::VhostUser { socket, pairs, properties } => {
                let multi_queue = if *pairs > 1 { ",mq=on" } else { "" };
                vec![
                    "-chardev".into(),
                    format!("socket,id=c0,path={}", socket.display()),
                    "-netdev".into(),
                    format!("vhost-user,id=n0,chardev=c0,queues={pairs}"),
                    "-device".into(),
                    format!("virtio-net-pci,netdev=n0{multi_queue},romfile=,{properties}"),
                ]
            }
            Self::Tap { name, vhost, properties } => vec![
                "-netdev".into(),
                format!(
                    "tap,id=n0,ifname={name},script=no,downscript=no{}",
                    if *vhost { ",vhost=on" } else { "" }
                ),
                "-device".into(),
                format!("virtio-net-pci,netdev=n0,romfile=,{properties}"),
            ],
        }
    }
}
