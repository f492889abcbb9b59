//! The state of a daemon, which one process writes and the next one reads.
#![forbid(unsafe_code)]

use std::os::fd::OwnedFd;
use std::path::Path;

use serde::{Deserialize, Serialize};
use volt_net::config::Mac;
use volt_net::device::{DeviceState, RunState};
use volt_net::filter::FilterState;
use volt_net::port::state::PortState;
use volt_net::state::{Format, StateError};
use volt_vhost_user::channel::ChannelState;
use volt_vhost_user::session::state::SessionState;

use crate::cli::{Cli, NO_CONTROL};
use crate::endpoint::{EndpointState, ListenerState};
use crate::metrics::listener::MetricsState;
use crate::own_file::FileState;
use crate::runtime::Runtime;
use crate::status::VERSION;

/// The state of a daemon. A change of this structure, or of a nested one, needs a new [`Format`] if an older
/// program would misread it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct DaemonState {
    pub(crate) format: Format,
    /// Name and version of the program that wrote the state, for logs.
    pub(crate) program: String,
    /// Number of hand-overs since the first daemon started.
    pub(crate) take_overs: u64,
    pub(crate) device: DeviceState,
    /// The filter, in format 3. It has that format only with a filter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) filter: Option<FilterState>,
    pub(crate) port: PortState,
    /// The file of the port's own socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) port_file: Option<FileState>,
    pub(crate) max_ring_size: u16,
    pub(crate) endpoint: EndpointState,
    pub(crate) control: Option<ListenerState>,
    /// The socket of the metrics server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) metrics: Option<MetricsState>,
    pub(crate) connection: Option<ConnectionState>,
    /// Waiting frames, and in format 1 the counters. A hand-over sends newer values.
    #[serde(rename = "leftover")]
    pub(crate) run_state: RunState,
}

/// A connection to a front-end.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ConnectionState {
    pub(crate) channel: ChannelState,
    pub(crate) session: SessionState,
}

/// The last message of a hand-over, sent when nothing runs any more.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct FinalState {
    #[serde(rename = "leftover")]
    pub(crate) run_state: RunState,
    /// Vrings that their driver broke.
    pub(crate) broken: Vec<usize>,
}

impl DaemonState {
    /// Returns whether a daemon with this command line and socket would serve the same interface to the same
    /// front-ends.
    pub(crate) fn is_for(&self, cli: &Cli, socket: Option<&OwnedFd>) -> bool {
        let is = |wanted: &Option<String>| {
            wanted.as_ref().is_none_or(|wanted| Some(wanted) == self.port.interface().as_ref())
        };
        let (macvtap, xdp, peer) = (cli.macvtap.is_some(), cli.has_xdp(), cli.peer());
        let interface = match &self.port {
            PortState::Tap(_) => is(&cli.tap) && !macvtap && !xdp && peer.is_none(),
            PortState::Macvtap(_) => macvtap && is(&cli.macvtap),
            PortState::Xdp(_) => xdp && is(&cli.xdp.as_ref().map(|xdp| xdp.name.clone())),
            PortState::Peer(own) => {
                peer.and_then(|peer| peer.absolute().ok()).is_some_and(|peer| peer == own.options)
            }
            PortState::Socket(_) => false,
        };
        let pairs = cli.queues.is_none_or(|pairs| pairs == self.device.pairs);
        interface && pairs && self.endpoint.is_at(cli.socket.as_deref(), socket)
    }

