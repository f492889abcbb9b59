//! The command line, and what it says about the machine.
//!
//! `main` calls [`parse`] first of all. The options' values are read by [`config`](crate::config); what
//! `volt-vmm ctl` asks a machine that runs is in `ctl`.
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
  0      the guest powered off, you left with Ctrl-A x, or 'volt-vmm ctl shutdown'
  1      the machine could not be built, or broke
  2      the command line is wrong
  3      the guest asked for a reset (reboot, a panic with panic=-1, or a triple fault)
  4      the host's KVM cannot run this guest
  128+N  ended by signal N (SIGTERM 143, SIGINT 130, SIGHUP 129, SIGQUIT 131)
  101    a bug in this program

'volt-vmm ctl --help' tells how to ask a machine that runs.

Keys on a terminal: Ctrl-A x leaves, Ctrl-A a (or Ctrl-A twice) sends one Ctrl-A; everything else,
Ctrl-C included, goes to the guest.";

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

    /// Root file system: a raw image that becomes the first disk; adds root=/dev/vda to the command line
    #[arg(long, value_name = "FILE[,ro][,format=raw]")]
    rootfs: Option<DiskConfig>,

    /// A disk: a raw image or a block device; may be given several times. An image that looks like another
    /// format is refused without format=raw
    #[arg(long, value_name = "FILE[,ro][,format=raw]")]
    disk: Vec<DiskConfig>,

    /// Kernel command line; console=, reboot= and panic= get defaults when missing
    #[arg(long, value_name = "STRING", default_value = "", hide_default_value = true)]
    cmdline: String,

    /// Guest memory, with K, M or G behind the number
    #[arg(long, value_name = "SIZE", default_value = "512M")]
    mem: MemorySize,

    /// Number of vCPUs
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=254))]
    cpus: u8,

    /// How the guest reaches its virtio devices: pci, with an interrupt for each queue, or mmio, with one for
    /// each device
    #[arg(long, value_name = "pci|mmio", default_value_t)]
    transport: Transport,

    /// A network device; may be given several times. tap=NAME: frames go to this TAP interface, which is
    /// created when it is not there. macvtap=NAME: to this macvtap interface, whose address the guest gets.
    /// With vhost-net=on the kernel moves the frames of these two where it can; with vhost-net=require there
    /// is an error where it cannot. Without it, rx-rate=RATE and tx-rate=RATE limit what the guest receives
    /// and sends, like 100Mbit, 1Gbit:256K (with a burst in bytes), 20kpps or 100Mbit+20kpps. socket=PATH:
    /// frames go by the vhost-user back-end that listens there; one that goes is looked for until it is back,
    /// which the guest does not see; with link-down-after=SECONDS, its link is down when that takes longer
    #[arg(long, value_name = "KIND=WHERE[,mac=MAC][,mtu=N][,queues=N][,...]")]
    net: Vec<NetDeviceConfig>,

    /// Short for --net tap=NAME,...
    #[arg(long, value_name = "NAME[,...]", value_parser = NetDeviceConfig::tap)]
    tap: Option<NetDeviceConfig>,

    /// The address for --tap
    #[arg(long, value_name = "MAC", requires = "tap")]
    mac: Option<Mac>,

    /// vhost-net for --tap
    #[arg(long, value_name = "off|on|require", requires = "tap")]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "on")]
    vhost_net: Option<VhostNet>,

    /// Short for --net socket=PATH,...; may be given several times
    #[arg(long, value_name = "PATH[,...]", value_parser = NetDeviceConfig::socket)]
    net_socket: Vec<NetDeviceConfig>,

    /// How long to wait for a vhost-user back-end at start; for ever when not given
    #[arg(long, value_name = "SECONDS")]
    net_timeout: Option<u64>,

    /// Take guest memory from the host's huge pages of 2 MiB
    #[arg(long)]
    hugepages: bool,

    /// Where the guest's serial port leads: stdio, none, or file=PATH, which may be a FIFO or a terminal too.
    /// When nobody has read for a second, output is dropped and counted
    #[arg(long, value_name = "TARGET", default_value = "stdio")]
    serial: SerialConfig,

    /// Unix socket for 'volt-vmm ctl' and other clients of the API (HTTP and JSON), for this user and root
    /// only
    #[arg(long, value_name = "PATH")]
    api_socket: Option<PathBuf>,

    /// Where disks and the sockets of back-ends may be that are added while the guest runs; may be given
    /// several times. 'volt-vmm ctl add disk' needs none, as it opens the disk itself
    #[arg(long, value_name = "DIR")]
    allow_path: Vec<PathBuf>,

    /// Whether the process gives up what it does not need once the guest runs; 'off' is for finding a fault
    #[arg(long, value_enum, default_value_t = Confinement::On)]
    sandbox: Confinement,

    /// Print which system calls each thread may make, and why, and exit
    #[arg(long, value_enum, value_name = "FORM", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "text")]
    print_sandbox: Option<TableForm>,

    /// error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log_level: LevelFilter,

    /// What a line of the log looks like
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = LogFormat::Text)]
    log_format: LogFormat,

    /// Where the values of --net, --tap and --net-socket stand on the command line
    #[arg(skip)]
    net_places: Vec<usize>,
}

