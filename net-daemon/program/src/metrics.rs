//! Metrics as text, for Prometheus and other readers of its formats.
//!
//! On request, a program fills a [`Metrics`] from its counters, and writes it in the [`Format`] that the
//! client accepts. No common crate writes both formats.

use std::fmt::{self, Display, Write};

/// Text format of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus text format 0.0.4.
    Text,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl Format {
    /// Returns the format for a client with this `Accept` header.
    pub fn accepted(accept: &str) -> Format {
        let wanted = |range: &str| range.trim().starts_with("application/openmetrics-text");
        if accept.split(',').any(wanted) { Format::OpenMetrics } else { Format::Text }
    }

    /// Returns the format's `Content-Type`.
    pub const fn content_type(self) -> &'static str {
        match self {
            Format::Text => "text/plain; version=0.0.4; charset=utf-8",
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// Type of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
}

/// A value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value {
    /// An integer, written exactly.
    Whole(u64),
    /// A floating-point number.
    Real(f64),
}

impl From<u64> for Value {
    fn from(value: u64) -> Value {
        Value::Whole(value)
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Value {
        Value::Whole(value.into())
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Value {
        Value::Real(value)
    }
}

impl Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Whole(value) => write!(f, "{value}"),
            Value::Real(value) => write!(f, "{value}"),
        }
    }
}

/// One metric: a value for each set of labels.
#[derive(Debug)]
pub struct Family {
    kind: Kind,
    /// The name without the `_total` of a counter.
    name: &'static str,
    help: &'static str,
    /// Formatted labels, and values.
    samples: Vec<(String, Value)>,
}

impl Family {
    /// Creates a counter, whose name is written with the suffix `_total`. `help` is one line of plain text.
    pub fn counter(name: &'static str, help: &'static str) -> Family {
        Family { kind: Kind::Counter, name, help, samples: Vec::new() }
    }

    /// Creates a gauge.
    pub fn gauge(name: &'static str, help: &'static str) -> Family {
        Family { kind: Kind::Gauge, name, help, samples: Vec::new() }
    }

    /// Returns the metric with this value, without labels.
    #[must_use]
    pub fn with(mut self, value: impl Into<Value>) -> Family {
        self.sample(&[], value);
        self
    }

    /// Adds a value with these labels.
    pub fn sample(&mut self, labels: &[(&str, &str)], value: impl Into<Value>) {
        let mut text = String::new();
        for (name, label) in labels {
            let begin = if text.is_empty() { '{' } else { ',' };
            let label = label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(text, "{begin}{name}=\"{label}\"");
        }
        if !text.is_empty() {
            text.push('}');
        }
        self.samples.push((text, value.into()));
    }

    fn write(&self, format: Format, out: &mut String) {
        let Family { kind, name, help, samples } = self;
        let (kind, suffix) = match kind {
            Kind::Counter => ("counter", "_total"),
            Kind::Gauge => ("gauge", ""),
        };
        let of_family = if format == Format::Text { suffix } else { "" };
        let _ = writeln!(out, "# HELP {name}{of_family} {help}");
        let _ = writeln!(out, "# TYPE {name}{of_family} {kind}");
        for (labels, value) in samples {
            let _ = writeln!(out, "{name}{suffix}{labels} {value}");
        }
    }
}

/// All metrics of a program.
#[derive(Debug, Default)]
pub struct Metrics(Vec<Family>);

impl Metrics {
    /// Adds metrics. One without values is left out.
    pub fn add<const N: usize>(&mut self, families: [Family; N]) {
        self.0.extend(families.into_iter().filter(|family| !family.samples.is_empty()));
    }

    /// Returns the text in `format`.
    pub fn text(&self, format: Format) -> String {
        let mut out = String::new();
        for family in &self.0 {
            family.write(format, &mut out);
        }
        if format == Format::OpenMetrics {
            out.push_str("# EOF\n");
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics() -> Metrics {
        let up = Family::gauge("volt_up", "Whether it is up.").with(true);
        let none = Family::gauge("volt_none", "Nothing.");
        let mut frames = Family::counter("volt_frames", "Frames.");
        frames.sample(&[("pair", "0"), ("port", "a\"b\\c\nd")], 7);
        frames.sample(&[("pair", "1")], 0.25);
        let mut metrics = Metrics::default();
        metrics.add([up, none, frames]);
        metrics
    }

    #[test]
    fn both_formats_are_written() {
        let samples = "volt_frames_total{pair=\"0\",port=\"a\\\"b\\\\c\\nd\"} 7\n\
                       volt_frames_total{pair=\"1\"} 0.25\n";
        let up = "# HELP volt_up Whether it is up.\n# TYPE volt_up gauge\nvolt_up 1\n";
        assert_eq!(
            metrics().text(Format::Text),
            format!("{up}# HELP volt_frames_total Frames.\n# TYPE volt_frames_total counter\n{samples}")
        );
        assert_eq!(
            metrics().text(Format::OpenMetrics),
            format!("{up}# HELP volt_frames Frames.\n# TYPE volt_frames counter\n{samples}# EOF\n")
        );
    }

    #[test]
    fn the_client_chooses() {
        let scraper =
            "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1";
        assert_eq!(Format::accepted(scraper), Format::OpenMetrics);
        for other in ["", "*/*", "text/plain;version=0.0.4"] {
            assert_eq!(Format::accepted(other), Format::Text);
        }
    }
}
