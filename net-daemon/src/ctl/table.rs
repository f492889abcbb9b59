//! A daemon's status as text: the whole status, or the changing values for `--watch`.

use std::time::Duration;

use volt_program::display::{
    Table, bits_per_second, bytes, count, left, of, or_dash, per_second, rate, right, time,
};
use volt_program::watch::Before;
use volt_vhost_user::vring::VringStanding;

use crate::status::{Filter, FrontEnd, PairCounters, Status, Vring, drop_reasons};

/// The two directions of a frame, which prefix the names of its counters.
const WAYS: [&str; 2] = ["rx", "tx"];

/// Formats the whole status.
pub(super) fn whole(status: &Status) -> String {
    let Status { program, pid, uptime_seconds, .. } = status;
    let tables = [traffic(status), notifications(status), vrings(status)];
    let tables = tables.iter().filter(|table| !table.is_empty()).map(|table| format!("\n{table}"));
    let tables: String = tables.collect();
    format!("{program}, process {pid}, up {}\n{}{tables}", time(*uptime_seconds), facts(status))
}

/// Formats the changing values, with rates if there is a status from `before`, and faults.
pub(super) fn moving(status: &Status, before: Option<&Before<Status>>) -> String {
    let front_end = if status.front_end.is_some() { "front-end connected" } else { "no front-end" };
    let mut history = format!("process {}", status.pid);
    for (number, thing) in [(status.restarts, "restart"), (status.take_overs, "take-over")] {
        if number > 0 {
            history += &format!(", {}", of(number, thing));
        }
    }
    let wrong =
        status.vrings.iter().filter(|vring| vring.no_progress || vring.state == VringStanding::Broken);
    let wrong: String = wrong.map(|vring| format!("vring {}: {}\n", vring.vring, standing(vring))).collect();
    format!("{}, {front_end}, {history}\n{}{wrong}", interface(status), rates(status, before))
}

/// Formats the values that rarely change.
fn facts(status: &Status) -> Table {
    let mut facts = Table::new([left(""), left("")]);
    let mut fact = |name: &str, text: String| facts.row([name.to_owned(), text]);
    fact("interface", interface(status));
    fact("endpoint", status.endpoint.clone());
    match &status.front_end {
        None => fact("front-end", "none".to_owned()),
        Some(front_end) => {
            fact("front-end", format!("connected, {}", memory(front_end)));
            fact("features", front_end.features.clone().unwrap_or_else(|| "not acknowledged yet".to_owned()));
        }
    }
    if status.front_end.as_ref().is_some_and(|front_end| front_end.dirty_logging) {
        let marks: u64 = status.counters.iter().map(|counters| counters.get("pages_marked")).sum();
        fact("dirty logging", format!("on, {}", of(marks, "mark")));
    }
    let announcements: u64 = status.counters.iter().map(|counters| counters.get("announcements")).sum();
    if announcements > 0 {
        fact("announcements", count(announcements));
    }
    let serving = status.front_end.as_ref().map_or(0, |front_end| front_end.serving_pairs.len());
    fact("queue pairs", format!("{serving} of {} serving", status.queue_pairs));
    fact("offered MAC", status.offered_mac.clone());
    fact("limits", format!("rx {}, tx {}", status.limits.rx_rate, status.limits.tx_rate));
    fact(
        "busy polling",
        match status.busy_poll_us {
            0 => "off".to_owned(),
            time => format!("{time} µs"),
        },
    );
    if let Some(filter) = &status.filter {
        fact("guard", guard(filter));
        let policy = filter.policy.clone().unwrap_or_else(|| "none".to_owned());
        fact("policy", format!("{policy}, {} of {}", count(filter.flows), of(filter.flows_max, "flow")));
    }
    fact("sandbox", if status.sandbox { "on" } else { "off" }.to_owned());
    fact("supervised", supervised(status));
    fact("take-overs", count(status.take_overs));
    if let Some(capture) = &status.capture {
        let which = capture.pair.map_or("all queue pairs".to_owned(), |pair| format!("queue pair {pair}"));
        let (frames, lost) = (of(capture.frames, "frame"), count(capture.lost));
        fact("capture", format!("{which}, {frames}, {lost} lost"));
    }
    facts
}

fn guard(filter: &Filter) -> String {
    let learnt = filter.learns.then(|| "learnt ones".to_owned());
    let addresses: Vec<_> = filter.addresses.iter().cloned().chain(learnt).collect();
    let reasons = filter.refused.values().flatten();
    let refused: u64 = reasons.map(|(_, frames)| frames).sum();
    format!("{} with {}, {} refused", filter.mac, addresses.join(", "), of(refused, "frame"))
}

