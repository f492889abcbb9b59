//! What a daemon says of itself, and what can be changed about it while it runs.

use log::info;
use rustix::process::getpid;
use serde_json::{Value, json};
use volt_net::limiter::LimitsChange;
use volt_virtio::features::Class;

use super::{Server, ServerError};
use crate::state::program;

impl Server {
    /// Puts other rate limits in force. They are the next process's too, before anybody is told that they are
    /// this one's.
    pub(super) fn change_limits(&mut self, change: LimitsChange) -> Result<(), ServerError> {
        if let Some(connection) = &mut self.connection {
            connection.session.pause(&mut self.device)?;
        }
        self.device.set_limits(self.device.limits().changed(change));
        if let Some(connection) = &mut self.connection {
            connection.session.resume(&mut self.device);
        }
        // Not before: a frame that waited has gone to the guest now, and must not be the next process's too.
        self.commit();
        info!("{}: limits changed to {}", self.device.port_name(), self.limits());
        Ok(())
    }

    pub(super) fn limits(&self) -> Value {
        let limits = self.device.limits();
        json!({ "rx_rate": limits.rx.to_string(), "tx_rate": limits.tx.to_string() })
    }

    pub(super) fn status(&self) -> Value {
        let front_end = self.connection.as_ref().map(|connection| {
            let session = &connection.session;
            let (bytes, regions) = session.memory_size();
            json!({
                "features": session.acked().map(|acked| acked.named(Class::Net).to_string()),
                "memory_bytes": bytes,
                "memory_regions": regions,
                "serving_pairs": session.serving(),
                "broken_vrings": session.broken(),
            })
        });
        let config = self.device.config();
        json!({
            "program": program(),
            "pid": getpid().as_raw_nonzero().get(),
            "uptime_seconds": self.started.elapsed().as_secs(),
            "supervised": self.supervisor.is_some(),
            "restarts": self.restarts,
            "take_overs": self.take_overs,
            "interface": self.device.port_name(),
            "endpoint": self.endpoint.describe(),
            "offered_mac": config.mac.to_string(),
            "queue_pairs": self.device.pairs(),
            "limits": self.limits(),
            "busy_poll_us": self.device.busy_poll(),
            "front_end": front_end,
            "counters": (0..self.device.pairs()).map(|pair| self.counters(pair)).collect::<Vec<_>>(),
        })
    }

    fn counters(&self, pair: usize) -> Value {
        let fields = self.device.counters(pair).fields().map(|(name, count)| (name.to_owned(), count.into()));
        [("pair".to_owned(), pair.into())].into_iter().chain(fields).collect::<serde_json::Map<_, _>>().into()
    }
}
