//! The command line. Follows the back-end program conventions of the vhost-user specification.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use log::LevelFilter;
use volt_net::config::{MIN_MTU, Mac};
use volt_net::limiter::Rate;
use volt_net::port::peer_options::{DatagramOptions, PeerOptions, StreamOptions};
use volt_program::logging;
use volt_program::watch::interval;
use volt_virtio::ring::MAX_RING_SIZE;

use crate::capture::options::Options as CaptureOptions;
use crate::filter::options::{FilterOptions, PolicyCommand};
use crate::metrics::address::Address;
use crate::policy::options::Request as PolicyRequest;
use crate::xdp::options::{Helper as XdpHelper, XdpArg, XskFd};

/// The value of `--control` for a daemon without a control socket.
pub(crate) const NO_CONTROL: &str = "none";

/// Highest number of queue pairs.
pub(crate) const MAX_PAIRS: usize = volt_net::builder::MAX_PAIRS as usize;

/// Serve a virtual machine's network device over vhost-user: on a TAP or macvtap interface of the host, on an
/// interface by AF_XDP, or on the socket of another program.
#[derive(Debug, Parser)]
#[command(name = "volt-netd", version, max_term_width = 100, args_conflicts_with_subcommands = true)]
#[command(group = ArgGroup::new("port").args([
    "tap", "tap_fd", "macvtap", "xdp", "xsk_fd", "stream", "dgram",
]))]
#[command(group = ArgGroup::new("endpoint").args(["socket", "fd"]))]
#[command(after_help = "\
Examples:
  volt-netd --tap tap0 --socket /run/volt/net0.sock
  volt-netd --tap tap0 --queues 4 --socket /run/volt/net0.sock --socket-group kvm --socket-mode 0660
  volt-netd --macvtap mv0 --socket /run/volt/net0.sock
  volt-netd --xdp eth1 --socket /run/volt/net0.sock
  volt-netd --stream /run/user/1000/passt.sock --socket /run/user/1000/net0.sock
  volt-netd --tap tap0 --socket /run/volt/net0.sock --supervise
  volt-netd ctl status --watch 1
  volt-netd ctl --interface tap0 limits --rx-rate 100Mbit --tx-rate none
  volt-netd ctl capture --out - | tcpdump -r -
  volt-netd --take-over /run/volt/tap0.ctl --supervise
  volt-netd check --tap tap0
  volt-netd policy check agent.toml

An existing TAP interface is used as it is. A missing one is created and set up, and removed when
volt-netd ends. The daemon serves one front-end at a time; when it disconnects, the daemon waits for
the next one.