    /// Returns the options whose values on this command line differ from those in the state.
    pub(crate) fn kept_options(&self, cli: &Cli) -> Vec<&'static str> {
        fn other<T: PartialEq>(given: Option<T>, kept: T) -> bool {
            given.is_some_and(|given| given != kept)
        }
        let DeviceState { mac, mtu, limits, busy_poll_us, .. } = self.device;
        let filter = self.filter.as_ref().map(|filter| &filter.setup);
        let has_policy = filter.is_some_and(|setup| setup.policy.is_some());
        let options = [
            ("--guard", filter.is_some() && !cli.filter.is_given()),
            ("--policy", has_policy && cli.filter.policy.is_none()),
            ("--mac", other(cli.mac, Mac(mac))),
            ("--mtu", other(cli.mtu.map(Some), mtu)),
            ("--queue-size", cli.queue_size != self.max_ring_size),
            ("--rx-rate", other(cli.rx_rate, limits.rx)),
            ("--tx-rate", other(cli.tx_rate, limits.tx)),
            ("--busy-poll-us", cli.busy_poll_us != busy_poll_us),
            ("--control", self.keeps_control(cli)),
            (
                "--metrics",
                self.metrics
                    .as_ref()
                    .is_some_and(|kept| !cli.metrics.as_ref().is_some_and(|wanted| kept.is_at(wanted))),
            ),
        ];
        options.into_iter().filter(|(_, other)| *other).map(|(name, _)| name).collect()
    }

    /// Returns whether the state's control socket differs from this command line's. A daemon without one
    /// opens the default one.
    fn keeps_control(&self, cli: &Cli) -> bool {
        let usual = || Runtime::of_this_process().control(&self.port.interface()?);
        let wanted = cli.control.clone().or_else(usual).filter(|path| path != Path::new(NO_CONTROL));
        match &self.control {
            Some(kept) => wanted.is_none_or(|wanted| !kept.is_at(&wanted)),
            None => cli.control.is_some() && wanted.is_some(),
        }
    }

    /// Reads a state in a format that this program knows.
    pub(crate) fn parse(text: &str) -> Result<DaemonState, StateError> {
        #[derive(Deserialize)]
        struct Version {
            format: Format,
        }
        let Version { format } = serde_json::from_str(text)?;
        if !format.is_known() {
            return Err(StateError::Format(format));
        }
        let state: DaemonState = serde_json::from_str(text)?;
        if state.filter.is_some() && !format.has_filter() {
            return Err(StateError::Contradiction("its format has no filter"));
        }
        if state.port.is_recent() && !format.has_recent_ports() {
            return Err(StateError::Contradiction("its format has no such port"));
        }
        Ok(state)
    }
}

/// Returns this program's name and version.
pub(crate) fn program() -> String {
    format!("volt-netd {VERSION}")
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    /// States as the first programs with these formats wrote them.
    const FIRST: [&str; 4] = [
        include_str!("state/format-1.json"),
        include_str!("state/format-2.json"),
        include_str!("state/format-3.json"),
        include_str!("state/format-4.json"),
    ];

    /// Asserts that `new` contains everything in `old`, with the same values.
    fn assert_within(old: &Value, new: &Value, at: &str) {
        match (old, new) {
            (Value::Object(old), Value::Object(new)) => {
                for (key, value) in old {
                    assert_within(value, &new[key], &format!("{at}/{key}"));
                }
            }
            (Value::Array(old), Value::Array(new)) if old.len() == new.len() => {
                old.iter().zip(new).for_each(|(old, new)| assert_within(old, new, at));
            }
            _ => assert_eq!(old, new, "{at}"),
        }
    }

    #[test]
    fn programs_of_one_format_read_each_other() {
        assert_eq!(FIRST.len(), Format::ALL.len());
        for first in FIRST {
            let state = DaemonState::parse(first).unwrap();
            let written = serde_json::to_value(&state).unwrap();
            assert_within(&serde_json::from_str(first).unwrap(), &written, "");
        }
        let other = FIRST[0].replace("\"format\": 1", "\"format\": 5");
        let error = DaemonState::parse(&other).unwrap_err();
        assert_eq!(error.to_string(), "the state has format 5, and this program reads 1 to 4");
    }

    #[test]
    fn no_earlier_format_has_a_peer() {
        let state = DaemonState::parse(FIRST[3]).unwrap();
        assert!(state.port.is_recent() && state.port_file.is_some());
        let other = FIRST[3].replace("\"format\": 4", "\"format\": 3");
        let error = DaemonState::parse(&other).unwrap_err();
        assert_eq!(error.to_string(), "the state contradicts itself: its format has no such port");
    }

    /// A program of format 2 would pass all frames.
    #[test]
    fn no_earlier_format_has_a_filter() {
        let state = DaemonState::parse(FIRST[2]).unwrap();
        assert!(state.filter.is_some());
        let other = FIRST[2].replace("\"format\": 3", "\"format\": 2");
        let error = DaemonState::parse(&other).unwrap_err();
        assert_eq!(error.to_string(), "the state contradicts itself: its format has no filter");
    }
}
