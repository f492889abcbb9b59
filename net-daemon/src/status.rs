//! A daemon's status, for `volt-netd ctl status` and for metrics.
//!
//! [`Server::status`](crate::server::Server) creates it. Its JSON form is documented for programs: they must
//! accept a status without fields that were added later.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use volt_net::counters::Counters;
use volt_net::port::HEADER_LEN;
use volt_vhost_user::vring::VringStanding;

/// The program's version.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The current status of a daemon.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Status {
    /// Name and version.
    pub(crate) program: String,
    /// Process ID of the serving process.
    pub(crate) pid: i32,
    /// Age of that process.
    pub(crate) uptime_seconds: u64,
    pub(crate) supervised: bool,
    /// Process ID of the supervisor.
    #[serde(default)]
    pub(crate) supervisor_pid: Option<i32>,
    /// How often the supervisor has restarted the worker.
    pub(crate) restarts: u64,
    /// Number of hand-overs since the first daemon started.
    pub(crate) take_overs: u64,
    /// Whether each thread is confined.
    #[serde(default)]
    pub(crate) sandbox: bool,
    pub(crate) interface: String,
    /// Whether the interface is set up.
    #[serde(default)]
    pub(crate) interface_up: bool,
    /// The source of front-ends, as text.
    pub(crate) endpoint: String,
    pub(crate) offered_mac: String,
    pub(crate) queue_pairs: usize,
    pub(crate) limits: Limits,
    pub(crate) busy_poll_us: u16,
    /// The running capture.
    #[serde(default)]
    pub(crate) capture: Option<Capture>,
    /// The filter of the guest's frames.
    #[serde(default)]
    pub(crate) filter: Option<Filter>,
    /// The connected front-end.
    pub(crate) front_end: Option<FrontEnd>,
    /// The connected front-end's vrings.
    #[serde(default)]
    pub(crate) vrings: Vec<Vring>,
    pub(crate) counters: Vec<PairCounters>,
}

/// The rate limits in force, in the command line's syntax.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Limits {
    pub(crate) rx_rate: String,
    pub(crate) tx_rate: String,
}

/// A running capture.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Capture {
    /// The captured queue pair, if only one.
    pub(crate) pair: Option<usize>,
    pub(crate) frames: u64,
    /// Number of frames lost because the reader was too slow.
    pub(crate) lost: u64,
}

/// A filter.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Filter {
    /// The guest's MAC address.
    pub(crate) mac: String,
    /// The IP addresses that the guest may use: given and learnt.
    pub(crate) addresses: Vec<String>,
    /// Whether further addresses are learnt.
    pub(crate) learns: bool,
    /// The mode of the policy; `None` without one.
    pub(crate) policy: Option<String>,
    /// Number of flows in the table, and its size.
    pub(crate) flows: u64,
    pub(crate) flows_max: u64,
    /// Refused frames by direction and reason. With the mode `log`, what would have been refused, too.
    pub(crate) refused: BTreeMap<String, BTreeMap<String, u64>>,
}

/// A connected front-end.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct FrontEnd {
    /// Names of the features that the driver has acknowledged; `None` before that.
    pub(crate) features: Option<String>,
    pub(crate) memory_bytes: u64,
    pub(crate) memory_regions: usize,
    /// Whether the guest does not seem to use this memory: the front-end does not share the guest's.
    #[serde(default)]
    pub(crate) memory_unshared: bool,
    /// Whether written pages are logged for a live migration.
    #[serde(default)]
    pub(crate) dirty_logging: bool,
    /// Queue pairs that move frames.
    pub(crate) serving_pairs: Vec<usize>,
    pub(crate) broken_vrings: Vec<usize>,
}

/// The role of a vring in the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum VringKind {
    Rx,
    Tx,
    Control,
}

impl VringKind {
    /// Returns the name in a status.
    pub(crate) fn name(self) -> &'static str {
        match self {
            VringKind::Rx => "rx",
            VringKind::Tx => "tx",
            VringKind::Control => "control",
        }
    }
}

/// One vring.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Vring {
    /// Its number.
    pub(crate) vring: usize,
    pub(crate) kind: VringKind,
    pub(crate) state: VringStanding,
    /// Number of entries, while it runs.
    pub(crate) size: Option<u16>,
    /// Number of chains that the driver has made available and that are not returned yet, while it runs.
    pub(crate) available: Option<u16>,
    /// It waits for buffers of the guest, for room in the interface, or for a rate limit.
    pub(crate) waits: bool,
    /// Time since a check saw progress, accurate to the interval of checks; `None` before the first check.
    pub(crate) idle_seconds: Option<u64>,
    /// It has work, waits for nothing, and makes no progress: a bug of the daemon.
    pub(crate) no_progress: bool,
}

/// Counters of a queue pair since its first daemon started.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PairCounters {
    pub(crate) pair: usize,
    /// Values by the names in [`volt_net::counters::Counters`].
    #[serde(flatten)]
    pub(crate) counts: BTreeMap<String, u64>,
}

/// Returns the reasons for drops in one direction, `rx` (to the guest) or `tx`. They are the suffixes of the
/// counters' names.
pub(crate) fn drop_reasons(way: &str) -> &'static [&'static str] {
    match way {
        "rx" => &["bad_chain", "too_long", "not_offloaded", "failed", "filtered"],
        _ => &["bad_chain", "refused", "no_port", "disabled", "filtered"],
    }
}

impl PairCounters {
    /// Reads the counters of `pair`.
    pub(crate) fn new(pair: usize, counters: &Counters) -> PairCounters {
        let counts = counters.fields().map(|(name, count)| (name.to_owned(), count));
        PairCounters { pair, counts: counts.collect() }
    }

    /// Returns the bytes of the delivered frames in one direction, `rx` or `tx`, from the Ethernet header on.
    /// The byte counters include the virtio-net header of each frame, which is subtracted here.
    pub(crate) fn frame_bytes(&self, direction: &str) -> u64 {
        let headers = self.get(&format!("{direction}_frames")).wrapping_mul(HEADER_LEN as u64);
        self.get(&format!("{direction}_bytes")).wrapping_sub(headers)
    }

    /// Returns the counter with this name, or 0.
    pub(crate) fn get(&self, name: &str) -> u64 {
        self.counts.get(name).copied().unwrap_or(0)
    }
}
