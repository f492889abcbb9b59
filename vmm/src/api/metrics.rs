//! The machine's metrics, as documented in docs/reference/metrics.md. Names and labels do not change, because
//! dashboards and alerts depend on them.

use volt_program::metrics::{Family, Metrics};

use crate::machine::handle::MachineHandle;
use crate::virtio::status::{
    BackEndStatus, DeviceDetails, DeviceStatus, FrameCounts, VhostUserNetStatus, VringStatus,
};

/// Returns all metrics of a machine.
pub(super) fn families(machine: &MachineHandle) -> Metrics {
    let mut info = Family::gauge("volt_vmm_build_info", "Version of the program.");
    info.sample(&[("version", env!("CARGO_PKG_VERSION"))], true);
    let uptime = Family::gauge("volt_vmm_uptime_seconds", "Time since the machine was built.");
    let paused = Family::gauge("volt_vmm_paused", "Whether the machine is paused.");
    let cpus = Family::gauge("volt_vmm_vcpus", "vCPUs of the machine.");
    let memory = Family::gauge("volt_vmm_guest_memory_bytes", "Memory of the guest.");
    let mut metrics = Metrics::default();
    metrics.add([
        info,
        uptime.with(machine.started.elapsed().as_secs_f64()),
        paused.with(machine.pause.is_paused()),
        cpus.with(u64::from(machine.cpus)),
        memory.with(machine.memory),
    ]);
    let mut devices = Devices::new();
    for listed in machine.devices.status() {
        devices.add(&listed.device);
    }
    metrics.add(devices.families());
    metrics
}

/// Metrics with a value for each device.
struct Devices {
    link_up: Family,
    frames: Family,
    bytes: Family,
    dropped: Family,
    requests: Family,
    failed: Family,
    connected: Family,
    losses: Family,
    away: Family,
}

impl Devices {
    fn new() -> Devices {
        Devices {
            link_up: Family::gauge("volt_vmm_link_up", "Whether the guest sees its link up."),
            frames: Family::counter("volt_vmm_frames", "Frames moved by volt-vmm; rx is to the guest."),
            bytes: Family::counter("volt_vmm_bytes", "Bytes of the moved frames, Ethernet header included."),
            dropped: Family::counter("volt_vmm_dropped", "Dropped frames and descriptor chains."),
            requests: Family::counter("volt_vmm_disk_requests", "Served requests of a disk."),
            failed: Family::counter("volt_vmm_disk_failed_requests", "Requests of a disk that failed."),
            connected: Family::gauge("volt_vmm_back_end_connected", "Whether the back-end is connected."),
            losses: Family::counter("volt_vmm_back_end_losses", "Times that the back-end disconnected."),
            away: Family::counter("volt_vmm_back_end_away_seconds", "Time without the back-end."),
        }
    }

    fn families(self) -> [Family; 9] {
        let Devices { link_up, frames, bytes, dropped, requests, failed, connected, losses, away } = self;
        [link_up, frames, bytes, dropped, requests, failed, connected, losses, away]
    }

    fn add(&mut self, DeviceStatus { device, details }: &DeviceStatus) {
        match details {
            None => {}
            Some(DeviceDetails::Disk { vrings }) => {
                vrings.iter().for_each(|vring| self.add_vring(device, vring));
            }
            Some(DeviceDetails::Net(net)) => {
                self.link_up.sample(&[("device", device)], net.link_up);
                let vrings = net.traffic.iter().flat_map(|traffic| &traffic.vrings);
                vrings.for_each(|vring| self.add_vring(device, vring));
            }
            Some(DeviceDetails::VhostUserNet(net)) => self.add_back_end(device, net),
        }
    }

    fn add_vring(&mut self, device: &str, vring: &VringStatus) {
        match vring {
            VringStatus::Rx(counts) => self.add_frames(device, "rx", counts),
            VringStatus::Tx(counts) => self.add_frames(device, "tx", counts),
            VringStatus::Requests { requests, failed, .. } => {
                self.requests.sample(&[("device", device)], *requests);
                self.failed.sample(&[("device", device)], *failed);
            }
        }
    }

    fn add_frames(&mut self, device: &str, direction: &str, counts: &FrameCounts) {
        let pair = counts.pair.to_string();
        let labels = [("device", device), ("pair", pair.as_str()), ("direction", direction)];
        self.frames.sample(&labels, counts.frames);
        self.bytes.sample(&labels, counts.frame_bytes());
        self.dropped.sample(&labels, counts.drops);
    }

    fn add_back_end(&mut self, device: &str, net: &VhostUserNetStatus) {
        let labels = [("device", device)];
        self.link_up.sample(&labels, net.link_up);
        self.connected.sample(&labels, net.back_end == BackEndStatus::Connected);
        self.losses.sample(&labels, net.losses);
        self.away.sample(&labels, net.away_seconds);
    }
}

#[cfg(test)]
mod tests {
    use volt_net::limiter::RateLimits;
    use volt_program::metrics::Format;

    use super::*;
    use crate::virtio::status::{NetStatus, TrafficStatus};

    #[test]
    fn each_kind_of_device_is_measured() {
        let counts = FrameCounts { vring: 1, pair: 0, frames: 2, bytes: 224, drops: 3 };
        let vrings = vec![VringStatus::Tx(counts)];
        let traffic = Some(TrafficStatus { limits: RateLimits::default().into(), vrings });
        let guest_mac = String::new();
        let net = NetStatus { guest_mac: guest_mac.clone(), link_up: true, queue_pairs: 1, traffic };
        let disk = [VringStatus::Requests { vring: 0, requests: 5, failed: 1 }];
        let vhost_user = VhostUserNetStatus {
            socket: String::new(),
            guest_mac,
            queue_pairs: 1,
            link_up: false,
            back_end: BackEndStatus::Away,
            losses: 4,
            away_seconds: 0.5,
            away_now_seconds: Some(0.5),
        };
        let mut devices = Devices::new();
        for (device, details) in [
            ("tap0", DeviceDetails::Net(net)),
            ("data", DeviceDetails::Disk { vrings: disk }),
            ("/run/s", DeviceDetails::VhostUserNet(vhost_user)),
        ] {
            devices.add(&DeviceStatus { device: device.to_owned(), details: Some(details) });
        }
        let mut metrics = Metrics::default();
        metrics.add(devices.families());
        let text = metrics.text(Format::Text);
        let values: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
        let tx = r#"{device="tap0",pair="0",direction="tx"}"#;
        assert_eq!(
            values,
            [
                r#"volt_vmm_link_up{device="tap0"} 1"#,
                r#"volt_vmm_link_up{device="/run/s"} 0"#,
                &format!("volt_vmm_frames_total{tx} 2"),
                &format!("volt_vmm_bytes_total{tx} 200"),
                &format!("volt_vmm_dropped_total{tx} 3"),
                r#"volt_vmm_disk_requests_total{device="data"} 5"#,
                r#"volt_vmm_disk_failed_requests_total{device="data"} 1"#,
                r#"volt_vmm_back_end_connected{device="/run/s"} 0"#,
                r#"volt_vmm_back_end_losses_total{device="/run/s"} 4"#,
                r#"volt_vmm_back_end_away_seconds_total{device="/run/s"} 0.5"#,
            ]
        );
    }
}
