//! The metrics. Do not change names and labels: dashboards and alerts depend on them.
//! docs/reference/metrics.md documents them.

use volt_program::metrics::{Family, Metrics};
use volt_vhost_user::vring::VringStanding;

use crate::status::{Filter, PairCounters, Status, VERSION, VringKind, drop_reasons};

/// The values of one moment.
#[derive(Debug)]
pub(crate) struct Observed<'a> {
    /// The current status of the process that serves the guest, if it answers.
    pub(crate) status: Option<&'a Status>,
    /// The last known status.
    pub(crate) last: Option<&'a Status>,
    pub(crate) counters: Vec<PairCounters>,
    /// How often a supervisor has restarted the worker; `None` without a supervisor.
    pub(crate) restarts: Option<u64>,
}

/// Returns all metrics of a daemon.
pub(crate) fn families(observed: &Observed<'_>) -> Metrics {
    let mut metrics = Metrics::default();
    let mut info = Family::gauge("volt_netd_build_info", "Version of the program that serves the metrics.");
    info.sample(&[("version", VERSION)], true);
    let up = Family::gauge("volt_netd_up", "Whether the process that serves the guest answers.");
    metrics.add([info, up.with(observed.status.is_some())]);
    if let Some(restarts) = observed.restarts {
        let help = "Worker processes that died and were replaced by the supervisor.";
        metrics.add([Family::counter("volt_netd_worker_restarts", help).with(restarts)]);
    }
    // Before the first answer, the interface's name is unknown.
    if let Some(last) = observed.last {
        let help = "Hand-overs since this guest's first daemon started.";
        metrics.add([Family::counter("volt_netd_take_overs", help).with(last.take_overs)]);
        add_counters(&mut metrics, &last.interface, &observed.counters);
        add_refused(&mut metrics, last);
    }
    if let Some(status) = observed.status {
        add_moment(&mut metrics, status);
        add_vrings(&mut metrics, status);
    }
    metrics
}

/// Adds the current status.
fn add_moment(metrics: &mut Metrics, status: &Status) {
    let help = "Time since the process that serves the guest started.";
    let uptime = Family::gauge("volt_netd_uptime_seconds", help).with(status.uptime_seconds);
    let sandboxed = Family::gauge("volt_netd_sandboxed", "Whether each thread is confined.");
    let mut up = Family::gauge("volt_netd_interface_up", "Whether the interface is set up.");
    up.sample(&[("interface", &status.interface)], status.interface_up);
    let connected = Family::gauge("volt_netd_front_end_connected", "Whether a front-end is connected.");
    let connected = connected.with(status.front_end.is_some());
    metrics.add([uptime, sandboxed.with(status.sandbox), up, connected]);
    if let Some(filter) = &status.filter {
        add_filter(metrics, &status.interface, filter);
    }
    if let Some(front_end) = &status.front_end {
        let memory = Family::gauge("volt_netd_front_end_memory_bytes", "Memory that the front-end shares.");
        let serving = Family::gauge("volt_netd_serving_queue_pairs", "Queue pairs that move frames.");
        let pairs = front_end.serving_pairs.len() as u64;
        let help = "Whether written pages are logged for a live migration.";
        let logging = Family::gauge("volt_netd_dirty_logging", help).with(front_end.dirty_logging);
        metrics.add([memory.with(front_end.memory_bytes), serving.with(pairs), logging]);
    }
}

/// Adds the counters.
fn add_counters(metrics: &mut Metrics, interface: &str, counters: &[PairCounters]) {
    let mut frames = Family::counter("volt_netd_frames", "Frames that were delivered; rx is to the guest.");
    let help = "Bytes of delivered frames, Ethernet header included.";
    let mut bytes = Family::counter("volt_netd_bytes", help);
    let help = "Frames and descriptor chains that were dropped.";
    let mut dropped = Family::counter("volt_netd_dropped", help);
    let help = "Times that a rate limit made a queue pair wait.";
    let mut limiter_waits = Family::counter("volt_netd_limiter_waits", help);
    let mut calls = Family::counter("volt_netd_calls", "Notifications to the driver.");
    let mut kicks = Family::counter("volt_netd_kicks", "Notifications from the driver.");
    let help = "Descriptor chains that were returned unserved because they had killed workers.";
    let mut deadly = Family::counter("volt_netd_deadly_chains", help);
    let help = "Marks in the front-end's log of written pages.";
    let mut marks = Family::counter("volt_netd_pages_marked", help);
    let help = "Announcements of the guest on the network.";
    let mut announcements = Family::counter("volt_netd_announcements", help);
    let help = "Times that the port was full or a rate limit made the transmit ring wait.";
    let mut waits = Family::counter("volt_netd_port_waits", help);
    let help = "Times that the interface was opened again, or a peer connected again.";
    let mut reopened = Family::counter("volt_netd_interface_reopened", help);
    for counters in counters {
        let pair = counters.pair.to_string();
        let labels = [("interface", interface), ("pair", pair.as_str())];
        for direction in ["rx", "tx"] {
            let labels = &and(&labels, "direction", direction);
            let count = |what| counters.get(&format!("{direction}_{what}"));
            frames.sample(labels, count("frames"));
            bytes.sample(labels, counters.frame_bytes(direction));
            limiter_waits.sample(labels, count("limited"));
            for reason in drop_reasons(direction) {
                dropped.sample(&and(labels, "reason", reason), count(reason));
            }
        }
        calls.sample(&labels, counters.get("calls"));
        kicks.sample(&labels, counters.get("kicks"));
        deadly.sample(&labels, counters.get("deadly_chains"));
        marks.sample(&labels, counters.get("pages_marked"));
        announcements.sample(&labels, counters.get("announcements"));
        waits.sample(&labels, counters.get("tx_waits"));
        reopened.sample(&labels, counters.get("reopened"));
    }
    metrics.add([frames, bytes, dropped, limiter_waits, calls, kicks, deadly, marks, announcements]);
    metrics.add([waits, reopened]);
}

