//! A machine's status as text: the whole of it, and the changes between two requests.

use std::time::Duration;

use volt_program::display::{
    Table, bits_per_second, bytes, count, left, of, or_dash, per_second, rate, right, time,
};
use volt_program::watch::Before;

use crate::api::status::{MachineState, MachineStatus};
use crate::machine::devices::ListedStatus;
use crate::virtio::status::{BackEndStatus, DeviceDetails, FrameCounts, VringStatus};

/// Returns the whole status.
pub fn whole(status: &MachineStatus) -> String {
    let MachineStatus { program, pid, uptime_seconds, .. } = status;
    let mut facts = Table::new([left(""), left("")]);
    facts.row(["state".to_owned(), state(status).to_owned()]);
    let (cpus, memory) = (of(status.cpus.into(), "CPU"), bytes(status.memory_bytes));
    facts.row(["guest".to_owned(), format!("{cpus}, {memory} of memory")]);
    let tables = [devices(status), frames(status), requests(status)];
    let tables = tables.iter().filter(|table| !table.is_empty()).map(|table| format!("\n{table}"));
    let tables: String = tables.collect();
    format!("{program}, process {pid}, up {}\n{facts}{tables}", time(*uptime_seconds))
}

/// Returns the counters, with rates if there is a status from `before`, and the back-ends that are away.
pub fn moving(status: &MachineStatus, before: Option<&Before<MachineStatus>>) -> String {
    let away = status.devices.iter().filter_map(|listed| match &listed.device.details {
        Some(DeviceDetails::VhostUserNet(net)) if net.back_end == BackEndStatus::Away => {
            Some(format!("{}: back-end away\n", listed.device.device))
        }
        _ => None,
    });
    let away: String = away.collect();
    let (frames, requests) = (frame_rates(status, before), request_rates(status, before));
    let tables = [frames, requests].into_iter().filter(|table| !table.is_empty());
    let tables: String = tables.map(|table| table.to_string()).collect();
    format!("{}, process {}\n{tables}{away}", state(status), status.pid)
}

fn state(status: &MachineStatus) -> &'static str {
    match status.state {
        MachineState::Running => "running",
        MachineState::Paused => "paused",
    }
}

fn devices(status: &MachineStatus) -> Table {
    let mut table = Table::new([right("slot"), left("device"), left("state")]);
    for listed in &status.devices {
        let slot = listed.slot.map_or("-".to_owned(), |slot| slot.slot.to_string());
        table.row([slot, listed.device.device.clone(), device(listed)]);
    }
    table
}

/// Returns the state of a device in words.
fn device(listed: &ListedStatus) -> String {
    let mut words = Vec::new();
    if listed.slot.is_some_and(|slot| slot.removing) {
        words.push("removal requested".to_owned());
    }
    let link = |up| format!("link {}", if up { "up" } else { "down" });
    match &listed.device.details {
        Some(DeviceDetails::Net(net)) => {
            let pairs = of(net.queue_pairs.into(), "queue pair");
            words.extend([link(net.link_up), format!("MAC {}", net.guest_mac), pairs]);
            if let Some(traffic) = &net.traffic {
                words.push(format!("limits rx {}, tx {}", traffic.limits.rx_rate, traffic.limits.tx_rate));
            }
        }
        Some(DeviceDetails::VhostUserNet(net)) => {
            let back_end = match (net.back_end, net.away_now_seconds) {
                (BackEndStatus::Connected, _) => "back-end connected".to_owned(),
                (BackEndStatus::Away, None) => "back-end away".to_owned(),
                (BackEndStatus::Away, Some(seconds)) => format!("back-end away for {seconds:.1} s"),
            };
            let pairs = of(net.queue_pairs.into(), "queue pair");
            words.extend([link(net.link_up), back_end, format!("MAC {}", net.guest_mac), pairs]);
            if net.losses > 0 {
                let times = of(net.losses, "time");
                words.push(format!("was away {times}, {:.1} s in all", net.away_seconds));
            }
        }
        Some(DeviceDetails::Disk { .. }) | None => {}
    }
    words.join(", ")
}

