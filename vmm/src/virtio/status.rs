//! A device's status, as the API shows it. `docs/reference/openapi.json` has its schema.
//!
//! A [`DeviceHandle`](crate::virtio::handle::DeviceHandle) fills a [`DeviceStatus`] on each request.

use serde::{Deserialize, Serialize};
use volt_net::limiter::RateLimits;
use volt_net::port::HEADER_LEN;

/// The status of a device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeviceStatus {
    /// Its label, as in the log.
    pub device: String,
    /// Further properties, if the device has some.
    #[serde(flatten)]
    pub details: Option<DeviceDetails>,
}

/// Properties of a device, by its kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum DeviceDetails {
    /// A block device.
    Disk {
        /// Status of its only vring.
        vrings: [VringStatus; 1],
    },
    /// A network device with an interface of the host.
    Net(NetStatus),
    /// A network device served by a vhost-user back-end.
    VhostUserNet(VhostUserNetStatus),
}

/// Status of a network device with an interface of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetStatus {
    /// Address that the guest was given. Its driver may have set another one.
    pub guest_mac: String,
    /// Whether the guest sees its link up.
    pub link_up: bool,
    /// Number of queue pairs that the guest sees.
    pub queue_pairs: u16,
    /// `None` if this process does not move the frames.
    #[serde(flatten)]
    pub traffic: Option<TrafficStatus>,
}

/// Status of the frames that this process moves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrafficStatus {
    /// Limits in force.
    pub limits: LimitsStatus,
    /// Status of each vring, in order of their numbers.
    pub vrings: Vec<VringStatus>,
}

/// Rate limits, in the syntax of `--net`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitsStatus {
    /// Limit of frames to the guest.
    pub rx_rate: String,
    /// Limit of frames from the guest.
    pub tx_rate: String,
}

impl From<RateLimits> for LimitsStatus {
    fn from(limits: RateLimits) -> LimitsStatus {
        LimitsStatus { rx_rate: limits.rx.to_string(), tx_rate: limits.tx.to_string() }
    }
}

/// The counters of a vring since the machine's start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum VringStatus {
    /// Frames to the guest.
    Rx(FrameCounts),
    /// Frames from the guest.
    Tx(FrameCounts),
    /// Requests of a disk.
    Requests {
        /// Number of the vring.
        vring: usize,
        /// Served requests.
        requests: u64,
        /// Served requests that failed.
        failed: u64,
    },
}

/// The frame counters of a vring.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrameCounts {
    /// Number of the vring.
    pub vring: usize,
    /// Number of the queue pair, from 0.
    pub pair: usize,
    /// Moved frames.
    pub frames: u64,
    /// Bytes of the moved frames, with their virtio-net headers.
    pub bytes: u64,
    /// Dropped frames and descriptor chains.
    pub drops: u64,
}

impl FrameCounts {
    /// Returns the bytes of the frames from their Ethernet header on, without the virtio-net headers.
    pub fn frame_bytes(&self) -> u64 {
        self.bytes.wrapping_sub(self.frames.wrapping_mul(HEADER_LEN as u64))
    }
}

/// Status of a network device served by a vhost-user back-end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VhostUserNetStatus {
    /// Path of the back-end's socket.
    pub socket: String,
    /// Address that the guest was given. Its driver may have set another one.
    pub guest_mac: String,
    /// Number of queue pairs that the guest sees.
    pub queue_pairs: u16,
    /// Whether the guest sees its link up.
    pub link_up: bool,
    /// Whether the back-end is connected.
    pub back_end: BackEndStatus,
    /// How often the back-end disconnected since the start.
    pub losses: u64,
    /// Total time without the back-end, in seconds.
    pub away_seconds: f64,
    /// Time since the back-end disconnected. `None` while it is connected.
    pub away_now_seconds: Option<f64>,
}

/// Whether a back-end is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackEndStatus {
    /// Connected, and its handshake is done.
    Connected,
    /// Away. volt-vmm tries to reconnect.
    Away,
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn shown(details: Option<DeviceDetails>) -> Value {
        serde_json::to_value(DeviceStatus { device: "label".to_owned(), details }).unwrap()
    }

    /// Clients depend on this schema.
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