/// Adds the counts of refused frames. They are as of the last answer: a process that does not answer refuses
/// none.
fn add_refused(metrics: &mut Metrics, last: &Status) {
    let help = "Frames that the filter refused, or would refuse by a policy that only logs.";
    let mut refused = Family::counter("volt_netd_filter_refused_frames", help);
    for (direction, reasons) in last.filter.iter().flat_map(|filter| &filter.refused) {
        for (reason, frames) in reasons {
            let labels = [("interface", &*last.interface), ("direction", direction), ("reason", reason)];
            refused.sample(&labels, *frames);
        }
    }
    metrics.add([refused]);
}

/// Adds the filter of the guest's frames.
fn add_filter(metrics: &mut Metrics, interface: &str, filter: &Filter) {
    let labels = [("interface", interface)];
    let help = "Flows in the filter's table.";
    let mut flows = Family::gauge("volt_netd_filter_flows", help);
    flows.sample(&labels, filter.flows);
    let help = "Flows that the filter's table holds.";
    let mut most = Family::gauge("volt_netd_filter_flows_max", help);
    most.sample(&labels, filter.flows_max);
    let help = "1 for the mode of the policy in force.";
    let mut mode = Family::gauge("volt_netd_filter_policy", help);
    mode.sample(&and(&labels, "mode", filter.policy.as_deref().unwrap_or("none")), true);
    metrics.add([flows, most, mode]);
}

/// Adds the vrings of the connected front-end.
fn add_vrings(metrics: &mut Metrics, status: &Status) {
    let mut state = Family::gauge("volt_netd_vring_state", "1 for the current state of the vring.");
    let mut size = Family::gauge("volt_netd_vring_size", "Entries of the vring.");
    let help = "Chains that the driver has made available and that are not returned yet.";
    let mut available = Family::gauge("volt_netd_vring_available", help);
    let help = "Time since the vring was last seen to make progress, accurate to the interval of checks.";
    let mut idle = Family::gauge("volt_netd_vring_idle_seconds", help);
    let help = "Whether the vring waits for the guest's buffers, for room in the interface, or for a limit.";
    let mut waiting = Family::gauge("volt_netd_vring_waiting", help);
    let help = "Whether the vring has work, waits for nothing, and makes no progress: a bug of the daemon.";
    let mut no_progress = Family::gauge("volt_netd_vring_no_progress", help);
    for vring in &status.vrings {
        let number = vring.vring.to_string();
        let kind = vring.kind.name();
        let labels = [("interface", status.interface.as_str()), ("vring", &number), ("kind", kind)];
        for standing in VringStanding::ALL {
            state.sample(&and(&labels, "state", standing.name()), vring.state == standing);
        }
        if vring.kind != VringKind::Control && vring.state == VringStanding::Running {
            waiting.sample(&labels, vring.waits);
            no_progress.sample(&labels, vring.no_progress);
        }
        // Known once the vring's thread has reported.
        if let (Some(entries), Some(chains)) = (vring.size, vring.available) {
            size.sample(&labels, u64::from(entries));
            available.sample(&labels, u64::from(chains));
        }
        if let Some(seconds) = vring.idle_seconds {
            idle.sample(&labels, seconds);
        }
    }
    metrics.add([state, size, available, waiting, no_progress, idle]);
}

/// Returns `labels` with one more.
fn and<'l>(labels: &[(&'l str, &'l str)], name: &'l str, value: &'l str) -> Vec<(&'l str, &'l str)> {
    [labels, &[(name, value)]].concat()
}
