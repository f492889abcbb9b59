//! The command line, and the machine that it describes.
//!
//! `main` calls [`parse`] first. [`config`](crate::config) parses the values of the options; `ctl` has the
//! commands of `volt-vmm ctl`.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{CommandFactory, FromArgMatches, Parser, ValueEnum};
use log::LevelFilter;
use volt_net::config::Mac;
use volt_program::logging;

pub use crate::cli::ctl::{AddCommand, Ctl, CtlCommand, KindArg, StatusOptions};
use crate::config::cmdline::complete_cmdline;
use crate::config::memory::MemorySize;
use crate::config::{DiskConfig, NetDeviceConfig, SerialConfig, Transport, VhostNet, VmConfig};

mod ctl;

const AFTER_HELP: &str = "\
Exit status:
  0      the guest powered off, Ctrl-A x, or 'volt-vmm ctl shutdown'
  1      the machine could not be built, or broke
  2      wrong command line
  3      the guest asked for a reset (reboot, panic with panic=-1), or a triple fault
  4      the host's KVM cannot run this guest
  5      a sandbox violation
  101    a panic: a bug in volt-vmm
  128+N  signal N ended the machine (SIGTERM 143, SIGINT 130, SIGHUP 129, SIGQUIT 131)

Keys on a terminal: Ctrl-A x ends the machine, Ctrl-A a (or Ctrl-A twice) sends one Ctrl-A.
All other keys, Ctrl-C included, go to the guest.";

/// A minimal virtual machine monitor on KVM, with virtio devices and vhost-user networking.
#[derive(Debug, Parser)]
#[command(version, after_help = AFTER_HELP)]
pub struct Args {
    /// Kernel: a bzImage (vmlinuz), or an uncompressed vmlinux with a PVH entry point
    #[arg(long, value_name = "FILE")]
    kernel: PathBuf,

    /// Initial RAM file system
    #[arg(long, value_name = "FILE")]
    initramfs: Option<PathBuf>,

    /// Root file system: a raw image, used as the first disk. Adds root=/dev/vda to the kernel command line
    #[arg(long, value_name = "FILE[,ro][,format=raw]")]
    rootfs: Option<DiskConfig>,

    /// Disk: a raw image or a block device. Repeatable. An image that looks like another format needs
    /// format=raw
    #[arg(long, value_name = "FILE[,ro][,format=raw]")]
    disk: Vec<DiskConfig>,

    /// Kernel command line. console=, reboot= and panic= are added if they are missing
    #[arg(long, value_name = "STRING", default_value = "", hide_default_value = true)]
    cmdline: String,

    /// Guest memory in bytes, or with the suffix K, M or G
    #[arg(long, value_name = "SIZE", default_value = "512M")]
    mem: MemorySize,

