//! What a daemon says of itself: for `volt-netd ctl status`, and where its metrics come from.
//!
//! [`Server::status`](crate::server::Server) makes one. As JSON it is documented for programs: what is added
//! is optional to whoever reads it.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use volt_net::counters::Counters;
use volt_net::port::HEADER_LEN;
use volt_vhost_user::vring::VringStanding;

/// Of this program.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// A daemon, as it is right now.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Status {
    /// Name and version.
    pub(crate) program: String,
    /// Of the process that serves.
    pub(crate) pid: i32,
    /// Since that process began.
    pub(crate) uptime_seconds: u64,
    pub(crate) supervised: bool,
    /// How often the supervisor has started a worker again.
    pub(crate) restarts: u64,
    /// How often a daemon was replaced by `--take-over` since the first one was started.
    pub(crate) take_overs: u64,
    /// Whether each thread is confined.
    #[serde(default)]
    pub(crate) sandbox: bool,
    pub(crate) interface: String,
    /// Whether it is set up.
    #[serde(default)]
    pub(crate) interface_up: bool,
    /// Where front-ends come from, in words.
    pub(crate) endpoint: String,
    pub(crate) offered_mac: String,
    pub(crate) queue_pairs: usize,
    pub(crate) limits: Limits,
    pub(crate) busy_poll_us: u16,
    /// While somebody captures frames.
    #[serde(default)]
    pub(crate) capture: Option<Capture>,
    /// The one that is connected.
    pub(crate) front_end: Option<FrontEnd>,
    /// Those of the front-end that is connected.
    #[serde(default)]
    pub(crate) vrings: Vec<Vring>,
    pub(crate) counters: Vec<PairCounters>,
}

/// Rate limits in force, as the command line takes them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Limits {
    pub(crate) rx_rate: String,
    pub(crate) tx_rate: String,
}

/// A capture that goes on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Capture {
    /// The queue pair, if it is one alone.
    pub(crate) pair: Option<usize>,
    pub(crate) frames: u64,
    /// Those for which its reader was too slow.
    pub(crate) lost: u64,
}

/// A front-end that is connected.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct FrontEnd {
    /// Names of those that the driver acknowledged, once it has.
    pub(crate) features: Option<String>,
    pub(crate) memory_bytes: u64,
    pub(crate) memory_regions: usize,
    /// Queue pairs that frames come by.
    pub(crate) serving_pairs: Vec<usize>,
    pub(crate) broken_vrings: Vec<usize>,
}

/// What a vring is to the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum VringKind {
    Rx,
    Tx,
    Control,
}

impl VringKind {
    /// As it is in a status.
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
    /// Entries, while it runs.
    pub(crate) size: Option<u16>,
    /// Chains that the driver has made available and has not got back, while it runs.
    pub(crate) available: Option<u16>,
    /// It waits for the other side: for buffers of the guest, for room in the interface, for a rate limit.
    pub(crate) waits: bool,
    /// Since a look that saw it move, to the length of time between two looks; `None` for one that nobody has
    /// looked at before.
    pub(crate) idle_seconds: Option<u64>,
    /// It has work, waits for nobody, and does not move: a fault of the daemon.
    pub(crate) no_progress: bool,
}

/// What one queue pair has counted since its first daemon was started.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PairCounters {
    pub(crate) pair: usize,
    /// By the names of [`volt_net::counters::Counters`].
    #[serde(flatten)]
    pub(crate) counts: BTreeMap<String, u64>,
}

/// Why frames were dropped on their way, `rx` (to the guest) or `tx`: what the names of their counters end
/// with.
pub(crate) fn drop_reasons(way: &str) -> &'static [&'static str] {
    match way {
        "rx" => &["bad_chain", "too_long", "not_offloaded", "failed"],
        _ => &["bad_chain", "refused", "no_port", "disabled"],
    }
}

impl PairCounters {
    /// Those of `pair`, as they stand.
    pub(crate) fn new(pair: usize, counters: &Counters) -> PairCounters {
        let counts = counters.fields().map(|(name, count)| (name.to_owned(), count));
        PairCounters { pair, counts: counts.collect() }
    }

    /// Bytes of the delivered frames of one direction, `rx` or `tx`, from their Ethernet header on: the
    /// virtio-net header is counted with each, and is none of its own.
    pub(crate) fn frame_bytes(&self, direction: &str) -> u64 {
        let headers = self.get(&format!("{direction}_frames")).wrapping_mul(HEADER_LEN as u64);
        self.get(&format!("{direction}_bytes")).wrapping_sub(headers)
    }

    /// The one of this name.
    pub(crate) fn get(&self, name: &str) -> u64 {
        self.counts.get(name).copied().unwrap_or(0)
    }
}
