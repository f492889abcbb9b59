//! How a device is, as the API shows it: the schema of `docs/reference/http-api.md`.
//!
//! A [`DeviceHandle`](crate::virtio::handle::DeviceHandle) fills a [`DeviceStatus`] whenever somebody asks.

use serde::{Deserialize, Serialize};
use volt_net::limiter::RateLimits;
use volt_net::port::HEADER_LEN;

/// A device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeviceStatus {
    /// Its label, as in the log.
    pub device: String,
    /// What else there is to tell.
    #[serde(flatten)]
    pub details: Option<DeviceDetails>,
}

/// What there is to tell of a device, by its kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum DeviceDetails {
    /// A block device.
    Disk {
        /// Its one vring.
        vrings: [VringStatus; 1],
    },
    /// A network device over an interface of the host.
    Net(NetStatus),
    /// A network device served by a vhost-user back-end.
    VhostUserNet(VhostUserNetStatus),
}

/// A network device over an interface of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetStatus {
    /// As the guest sees it; its driver may have set another.
    pub guest_mac: String,
    /// What the guest is told.
    pub link_up: bool,
    /// As the guest sees them.
    pub queue_pairs: u16,
    /// `None` where this process does not move the frames.
    #[serde(flatten)]
    pub traffic: Option<TrafficStatus>,
}

/// What this process knows of the frames that it moves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrafficStatus {
    /// In force.
    pub limits: LimitsStatus,
    /// By their numbers.
    pub vrings: Vec<VringStatus>,
}

/// Rate limits, as `--net` has them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitsStatus {
    /// What the guest receives.
    pub rx_rate: String,
    /// What it sends.
    pub tx_rate: String,
}

impl From<RateLimits> for LimitsStatus {
    fn from(limits: RateLimits) -> LimitsStatus {
        LimitsStatus { rx_rate: limits.rx.to_string(), tx_rate: limits.tx.to_string() }
    }
}

/// The counters of a vring, from the machine's start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum VringStatus {
    /// Frames to the guest.
    Rx(FrameCounts),
    /// Frames from it.
    Tx(FrameCounts),
    /// Requests of a disk.
    Requests {
        /// Its number.
        vring: usize,
        /// Served.
        requests: u64,
        /// Those among them that were answered with an error.
        failed: u64,
    },
}

/// The frames of one vring.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrameCounts {
    /// Its number.
    pub vring: usize,
    /// The queue pair's, from 0.
    pub pair: usize,
    /// Moved.
    pub frames: u64,
    /// Of these, with their virtio-net headers.
    pub bytes: u64,
    /// What did not come through.
    pub drops: u64,
}

impl FrameCounts {
    /// Bytes of the frames from their Ethernet header on: the virtio-net header is counted with each, and is
    /// none of its own.
    pub fn frame_bytes(&self) -> u64 {
        self.bytes.wrapping_sub(self.frames.wrapping_mul(HEADER_LEN as u64))
    }
}

/// A network device served by a vhost-user back-end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VhostUserNetStatus {
    /// The back-end's.
    pub socket: String,
    /// As the guest sees it; its driver may have set another.
    pub guest_mac: String,
    /// As the guest sees them.
    pub queue_pairs: u16,
    /// What the guest is told.
    pub link_up: bool,
    /// Whether it is there.
    pub back_end: BackEndStatus,
    /// How often it has gone since the start.
    pub losses: u64,
    /// How long it was away, all absences together.
    pub away_seconds: f64,
    /// How long it has been away now.
    pub away_now_seconds: Option<f64>,
}

/// Whether a back-end is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackEndStatus {
    /// After its handshake.
    Connected,
    /// Looked for.
    Away,
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn shown(details: Option<DeviceDetails>) -> Value {
        serde_json::to_value(DeviceStatus { device: "label".to_owned(), details }).unwrap()
    }

    /// The schema that clients go by.
    #[test]
    fn each_kind_is_shown_as_documented() {
        assert_eq!(shown(None), json!({ "device": "label" }));
        let vrings = [VringStatus::Requests { vring: 0, requests: 2, failed: 1 }];
        let disk = json!({ "device": "label", "kind": "disk",
            "vrings": [{ "vring": 0, "kind": "requests", "requests": 2, "failed": 1 }] });
        assert_eq!(shown(Some(DeviceDetails::Disk { vrings })), disk);

        let net = |traffic| {
            let guest_mac = "02:00:00:00:00:01".to_owned();
            shown(Some(DeviceDetails::Net(NetStatus { guest_mac, link_up: true, queue_pairs: 2, traffic })))
        };
        let mut expected = json!({ "device": "label", "kind": "net", "guest_mac": "02:00:00:00:00:01",
            "link_up": true, "queue_pairs": 2 });
        assert_eq!(net(None), expected);
        let counts = |vring| FrameCounts { vring, pair: 0, frames: 1, bytes: 112, drops: 3 };
        expected["limits"] = json!({ "rx_rate": "none", "tx_rate": "none" });
        expected["vrings"] = json!([
            { "vring": 0, "pair": 0, "kind": "rx", "frames": 1, "bytes": 112, "drops": 3 },
            { "vring": 1, "pair": 0, "kind": "tx", "frames": 1, "bytes": 112, "drops": 3 },
        ]);
        let vrings = vec![VringStatus::Rx(counts(0)), VringStatus::Tx(counts(1))];
        assert_eq!(net(Some(TrafficStatus { limits: RateLimits::default().into(), vrings })), expected);

        let net = DeviceDetails::VhostUserNet(VhostUserNetStatus {
            socket: "/run/s".to_owned(),
            guest_mac: "02:00:00:00:00:01".to_owned(),
            queue_pairs: 1,
            link_up: false,
            back_end: BackEndStatus::Connected,
            losses: 1,
            away_seconds: 0.5,
            away_now_seconds: None,
        });
        let expected = json!({ "device": "label", "kind": "vhost-user-net", "socket": "/run/s",
            "guest_mac": "02:00:00:00:00:01", "queue_pairs": 1, "link_up": false, "back_end": "connected",
            "losses": 1, "away_seconds": 0.5, "away_now_seconds": null });
        assert_eq!(shown(Some(net)), expected);
    }
}
