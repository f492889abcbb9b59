//! Answers status queries: from a supervisor, for metrics and systemd's watchdog, or from this process's own
//! metrics server, if there is no supervisor.

use std::io;
use std::sync::Arc;

use volt_program::metrics::Format;

use super::Server;
use crate::metrics::families::{Observed, families};
use crate::metrics::{Source, serve};

impl Server {
    /// Serves metrics if `--metrics` is given and no supervisor serves them.
    pub(super) fn serve_metrics(&mut self) -> io::Result<()> {
        if self.supervisor.is_some() {
            return Ok(());
        }
        let (Some(metrics), Some(asker)) = (&self.metrics, self.asker.take()) else { return Ok(()) };
        let source = Arc::new(Source::default());
        source.ask_by(asker);
        source.counts_in(self.device.counter_memory(), self.device.pairs());
        self.metrics_server = Some(serve(metrics.socket()?, source)?);
        Ok(())
    }

    /// Returns the metrics for a client of the control socket.
    pub(super) fn metrics_text(&mut self) -> String {
        let status = self.status();
        let observed = Observed {
            status: Some(&status),
            last: Some(&status),
            counters: status.counters.clone(),
            restarts: status.supervised.then_some(status.restarts),
        };
        families(&observed).text(Format::Text)
    }

    /// Answers a query on line `number`. Closes the line when its other end is gone.
    pub(super) fn answer_inquiry(&mut self, number: usize) -> io::Result<()> {
        let Some(respondent) = self.inquiries.get_mut(number).and_then(Option::take) else { return Ok(()) };
        if respondent.answer(|| self.status()).is_err() {
            return self.poller.remove(&respondent);
        }
        self.inquiries[number] = Some(respondent);
        Ok(())
    }
}
