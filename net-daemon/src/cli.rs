//! The command line, following the vhost-user back-end program conventions.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use log::LevelFilter;
use volt_net::config::{MIN_MTU, Mac};
use volt_net::limiter::Rate;
use volt_program::logging;
use volt_program::watch::interval;
use volt_virtio::ring::MAX_RING_SIZE;

use crate::capture::options::Options as CaptureOptions;
use crate::metrics::address::Address;

/// What `--control` is for a daemon without a control socket.
pub(crate) const NO_CONTROL: &str = "none";

/// Most queue pairs.
pub(crate) const MAX_PAIRS: usize = volt_net::builder::MAX_PAIRS as usize;

/// Serve a virtual machine's network device over vhost-user, with a TAP or macvtap interface on the host's
/// side.
#[derive(Debug, Parser)]
#[command(name = "volt-netd", version, max_term_width = 100, args_conflicts_with_subcommands = true)]
#[command(group = ArgGroup::new("port").args(["tap", "tap_fd", "macvtap"]))]
#[command(group = ArgGroup::new("endpoint").args(["socket", "fd"]))]
#[command(after_help = "\
Examples:
  volt-netd --tap tap0 --socket /run/volt/net0.sock
  volt-netd --tap tap0 --queues 4 --socket /run/volt/net0.sock --socket-group kvm --socket-mode 0660
  volt-netd --macvtap mv0 --socket /run/volt/net0.sock
  volt-netd --tap tap0 --socket /run/volt/net0.sock --supervise
  volt-netd ctl status --watch 1
  volt-netd ctl --interface tap0 limits --rx-rate 100Mbit --tx-rate none
  volt-netd ctl capture --out - | tcpdump -r -
  volt-netd --take-over /run/volt/tap0.ctl --supervise
  volt-netd check --tap tap0

The TAP interface: one that exists is used as it is; one that does not is created, set up, and goes when
volt-netd does. The daemon serves one front-end at a time and waits for the next when one goes.

Exit status: 0 after SIGTERM, SIGINT, SIGHUP and what else tells it to end, a hand-over or the end of
the connection given by --fd, 1 for errors, 2 for a wrong command line, 5 when a thread did what is not
in its list.")]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,

    /// TAP interface to use, or to create where there is none
    #[arg(long, value_name = "NAME")]
    pub(crate) tap: Option<String>,

    /// Open TAP descriptors to use, one for each queue pair; needs no privilege
    #[arg(long, value_name = "N[,N...]", value_delimiter = ',')]
    pub(crate) tap_fd: Vec<i32>,

    /// macvtap interface to use; the guest gets its address
    #[arg(long, value_name = "NAME")]
    pub(crate) macvtap: Option<String>,

    /// Unix socket to listen on; a stale one is replaced
    #[arg(long, visible_alias = "socket-path", value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,

    /// Open Unix socket to use, listening or connected
    #[arg(long, value_name = "N")]
    pub(crate) fd: Option<i32>,

    /// Connect to --socket instead of listening, and again whenever the connection ends
    #[arg(long, conflicts_with = "fd")]
    pub(crate) client: bool,

    /// Queue pairs; with --tap-fd their number
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=MAX_PAIRS as i64))]
    pub(crate) queues: Option<u16>,

    /// Most entries that a vring may have, a power of two
    #[arg(long, value_name = "N", default_value_t = MAX_RING_SIZE, value_parser = ring_size)]
    pub(crate) queue_size: u16,

    /// MAC address of the guest's interface, for front-ends that ask; if not given, a macvtap's own or random
    #[arg(long, value_name = "MAC")]
    pub(crate) mac: Option<Mac>,

    /// MTU that the guest is told, and of an interface that is created; otherwise that of the interface
    #[arg(
        long,
        value_name = "BYTES",
        value_parser = clap::value_parser!(u16).range(i64::from(MIN_MTU)..=65521)
    )]
    pub(crate) mtu: Option<u16>,

    /// Limit of what the guest receives: bits a second, frames a second or both, with a burst in bytes or
    /// frames
    #[arg(long, value_name = "Nbit[:BURST][+Npps[:BURST]]")]
    pub(crate) rx_rate: Option<Rate>,

    /// Limit of what the guest sends, in the same way: like 100Mbit, 1Gbit:256K, 20kpps
    #[arg(long, value_name = "Nbit[:BURST][+Npps[:BURST]]")]
    pub(crate) tx_rate: Option<Rate>,

    /// Look for frames for so many microseconds before sleeping: shorter ways for more processor time; 0 is
    /// not at all
    #[arg(
        long,
        value_name = "MICROSECONDS",
        default_value_t = 0,
        value_parser = clap::value_parser!(u16).range(0..=1000)
    )]
    pub(crate) busy_poll_us: u16,

    /// An interface that is created stays when volt-netd ends
    #[arg(long, conflicts_with_all = ["tap_fd", "macvtap"])]
    pub(crate) persist: bool,

    /// Permissions of the socket, in octal
    #[arg(long, value_name = "MODE", default_value = "0600", value_parser = mode)]
    #[arg(conflicts_with_all = ["fd", "client"])]
    pub(crate) socket_mode: u32,

    /// Group that owns the socket, by name or number
    #[arg(long, value_name = "GROUP", conflicts_with_all = ["fd", "client"])]
    pub(crate) socket_group: Option<String>,

    /// Unix socket for 'volt-netd ctl' and '--take-over', for this user and root only, or 'none'; if not
    /// given, INTERFACE.ctl in $RUNTIME_DIRECTORY, /run/volt (root) or $XDG_RUNTIME_DIR/volt
    #[arg(long, value_name = "PATH")]
    pub(crate) control: Option<PathBuf>,

    /// Replace the daemon that is controlled at this socket: interface, sockets and guest are taken over
    /// while they run
    #[arg(long, value_name = "PATH", conflicts_with_all = [
        "port", "endpoint", "client", "queues", "queue_size", "mac", "mtu", "persist", "socket_mode",
        "socket_group", "control", "rx_rate", "tx_rate", "busy_poll_us",
    ])]
    pub(crate) take_over: Option<PathBuf>,

    /// Serve metrics over HTTP at this address, for Prometheus; without --metrics-public a loopback one
    #[arg(long, value_name = "unix:PATH|tcp:ADDRESS:PORT")]
    pub(crate) metrics: Option<Address>,

    /// Let other hosts read the metrics
    #[arg(long, requires = "metrics")]
    pub(crate) metrics_public: bool,

    /// Keep a parent process that starts the daemon again where it was, should it die
    #[arg(long)]
    pub(crate) supervise: bool,

    /// Whether the daemon gives up what it does not need once it serves; 'off' is for finding a fault
    #[arg(long, value_enum, default_value_t = Confinement::On)]
    pub(crate) sandbox: Confinement,

    /// Serve as this user, once everything is open; takes root
    #[arg(long, value_name = "NAME")]
    pub(crate) user: Option<String>,

    /// Print which system calls each thread may make, and why, and exit
    #[arg(long, value_enum, value_name = "FORM", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "text")]
    pub(crate) print_sandbox: Option<TableForm>,

    /// Read further options from this file, if there is one: each a line without the dashes, like
    /// 'queues=2' or 'persist'; a line that begins with '#' is a comment
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,

    /// How much to log to standard error
    #[arg(long, value_enum, default_value_t = Level::Info)]
    pub(crate) log_level: Level,

    /// What a line of the log looks like
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = LogFormat::Text)]
    pub(crate) log_format: LogFormat,

    /// Print what this program can do, as JSON, and exit
    #[arg(long)]
    pub(crate) print_capabilities: bool,
}

