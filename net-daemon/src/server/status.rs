//! The daemon's status, and changes of its rate limits.

use std::time::Instant;

use log::info;
use rustix::process::getpid;
use volt_net::limiter::LimitsChange;
use volt_virtio::features::Class;

use super::{Server, ServerError};
use crate::sandbox;
use crate::state::program;
use crate::status::{FrontEnd, Limits, PairCounters, Status, Vring, VringKind};
use crate::supervision::Line;

impl Server {
    /// Changes the rate limits. They are committed for the next process before the client is told.
    pub(super) fn change_limits(&mut self, change: LimitsChange) -> Result<(), ServerError> {
        self.change_device(|device| device.set_limits(device.limits().changed(change)))?;
        let Limits { rx_rate, tx_rate } = self.limits();
        let interface = self.device.port_name();
        info!(
            event = "limits_changed", interface, rx_rate:%, tx_rate:%;
            "{interface}: limits changed to rx {rx_rate}, tx {tx_rate}"
        );
        Ok(())
    }

    pub(super) fn limits(&self) -> Limits {
        let limits = self.device.limits();
        Limits { rx_rate: limits.rx.to_string(), tx_rate: limits.tx.to_string() }
    }

    /// Checks the queue pairs, and returns the daemon's status.
    pub(super) fn status(&mut self) -> Status {
        self.look();
        let front_end = self.connection.as_ref().map(|connection| {
            let session = &connection.session;
            let (memory_bytes, memory_regions) = session.memory_size();
            FrontEnd {
                features: session.acked().map(|acked| acked.named(Class::Net).to_string()),
                memory_bytes,
                memory_regions,
                memory_unshared: session.memory_is_unshared(),
                dirty_logging: session.dirty_logging(),
                serving_pairs: session.serving(),
                broken_vrings: session.broken(),
            }
        });
        let counters = |pair| PairCounters::new(pair, self.device.counters(pair));
        Status {
            program: program(),
            pid: getpid().as_raw_nonzero().get(),
            uptime_seconds: self.started.elapsed().as_secs(),
            supervised: self.supervisor.is_some(),
            supervisor_pid: self.supervisor.as_ref().and_then(Line::pid),
            restarts: self.restarts,
            take_overs: self.take_overs,
            sandbox: sandbox::is_on(),
            interface: self.device.port_name().to_owned(),
            interface_up: self.device.link_is_up(),
            endpoint: self.endpoint.describe(),
            offered_mac: self.device.config().mac.to_string(),
            queue_pairs: self.device.pairs(),
            limits: self.limits(),
            busy_poll_us: self.device.busy_poll(),
            capture: self.capture_status(),
            filter: self.filter_status(),
            front_end,
            vrings: self.vrings(),
            counters: (0..self.device.pairs()).map(counters).collect(),
        }
    }

    fn vrings(&self) -> Vec<Vring> {
        let Some(connection) = &self.connection else { return Vec::new() };
        let (session, now) = (&connection.session, Instant::now());
        let vring = |(vring, state)| {
            let kind = match vring {
                _ if session.control_index() == Some(vring) => VringKind::Control,
                _ if vring % 2 == 0 => VringKind::Rx,
                _ => VringKind::Tx,
            };
            let half = (kind != VringKind::Control).then(|| self.progress.of(vring)).flatten();
            let report = half.and_then(|half| half.report);
            Vring {
                vring,
                kind,
                state,
                size: report.map(|report| report.size),
                available: report.map(|report| report.available),
                waits: report.is_some_and(|report| report.waits),
                idle_seconds: half.and_then(|half| half.idle(now)).map(|idle| idle.as_secs()),
                no_progress: half.is_some_and(|half| half.is_stuck()),
            }
        };
        session.vring_states().enumerate().map(vring).collect()
    }
}