/// Whether a process confines itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Confinement {
    /// It does.
    On,
    /// It does not.
    Off,
}

/// How a table is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TableForm {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Forms of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For a reader
    Text,
    /// For a program: a JSON object a line, with the name of the event
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

/// A command line that asks for the table, and for no machine.
#[derive(Debug, Parser)]
#[command(version)]
struct Print {
    #[arg(long, value_enum, num_args = 0..=1, require_equals = true, default_missing_value = "text")]
    print_sandbox: TableForm,
}

/// Say what this host gives a machine, and what is lost where it does not; exits with 1 where none can run.
#[derive(Debug, Parser)]
#[command(name = "volt-vmm check", version, max_term_width = 100)]
pub struct Check {
    /// A TAP interface that is to be used
    #[arg(long, value_name = "NAME")]
    pub tap: Option<String>,

    /// How to say it
    #[arg(long, value_enum, default_value = "text")]
    pub format: TableForm,
}

/// What the command line asks for.
#[derive(Debug)]
pub enum Invocation {
    /// To see what each thread may do.
    PrintSandbox(TableForm),
    /// A machine.
    Run(Box<Args>),
    /// What this host gives.
    Check(Check),
    /// An answer of one that runs.
    Ctl(Ctl),
}

impl Args {
    /// What is to be logged.
    pub fn log_level(&self) -> LevelFilter {
        self.log_level
    }

    /// What its lines look like.
    pub fn log_format(&self) -> logging::Format {
        self.log_format.into()
    }

    /// Whether the process is to be confined, and what may be opened all the same.
    pub fn sandbox(&self) -> (Confinement, Vec<PathBuf>) {
        (self.sandbox, self.allow_path.clone())
    }

    /// The machine asked for.
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
    /// The options of [`Args::nets`], in its order.
    const NETS: [&str; 3] = ["net", "tap", "net_socket"];

    /// In the order of the command line, whichever option names them.
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

/// The whole command line, `ctl` and `check` among its subcommands, to be described.
pub fn command() -> clap::Command {
    let ctl = Ctl::command().name("ctl").bin_name("volt-vmm ctl");
    let check = Check::command().name("check").bin_name("volt-vmm check");
    Args::command().name("volt-vmm").subcommands([ctl, check]).args_conflicts_with_subcommands(true)
}

/// Reads the command line.
///
/// # Errors
///
/// clap's, which knows how to print itself and which status to exit with; `--help` and `--version` too.
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
    let matches = Args::command().try_get_matches_from(args)?;
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