/// What is done instead of serving.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Talk to a daemon that runs
    Ctl {
        #[command(flatten)]
        which: Which,
        #[command(subcommand)]
        request: Ctl,
    },
    /// Say what this host gives, and what is lost where it does not; exits with 1 where nothing can be served
    Check {
        /// A TAP interface that is to be used
        #[arg(long, value_name = "NAME")]
        tap: Option<String>,
        /// How to say it
        #[arg(long, value_enum, default_value_t = TableForm::Text)]
        format: TableForm,
    },
}

/// Which daemon is talked to: the only one of this user, if nothing is given.
#[derive(Debug, Args)]
pub(crate) struct Which {
    /// Interface of the daemon, where several run
    #[arg(long, short, global = true, value_name = "NAME", conflicts_with = "control")]
    pub(crate) interface: Option<String>,

    /// Control socket of the daemon; if not given, it is looked for
    #[arg(long, global = true, value_name = "PATH")]
    pub(crate) control: Option<PathBuf>,
}

/// How its status is printed.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct StatusOptions {
    /// As JSON, for programs
    #[arg(long, conflicts_with = "watch")]
    pub(crate) json: bool,

    /// Again every so many seconds, with frames and bits a second, until interrupted
    #[arg(long, value_name = "SECONDS", value_parser = interval)]
    pub(crate) watch: Option<Duration>,
}

/// What a running daemon is asked.
#[derive(Debug, Subcommand)]
pub(crate) enum Ctl {
    /// Print what the daemon serves and has counted
    Status(StatusOptions),
    /// Print metrics, in the text format that --metrics serves
    Metrics,
    /// Change the rate limits while the guest runs; what is not given stays as it is
    #[command(group = ArgGroup::new("change").args(["rx_rate", "tx_rate"]).required(true).multiple(true))]
    Limits {
        /// What the guest receives, as for the daemon's own --rx-rate, or none
        #[arg(long, value_name = "RATE")]
        rx_rate: Option<Rate>,
        /// What the guest sends
        #[arg(long, value_name = "RATE")]
        tx_rate: Option<Rate>,
    },
    /// Write what the guest sends and receives as pcapng, for tcpdump and Wireshark
    Capture(CaptureOptions),
}

impl Cli {
    /// Queue pairs of a daemon that is started afresh.
    pub(crate) fn pairs(&self) -> u16 {
        let fds = u16::try_from(self.tap_fd.len()).ok().filter(|fds| *fds > 0);
        fds.or(self.queues).unwrap_or(1)
    }
}

/// Whether it is confined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Confinement {
    /// Each thread makes the system calls of its list only, without files and capabilities
    On,
    /// It keeps all that its user may do
    Off,
}

/// How a table is printed.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum TableForm {
    /// For a reader
    Text,
    /// For a program
    Json,
}

/// Names of log levels.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Level {
    /// Nothing
    Off,
    /// What ends the daemon
    Error,
    /// What somebody should look into
    Warn,
    /// The story of each connection in a few lines
    Info,
    /// Each message
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

/// Forms of the log.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum LogFormat {
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
            &["--socket", "a", "--fd", "3"],
        ] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