    /// Number of vCPUs
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=254))]
    cpus: u8,

    /// Transport of the virtio devices: pci has an interrupt for each queue, mmio one for each device
    #[arg(long, value_name = "pci|mmio", default_value_t)]
    transport: Transport,

    /// Network device. Repeatable
    ///
    /// tap=NAME: a TAP interface, created if it does not exist. macvtap=NAME: an existing macvtap interface;
    /// the guest gets its MAC address. stream=PATH[,listen]: the stream socket of a peer such as passt,
    /// gvproxy or QEMU, which gets each frame behind its length. dgram=PATH,local=PATH[,vfkit]: a peer that
    /// gets a frame in each datagram, and the own socket that it sends to. socket=PATH: a vhost-user back-end
    /// that listens there. If the back-end disappears, volt-vmm reconnects; the guest keeps running, and its
    /// link stays up.
    ///
    /// With tap= and macvtap=, vhost-net=on lets the kernel move the frames if it can, and vhost-net=require
    /// fails if it cannot. Without vhost-net and socket=, rx-rate=RATE and tx-rate=RATE limit the frames to
    /// and from the guest: 100Mbit, 1Gbit:256K (with a burst in bytes), 20kpps or 100Mbit+20kpps. Also then,
    /// guard=on,guest-ip=ADDRESS[+ADDRESS...] refuses frames with which the guest pretends to be another host
    /// than the one with these addresses.
    ///
    /// With socket=, link-down-after=SECONDS sets the guest's link down while the back-end is away for
    /// longer.
    #[arg(long, value_name = "KIND=WHERE[,mac=MAC][,mtu=N][,queues=N][,...]")]
    net: Vec<NetDeviceConfig>,

    /// Same as --net tap=NAME,...
    #[arg(long, value_name = "NAME[,...]", value_parser = NetDeviceConfig::tap)]
    tap: Option<NetDeviceConfig>,

    /// MAC address for --tap
    #[arg(long, value_name = "MAC", requires = "tap")]
    mac: Option<Mac>,

    /// vhost-net for --tap
    #[arg(long, value_name = "off|on|require", requires = "tap")]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "on")]
    vhost_net: Option<VhostNet>,

    /// Same as --net socket=PATH,... Repeatable
    #[arg(long, value_name = "PATH[,...]", value_parser = NetDeviceConfig::socket)]
    net_socket: Vec<NetDeviceConfig>,

    /// Seconds to wait for a vhost-user back-end at the start. Without it, there is no limit
    #[arg(long, value_name = "SECONDS")]
    net_timeout: Option<u64>,

    /// Take guest memory from the host's huge pages of 2 MiB
    #[arg(long)]
    hugepages: bool,

    /// Serial port of the guest: stdio, none, or file=PATH (also a FIFO or a terminal). Output that nobody
    /// reads for 1 s is dropped and counted
    #[arg(long, value_name = "TARGET", default_value = "stdio")]
    serial: SerialConfig,

    /// Unix socket of the API (HTTP and JSON), for 'volt-vmm ctl' and other clients. Only this user and root
    /// have access
    #[arg(long, value_name = "PATH")]
    api_socket: Option<PathBuf>,

    /// Directory of disks and back-end sockets that may be added while the guest runs. Repeatable. 'volt-vmm
    /// ctl add disk' does not need it, because it opens the disk itself
    #[arg(long, value_name = "DIR")]
    allow_path: Vec<PathBuf>,

    /// Confine the process before the guest runs. Use 'off' for debugging only
    #[arg(long, value_enum, default_value_t = Confinement::On)]
    sandbox: Confinement,

    /// Print the system calls that each thread may make, with the reasons, and exit
    #[arg(long, value_enum, value_name = "FORM", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "text")]
    print_sandbox: Option<TableForm>,

    /// Least important level that is logged: error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log_level: LevelFilter,

    /// Format of the log
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = LogFormat::Text)]
    log_format: LogFormat,

    /// Positions of the values of --net, --tap and --net-socket on the command line
    #[arg(skip)]
    net_places: Vec<usize>,
}

/// Whether a process confines itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Confinement {
    /// Confined
    On,
    /// Not confined
    Off,
}

/// Output format of a table or report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TableForm {
    /// Text
    Text,
    /// JSON
    Json,
}

/// Format of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Text
    Text,
    /// One JSON object a line, with the name of the event
    Json,
}

impl From<LogFormat> for logging::Format {
    fn from(format: LogFormat) -> logging::Format {
        match format {
            LogFormat::Text => logging::Format::Text,
            LogFormat::Json => logging::Format::Json,
        }
    }
}

/// A command line that prints the sandbox table and starts no machine.
#[derive(Debug, Parser)]
#[command(version)]
struct Print {
    #[arg(long, value_enum, num_args = 0..=1, require_equals = true, default_missing_value = "text")]
    print_sandbox: TableForm,
}

/// Report what this host offers a machine, and what is missing. Ends with status 1 if no machine can run
#[derive(Debug, Parser)]
#[command(name = "volt-vmm check", bin_name = "volt-vmm check", version, max_term_width = 100)]
pub struct Check {
    /// TAP interface to check
    #[arg(long, value_name = "NAME")]
    pub tap: Option<String>,

    /// Output format
    #[arg(long, value_enum, default_value = "text")]
    pub format: TableForm,
}