fn supervised(status: &Status) -> String {
    let restarts = of(status.restarts, "restart");
    match status.supervisor_pid {
        _ if !status.supervised => "no".to_owned(),
        Some(pid) => format!("by process {pid}, {restarts}"),
        // An older daemon.
        None => restarts,
    }
}

fn memory(front_end: &FrontEnd) -> String {
    let regions = of(front_end.memory_regions as u64, "region");
    match front_end {
        FrontEnd { memory_regions: 0, features: None, .. } => "the guest's driver has not started".to_owned(),
        FrontEnd { memory_regions: 0, .. } => "without memory".to_owned(),
        FrontEnd { memory_bytes, memory_unshared, .. } => {
            let unshared = if *memory_unshared { ", not shared by the guest" } else { "" };
            format!("{} of memory in {regions}{unshared}", bytes(*memory_bytes))
        }
    }
}

fn interface(status: &Status) -> String {
    format!("{} {}", status.interface, if status.interface_up { "up" } else { "down" })
}

/// Formats the frames of each queue pair, with reasons for drops.
fn traffic(status: &Status) -> Table {
    let mut table = Table::new([
        right("pair"),
        left("way"),
        right("frames"),
        right("bytes"),
        right("limited"),
        right("drops"),
        left("why"),
    ]);
    for (counters, way) in ways(status) {
        let why = drop_reasons(way).iter().map(|why| (why, number(counters, way, why)));
        let why: Vec<_> = why
            .filter(|(_, number)| *number > 0)
            .map(|(why, number)| format!("{} {}", count(number), why.replace('_', " ")))
            .collect();
        table.row([
            counters.pair.to_string(),
            way.to_owned(),
            count(number(counters, way, "frames")),
            bytes(counters.frame_bytes(way)),
            count(number(counters, way, "limited")),
            count(dropped(counters, way)),
            why.join(", "),
        ]);
    }
    table
}

fn notifications(status: &Status) -> Table {
    let names = ["calls", "kicks", "deadly_chains"];
    let mut table = Table::new([right("pair"), right("calls"), right("kicks"), right("deadly chains")]);
    for counters in &status.counters {
        let counts = names.map(|name| count(counters.get(name)));
        table.row([counters.pair.to_string()].into_iter().chain(counts));
    }
    table
}

fn vrings(status: &Status) -> Table {
    let mut table = Table::new([
        right("vring"),
        left("kind"),
        left("state"),
        right("entries"),
        right("available"),
        right("idle"),
    ]);
    for vring in &status.vrings {
        let or_dash = |number: Option<u16>| number.map_or("-".to_owned(), |number| number.to_string());
        table.row([
            vring.vring.to_string(),
            vring.kind.name().to_owned(),
            standing(vring).to_owned(),
            or_dash(vring.size),
            or_dash(vring.available),
            vring.idle_seconds.map_or("-".to_owned(), time),
        ]);
    }
    table
}

fn standing(vring: &Vring) -> &'static str {
    match vring.state {
        VringStanding::Running if vring.no_progress => "no progress",
        VringStanding::Running if vring.waits => "waiting",
        other => other.name(),
    }
}

fn rates(status: &Status, before: Option<&Before<Status>>) -> Table {
    let mut table = Table::new([
        right("pair"),
        left("way"),
        right("frames/s"),
        right("rate"),
        right("drops/s"),
        right("frames"),
        right("bytes"),
        right("drops"),
    ]);
    for (counters, way) in ways(status) {
        let pair = |before: &Before<Status>| {
            before.seen.counters.iter().find(|other| other.pair == counters.pair).cloned()
        };
        let (earlier, passed) = (before.and_then(pair), before.map_or(Duration::ZERO, |before| before.time));
        let rate_of =
            |of: &dyn Fn(&PairCounters) -> u64| rate(of(counters), earlier.as_ref().map(of), passed);
        let bits = rate_of(&|counters| counters.frame_bytes(way)).map(|bytes| bytes * 8.0);
        table.row([
            counters.pair.to_string(),
            way.to_owned(),
            or_dash(rate_of(&|counters| number(counters, way, "frames")), per_second),
            or_dash(bits, bits_per_second),
            or_dash(rate_of(&|counters| dropped(counters, way)), per_second),
            count(number(counters, way, "frames")),
            bytes(counters.frame_bytes(way)),
            count(dropped(counters, way)),
        ]);
    }
    table
}

/// Returns each queue pair with both directions.
fn ways(status: &Status) -> impl Iterator<Item = (&PairCounters, &'static str)> {
    status.counters.iter().flat_map(|counters| WAYS.map(|way| (counters, way)))
}

fn number(counters: &PairCounters, way: &str, what: &str) -> u64 {
    counters.get(&format!("{way}_{what}"))
}

fn dropped(counters: &PairCounters, way: &str) -> u64 {
    drop_reasons(way).iter().map(|why| number(counters, way, why)).sum()
}

#[cfg(test)]
mod tests;