Exit status: 0 after SIGTERM, SIGINT, SIGHUP or another termination signal, a hand-over, or the
end of the connection given by --fd; 1 for errors; 2 for a wrong command line; 5 for a sandbox
violation.")]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,

    /// TAP interface to use; it is created if it does not exist
    #[arg(long, value_name = "NAME")]
    pub(crate) tap: Option<String>,

    /// Inherited TAP descriptors, one for each queue pair; needs no privilege
    #[arg(long, value_name = "N[,N...]", value_delimiter = ',')]
    pub(crate) tap_fd: Vec<i32>,

    /// macvtap interface to use; the guest gets its MAC address
    #[arg(long, value_name = "NAME")]
    pub(crate) macvtap: Option<String>,

    /// Interface to use by AF_XDP, for the guest alone; 'queue' is the first queue, and 'mode' is auto,
    /// zero-copy, copy or generic
    #[arg(long, value_name = "IFACE[,queue=N][,mode=MODE]")]
    pub(crate) xdp: Option<XdpArg>,

    /// Inherited descriptors of an interface that 'volt-netd xdp-helper' has opened, for each queue pair;
    /// needs no privilege
    #[arg(long, value_name = "SOCKET:UMEM:LINK[,...]", value_delimiter = ',')]
    pub(crate) xsk_fd: Vec<XskFd>,
    /// Stream socket of a peer such as passt, gvproxy or QEMU, which gets each frame behind its length; with
    /// 'listen', the peer connects; needs no privilege
    #[arg(long, value_name = "PATH[,listen]")]
    pub(crate) stream: Option<StreamOptions>,

    /// Datagram socket of a peer, which gets a frame in each datagram, and the own socket that it sends to;
    /// with 'vfkit', the datagram VFKT goes first; needs no privilege
    #[arg(long, value_name = "PATH,local=PATH[,vfkit]")]
    pub(crate) dgram: Option<DatagramOptions>,

    /// Unix socket to listen on for a front-end; a stale one is replaced
    #[arg(long, visible_alias = "socket-path", value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,

    /// Inherited Unix socket, listening or connected
    #[arg(long, value_name = "N")]
    pub(crate) fd: Option<i32>,

    /// Connect to --socket instead of listening, and reconnect when the connection ends
    #[arg(long, conflicts_with = "fd")]
    pub(crate) client: bool,

    /// Number of queue pairs [default: 1, or that of --tap-fd or --xsk-fd]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=MAX_PAIRS as i64))]
    pub(crate) queues: Option<u16>,

    /// Maximum number of entries of a vring, a power of two
    #[arg(long, value_name = "N", default_value_t = MAX_RING_SIZE, value_parser = ring_size)]
    pub(crate) queue_size: u16,

    /// MAC address of the guest's interface, for front-ends that ask [default: that of the macvtap interface,
    /// otherwise random]
    #[arg(long, value_name = "MAC")]
    pub(crate) mac: Option<Mac>,

    /// MTU offered to the guest, and set on an interface that is created [default: the interface's]
    #[arg(
        long,
        value_name = "BYTES",
        value_parser = clap::value_parser!(u16).range(i64::from(MIN_MTU)..=65521)
    )]
    pub(crate) mtu: Option<u16>,

    /// Limit the rate at which the guest receives: bits per second, frames per second or both, each with an
    /// optional burst in bytes or frames
    #[arg(long, value_name = "Nbit[:BURST][+Npps[:BURST]]")]
    pub(crate) rx_rate: Option<Rate>,

    /// Limit the rate at which the guest sends, for example 100Mbit, 1Gbit:256K or 20kpps
    #[arg(long, value_name = "Nbit[:BURST][+Npps[:BURST]]")]
    pub(crate) tx_rate: Option<Rate>,

    #[command(flatten)]
    pub(crate) filter: FilterOptions,

    /// Poll for frames for this time before sleeping: lower latency, at the cost of CPU time; 0 disables
    /// polling
    #[arg(
        long,
        value_name = "MICROSECONDS",
        default_value_t = 0,
        value_parser = clap::value_parser!(u16).range(0..=1000)
    )]
    pub(crate) busy_poll_us: u16,

    /// Do not remove an interface that volt-netd created when volt-netd ends
    #[arg(long, conflicts_with_all = ["tap_fd", "macvtap", "xdp", "xsk_fd", "stream", "dgram"])]
    pub(crate) persist: bool,

    /// Permissions of the front-end's socket, in octal
    #[arg(long, value_name = "MODE", default_value = "0600", value_parser = mode)]
    #[arg(conflicts_with_all = ["fd", "client"])]
    pub(crate) socket_mode: u32,

    /// Group of the front-end's socket, by name or number
    #[arg(long, value_name = "GROUP", conflicts_with_all = ["fd", "client"])]
    pub(crate) socket_group: Option<String>,

    /// Unix socket for 'volt-netd ctl' and --take-over, for this user and root only, or 'none' [default:
    /// INTERFACE.ctl in $RUNTIME_DIRECTORY, /run/volt (root) or $XDG_RUNTIME_DIR/volt]
    #[arg(long, value_name = "PATH")]
    pub(crate) control: Option<PathBuf>,

    /// Replace the daemon with this control socket: take over its interface, sockets and guest while they
    /// run
    #[arg(long, value_name = "PATH", conflicts_with_all = [
        "port", "endpoint", "client", "queues", "queue_size", "mtu", "persist", "socket_mode",
        "socket_group", "control", "rx_rate", "tx_rate", "busy_poll_us",
    ])]
    pub(crate) take_over: Option<PathBuf>,

    /// Serve Prometheus metrics over HTTP at this address; a TCP address must be a loopback one, except with
    /// --metrics-public
    #[arg(long, value_name = "unix:PATH|tcp:ADDRESS:PORT")]
    pub(crate) metrics: Option<Address>,

    /// Allow other hosts to read the metrics
    #[arg(long, requires = "metrics")]
    pub(crate) metrics_public: bool,

    /// Run under a supervisor process that restarts the daemon with its state if it crashes
    #[arg(long)]
    pub(crate) supervise: bool,

    /// Confine each thread before the daemon serves a guest; use 'off' for debugging only
    #[arg(long, value_enum, default_value_t = Confinement::On)]
    pub(crate) sandbox: Confinement,

    /// Switch to this user once everything is open; requires root
    #[arg(long, value_name = "NAME")]
    pub(crate) user: Option<String>,

    /// Print the system calls that each thread may make, with the reasons, and exit
    #[arg(long, value_enum, value_name = "FORM", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "text")]
    pub(crate) print_sandbox: Option<TableForm>,

    /// Read further options from this file, if it exists: one per line without the dashes, for example
    /// 'queues=2' or 'persist'; lines that begin with '#' are comments
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,

    /// Least important level that is logged to standard error
    #[arg(long, value_enum, default_value_t = Level::Info)]
    pub(crate) log_level: Level,

    /// Format of log lines
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = LogFormat::Text)]
    pub(crate) log_format: LogFormat,

    /// Print the capabilities of this program as JSON, and exit
    #[arg(long)]
    pub(crate) print_capabilities: bool,
}