/// The action that the command line asks for.
#[derive(Debug)]
pub enum Invocation {
    /// Print the system calls of each thread.
    PrintSandbox(TableForm),
    /// Run a machine.
    Run(Box<Args>),
    /// Check this host.
    Check(Check),
    /// Control a running machine.
    Ctl(Ctl),
}

impl Args {
    /// Returns the least important level that is logged.
    pub fn log_level(&self) -> LevelFilter {
        self.log_level
    }

    /// Returns the format of the log.
    pub fn log_format(&self) -> logging::Format {
        self.log_format.into()
    }

    /// Returns whether to confine the process, and the directories of `--allow-path`.
    pub fn sandbox(&self) -> (Confinement, Vec<PathBuf>) {
        (self.sandbox, self.allow_path.clone())
    }

    /// Returns the configuration of the machine.
    pub fn into_config(self) -> VmConfig {
        let rootfs_read_only = self.rootfs.as_ref().map(|rootfs| rootfs.read_only);
        let nets = self.nets();
        VmConfig {
            kernel: self.kernel,
            initramfs: self.initramfs,
            cmdline: complete_cmdline(&self.cmdline, &self.serial, rootfs_read_only),
            memory: self.mem.0,
            hugepages: self.hugepages,
            cpus: self.cpus,
            transport: self.transport,
            disks: self.rootfs.into_iter().chain(self.disk).collect(),
            nets,
            serial: self.serial,
            api_socket: self.api_socket,
        }
    }
}

impl Args {
    /// The options of [`Args::nets`], in the same order.
    const NETS: [&str; 3] = ["net", "tap", "net_socket"];

    /// Returns the network devices in the order of the command line, whichever option names them.
    fn nets(&self) -> Vec<NetDeviceConfig> {
        let mut tap = self.tap.clone();
        if let Some(NetDeviceConfig::Port(tap)) = &mut tap {
            tap.mac = self.mac.or(tap.mac);
            tap.vhost_net = self.vhost_net.unwrap_or(tap.vhost_net);
        }
        let nets = self.net.iter().cloned().chain(tap).chain(self.net_socket.iter().cloned());
        let mut nets: Vec<_> = self.net_places.iter().zip(nets).collect();
        nets.sort_by_key(|(place, _)| **place);
        let mut nets: Vec<_> = nets.into_iter().map(|(_, net)| net).collect();
        for net in &mut nets {
            if let NetDeviceConfig::Socket(net) = net {
                net.timeout = self.net_timeout.map(Duration::from_secs);
            }
        }
        nets
    }
}

/// Returns the whole command line, with `ctl` and `check` as subcommands.
pub fn command() -> clap::Command {
    let ctl = Ctl::command().name("ctl").bin_name("volt-vmm ctl");
    let check = Check::command().name("check").bin_name("volt-vmm check");
    Args::command().name("volt-vmm").subcommands([ctl, check]).args_conflicts_with_subcommands(true)
}

/// Reads the command line.
///
/// # Errors
///
/// An error of clap, which prints itself and has an exit status. `--help` and `--version` are errors, too.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Invocation, clap::Error> {
    let args: Vec<OsString> = args.into_iter().collect();
    if args.get(1).is_some_and(|word| word == "ctl") {
        return Ctl::try_parse_from(&args[1..]).map(Invocation::Ctl);
    }
    if args.get(1).is_some_and(|word| word == "check") {
        return Check::try_parse_from(&args[1..]).map(Invocation::Check);
    }
    if args.get(1).is_some_and(|word| word.as_encoded_bytes().starts_with(b"--print-sandbox")) {
        return Print::try_parse_from(&args).map(|print| Invocation::PrintSandbox(print.print_sandbox));
    }
    let matches = command().try_get_matches_from(args)?;
    let mut args = Args::from_arg_matches(&matches)?;
    if let Some(form) = args.print_sandbox {
        return Ok(Invocation::PrintSandbox(form));
    }
    let places = Args::NETS.iter().filter_map(|option| matches.indices_of(option));
    args.net_places = places.flatten().collect();
    Ok(Invocation::Run(Box::new(args)))
}

#[cfg(test)]
mod tests;
