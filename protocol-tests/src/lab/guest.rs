//! Guests: which kernel, how large, what it runs; and the command lines that boot it.

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

/// Who executes a QEMU guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accel {
    /// QEMU's own emulation.
    Tcg,
    /// The kernel.
    Kvm,
}

/// How a guest of volt-vmm reaches its virtio devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transport {
    /// virtio-mmio.
    Mmio,
    /// virtio-pci.
    Pci,
}

impl Transport {
    /// As volt-vmm's `--transport` names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mmio => "mmio",
            Self::Pci => "pci",
        }
    }
}

/// One guest.
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
    /// Under volt-vmm.
    pub transport: Transport,
    /// Options of the kernel beside those that every guest has: how much it says.
    pub kernel_options: &'static str,
    /// Shell words for the guest's `volt.run` (`scripts/guest/init`); no double quotes.
    pub run: String,
}

impl Spec {
    /// A generic kernel as packaged, two processors, 512 MiB, virtio-mmio.
    pub fn new(run: &str) -> Self {
        Self {
            flavour: Flavour::Generic,
            image: Image::BzImage,
            cpus: 2,
            memory: 512,
            transport: Transport::Mmio,
            kernel_options: "quiet",
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
        guest_file(&format!("initramfs-{}", self.directory()))
    }

    fn command_line(&self) -> String {
        // The kernel's self-tests of ciphers are hard on an emulated processor, and seen to hang one of QEMU
        // 7.2's.
        format!("console=ttyS0 mitigations=off cryptomgr.notests {}", self.parameters().join(" "))
    }

    /// Kernel parameters for every guest.
    fn parameters(&self) -> [String; 4] {
        let Self { run, kernel_options, .. } = self;
        [
            (*kernel_options).to_owned(),
            "panic=-1".to_owned(),
            format!("ip={GUEST}::{HOST}:255.255.255.0:volt:eth0:off"),
            format!("volt.run=\"{run}\""),
        ]
    }

    /// User-mode Linux of one processor, its network device at a vhost-user socket. It is a process with
    /// children that it traces: in a PID namespace of its own, so that they end with it however it ends.
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

    /// Under QEMU, with `network` for the two options of its network device.
    pub fn qemu(&self, accel: Accel, network: &QemuNet) -> Command {
        let mut command = Command::new("qemu-system-x86_64");
        match accel {
            Accel::Tcg => command.args(["-accel", "tcg,thread=multi", "-cpu", "max"]),
            Accel::Kvm => command.args(["-accel", "kvm", "-cpu", "host"]),
        };
        let Self { cpus, memory, .. } = self;
        command
            .args(["-nodefaults", "-vga", "none", "-display", "none", "-serial", "stdio"])
            // A panic must not hide in a second boot that goes well.
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
            // On a busy machine an emulated timer may be too late for the kernel's check at boot, which is a
            // panic.
            .args(["-append", &format!("no_timer_check {}", self.command_line())]);
        command
    }

    /// Under volt-vmm, with one network device of `pairs` queue pairs behind a socket.
    pub fn vmm(&self, socket: &Path, pairs: u16) -> Command {
        self.vmm_net(&[&format!("socket={},queues={pairs}", socket.display())])
    }

    /// Under volt-vmm, with a `--net` for each of `nets`.
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
        /// Properties of the device, `name=value` with commas between.
        properties: String,
    },
    /// QEMU's own TAP device: what shows that it is not the lab's fault.
    Tap {
        /// The interface.
        name: String,
        /// Properties of the device, `name=value` with commas between.
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
            Self::Tap { name, properties } => vec![
                "-netdev".into(),
                format!("tap,id=n0,ifname={name},script=no,downscript=no"),
                "-device".into(),
                format!("virtio-net-pci,netdev=n0,romfile=,{properties}"),
            ],
        }
    }
}