/// Commands that run instead of the daemon.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Query or control a running daemon
    Ctl {
        #[command(flatten)]
        which: Which,
        #[command(subcommand)]
        request: Ctl,
    },
    /// Print what this host provides and what volt-netd cannot do without the rest; exits with status 1 if
    /// volt-netd cannot serve
    Check {
        /// Check this TAP interface too
        #[arg(long, value_name = "NAME")]
        tap: Option<String>,
        /// Output format
        #[arg(long, value_enum, default_value_t = TableForm::Text)]
        format: TableForm,
    },
    /// Open an interface for AF_XDP with privileges, and become a program that needs none: volt-netd
    XdpHelper(XdpHelper),
    /// Check a policy file, or explain what it allows
    Policy {
        #[command(subcommand)]
        request: PolicyRequest,
    },
}

/// The daemon that a command addresses. Default: this user's only daemon.
#[derive(Debug, Args)]
pub(crate) struct Which {
    /// Interface of the daemon, if several run
    #[arg(long, short, global = true, value_name = "NAME", conflicts_with = "control")]
    pub(crate) interface: Option<String>,

    /// Control socket of the daemon [default: found automatically]
    #[arg(long, global = true, value_name = "PATH")]
    pub(crate) control: Option<PathBuf>,
}

/// Options of `ctl status`.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct StatusOptions {
    /// Print JSON
    #[arg(long, conflicts_with = "watch")]
    pub(crate) json: bool,

    /// Repeat at this interval, with frames and bits per second, until interrupted
    #[arg(long, value_name = "SECONDS", value_parser = interval)]
    pub(crate) watch: Option<Duration>,
}

/// Requests to a running daemon.
#[derive(Debug, Subcommand)]
pub(crate) enum Ctl {
    /// Print the daemon's state and counters
    Status(StatusOptions),
    /// Print the metrics, in the text format of --metrics
    Metrics,
    /// Change the rate limits while the guest runs; a limit that is not given stays
    #[command(group = ArgGroup::new("change").args(["rx_rate", "tx_rate"]).required(true).multiple(true))]
    Limits {
        /// Limit the rate at which the guest receives: a value of the daemon's --rx-rate, or none
        #[arg(long, value_name = "RATE")]
        rx_rate: Option<Rate>,
        /// Limit the rate at which the guest sends
        #[arg(long, value_name = "RATE")]
        tx_rate: Option<Rate>,
    },
    /// Capture the guest's frames as pcapng, for tcpdump and Wireshark
    Capture(CaptureOptions),
    /// Query or replace the policy of a daemon with --guard or --policy
    Policy {
        #[command(subcommand)]
        command: PolicyCommand,
    },
}