/// Returns the vrings with frames, each with its device and kind.
fn frame_vrings(status: &MachineStatus) -> impl Iterator<Item = (&str, &'static str, &FrameCounts)> {
    status.devices.iter().flat_map(|listed| {
        let vrings = match &listed.device.details {
            Some(DeviceDetails::Net(net)) => net.traffic.as_ref().map(|traffic| &traffic.vrings[..]),
            _ => None,
        };
        vrings.unwrap_or_default().iter().filter_map(|vring| match vring {
            VringStatus::Rx(counts) => Some((&*listed.device.device, "rx", counts)),
            VringStatus::Tx(counts) => Some((&*listed.device.device, "tx", counts)),
            VringStatus::Requests { .. } => None,
        })
    })
}

/// Returns the number of requests of each disk, and of those that failed.
fn disks(status: &MachineStatus) -> impl Iterator<Item = (&str, [u64; 2])> {
    status.devices.iter().filter_map(|listed| match &listed.device.details {
        Some(DeviceDetails::Disk { vrings: [VringStatus::Requests { requests, failed, .. }] }) => {
            Some((&*listed.device.device, [*requests, *failed]))
        }
        _ => None,
    })
}

fn frames(status: &MachineStatus) -> Table {
    let mut table = Table::new([
        left("device"),
        right("vring"),
        left("kind"),
        right("frames"),
        right("bytes"),
        right("drops"),
    ]);
    for (device, kind, counts) in frame_vrings(status) {
        let FrameCounts { vring, frames, drops, .. } = *counts;
        let numbers = [count(frames), bytes(counts.frame_bytes()), count(drops)];
        table.row([device.to_owned(), vring.to_string(), kind.to_owned()].into_iter().chain(numbers));
    }
    table
}

fn requests(status: &MachineStatus) -> Table {
    let mut table = Table::new([left("device"), right("requests"), right("failed")]);
    for (device, counts) in disks(status) {
        table.row([device.to_owned()].into_iter().chain(counts.map(count)));
    }
    table
}

fn frame_rates(status: &MachineStatus, before: Option<&Before<MachineStatus>>) -> Table {
    let mut table = Table::new([
        left("device"),
        right("vring"),
        left("kind"),
        right("frames/s"),
        right("rate"),
        right("drops/s"),
        right("frames"),
        right("bytes"),
        right("drops"),
    ]);
    for (device, kind, counts) in frame_vrings(status) {
        let earlier = before.and_then(|before| {
            let mut vrings = frame_vrings(&before.seen);
            vrings.find(|(other, _, earlier)| *other == device && earlier.vring == counts.vring)
        });
        let passed = before.map_or(Duration::ZERO, |before| before.time);
        let rate_of = |of: fn(&FrameCounts) -> u64| {
            rate(of(counts), earlier.map(|(_, _, earlier)| of(earlier)), passed)
        };
        table.row([
            device.to_owned(),
            counts.vring.to_string(),
            kind.to_owned(),
            or_dash(rate_of(|counts| counts.frames), per_second),
            or_dash(rate_of(FrameCounts::frame_bytes).map(|bytes| bytes * 8.0), bits_per_second),
            or_dash(rate_of(|counts| counts.drops), per_second),
            count(counts.frames),
            bytes(counts.frame_bytes()),
            count(counts.drops),
        ]);
    }
    table
}

fn request_rates(status: &MachineStatus, before: Option<&Before<MachineStatus>>) -> Table {
    let head = [left("device"), right("requests/s"), right("failed/s"), right("requests"), right("failed")];
    let mut table = Table::new(head);
    for (device, counts) in disks(status) {
        let earlier = before.and_then(|before| disks(&before.seen).find(|(other, _)| *other == device));
        let passed = before.map_or(Duration::ZERO, |before| before.time);
        let rates = [0, 1].map(|at| rate(counts[at], earlier.map(|(_, counts)| counts[at]), passed));
        let rates = rates.map(|rate| or_dash(rate, per_second));
        table.row([device.to_owned()].into_iter().chain(rates).chain(counts.map(count)));
    }
    table
}

#[cfg(test)]
mod tests;