impl Cli {
    /// Number of queue pairs of a daemon that starts without a predecessor's state.
    pub(crate) fn pairs(&self) -> u16 {
        let fds = u16::try_from(self.tap_fd.len() + self.xsk_fd.len()).ok().filter(|fds| *fds > 0);
        fds.or(self.queues).unwrap_or(1)
    }

    /// Whether the interface is used by AF_XDP. The guest has its MAC address.
    pub(crate) fn has_xdp(&self) -> bool {
        self.xdp.is_some() || !self.xsk_fd.is_empty()
    }

    /// The peer, if frames go to one.
    pub(crate) fn peer(&self) -> Option<PeerOptions> {
        let stream = self.stream.clone().map(PeerOptions::Stream);
        stream.or_else(|| self.dgram.clone().map(PeerOptions::Datagram))
    }
}

/// Whether the daemon is confined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Confinement {
    /// Each thread may only make the system calls of its list, without files and capabilities
    On,
    /// The daemon keeps all rights of its user
    Off,
}

/// Output formats of a table.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum TableForm {
    /// Plain text
    Text,
    /// JSON
    Json,
}

/// Log levels.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Level {
    /// Nothing
    Off,
    /// Errors that end the daemon
    Error,
    /// Problems that need attention
    Warn,
    /// A few lines for each connection
    Info,
    /// Every vhost-user message
    Debug,
    /// Everything
    Trace,
}

impl From<Level> for LevelFilter {
    fn from(level: Level) -> LevelFilter {
        match level {
            Level::Off => LevelFilter::Off,
            Level::Error => LevelFilter::Error,
            Level::Warn => LevelFilter::Warn,
            Level::Info => LevelFilter::Info,
            Level::Debug => LevelFilter::Debug,
            Level::Trace => LevelFilter::Trace,
        }
    }
}

/// Log formats.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum LogFormat {
    /// Plain text
    Text,
    /// One JSON object per line, with the name of the event
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

fn ring_size(text: &str) -> Result<u16, String> {
    let size = text.parse().ok().filter(|size: &u16| size.is_power_of_two() && *size <= MAX_RING_SIZE);
    size.ok_or_else(|| format!("a power of two from 1 to {MAX_RING_SIZE}"))
}

fn mode(text: &str) -> Result<u32, String> {
    let digits = text.strip_prefix("0o").unwrap_or(text);
    let mode = u32::from_str_radix(digits, 8).ok().filter(|mode| *mode <= 0o777);
    mode.ok_or_else(|| "permissions in octal, like 0660".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn values_are_checked() {
        let parse = |args: &[&str]| Cli::try_parse_from([&["volt-netd"], args].concat());
        assert_eq!(parse(&["--tap", "t", "--socket-path", "s"]).unwrap().socket_mode, 0o600);
        assert_eq!(parse(&["--tap-fd", "3,4", "--fd", "5"]).unwrap().tap_fd, [3, 4]);
        for wrong in [
            &["--queue-size", "100"][..],
            &["--queue-size", "65536"],
            &["--queues", "0"],
            &["--mtu", "67"],
            &["--rx-rate", "100M"],
            &["--mac", "01:00:00:00:00:00"],
            &["--socket-mode", "0999"],
            &["--tap", "a", "--tap-fd", "3"],
            &["--tap", "a", "--macvtap", "b"],
            &["--macvtap", "b", "--persist"],
            &["--xdp", "b", "--tap", "a"],
            &["--xdp", "b,mode=fast"],
            &["--xdp", "b", "--xsk-fd", "3:4:5"],
            &["--stream", "a", "--dgram", "b,local=c"],
            &["--stream", "a,connect"],
            &["--dgram", "b"],
            &["--socket", "a", "--fd", "3"],
        ] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
