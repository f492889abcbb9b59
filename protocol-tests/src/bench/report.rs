//! Results as a table and as JSON: medians, with minimum and maximum of all rounds.

use std::fmt::Write;

use serde_json::{Value, json};

use crate::bench::latency::{Times, percentile};
use crate::bench::suite::{Results, Round};

/// Median, minimum and maximum.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spread {
    /// The median.
    pub median: f64,
    /// The minimum.
    pub min: f64,
    /// The maximum.
    pub max: f64,
}

impl Spread {
    /// Computes the spread of some values; all fields are 0 if there are none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Spread {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        match (sorted.first(), sorted.get(sorted.len() / 2), sorted.last()) {
            (Some(min), Some(median), Some(max)) => Spread { median: *median, min: *min, max: *max },
            _ => Spread::default(),
        }
    }

    fn json(self) -> Value {
        json!({ "median": self.median, "min": self.min, "max": self.max })
    }
}

/// The printed figures of a case, each over all rounds.
#[derive(Clone, Copy, Debug)]
pub struct Figures {
    /// Bare loop, the back-end's iovecs: ns per frame.
    pub same: Spread,
    /// Bare loop, one buffer: ns per frame.
    pub best: Spread,
    /// The back-end: ns of CPU time per frame.
    pub cpu: Spread,
    /// `cpu` / `same` of the same round.
    pub ratio_same: Spread,
    /// `cpu` / `best` of the same round.
    pub ratio_best: Spread,
    /// Frames per second.
    pub rate: Spread,
    /// Notifications to the back-end per frame.
    pub kicks: Spread,
    /// Notifications from the back-end per frame.
    pub calls: Spread,
}

/// Summarizes rounds.
pub fn figures(rounds: &[Round]) -> Figures {
    let spread = |value: fn(&Round) -> f64| Spread::of(rounds.iter().map(value));
    Figures {
        same: spread(|r| r.same),
        best: spread(|r| r.best),
        cpu: spread(Round::cpu),
        ratio_same: spread(|r| r.cpu() / r.same),
        ratio_best: spread(|r| r.cpu() / r.best),
        rate: spread(|r| r.cost.frames as f64 / r.cost.elapsed.as_secs_f64()),
        kicks: spread(|r| r.cost.kicks as f64 / r.cost.frames as f64),
        calls: spread(|r| r.cost.calls as f64 / r.cost.frames as f64),
    }
}

const LATENCIES: [&str; 3] = ["bare echo, idle", "back-end, idle", "back-end, ring full"];
type Way = (&'static str, fn(&Times) -> Vec<u64>);
const WAYS: [Way; 3] = [
    ("guest to wire", |times| times.tx.clone()),
    ("wire to guest", |times| times.rx.clone()),
    ("round trip", Times::round_trip),
];
const SHARES: [f64; 3] = [0.5, 0.99, 0.999];

/// Returns p50, p99 and p99.9 of one way in microseconds, each over all rounds.
fn latency(results: &Results, which: usize, way: &Way) -> [Spread; 3] {
    SHARES.map(|share| {
        Spread::of(results.latency.iter().map(|round| percentile(&way.1(&round[which]), share) as f64 / 1e3))
    })
}

/// Returns tables in Markdown.
pub fn table(results: &Results) -> String {
    let mut out = String::new();
    let heads = "| case | floor, same iovecs | floor, one buffer | back-end | to same | to best | \
                 frames/s | Gbit/s | kicks | calls | system calls |";
    let _ = writeln!(out, "{heads}\n|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|");
    for (case, rounds, system_calls) in &results.cases {
        let f = figures(rounds);
        let _ = writeln!(
            out,
            "| {} | {:.0} | {:.0} | {:.0} ({:.0}-{:.0}) | {:.2} ({:.2}-{:.2}) | {:.2} | {:.2} M | {:.1} | \
             {:.3} | {:.3} | {} |",
            case.name(),
            f.same.median,
            f.best.median,
            f.cpu.median,
            f.cpu.min,
            f.cpu.max,
            f.ratio_same.median,
            f.ratio_same.min,
            f.ratio_same.max,
            f.ratio_best.median,
            f.rate.median / 1e6,
            f.rate.median * case.size as f64 * 8.0 / 1e9,
            f.kicks.median,
            f.calls.median,
            system_calls.map_or("-".to_owned(), |calls| format!("{calls:.2}")),
        );
    }
    out.push_str("\nns of CPU time, notifications and system calls are per frame; medians (least-most).\n");
    if !results.latency.is_empty() {
        out.push_str("\n| latency, microseconds | way | p50 | p99 | p99.9 |\n|---|---|---:|---:|---:|\n");
        for (which, name) in LATENCIES.iter().enumerate() {
            for way in &WAYS {
                let spreads = latency(results, which, way)
                    .map(|s| format!("{:.1} ({:.1}-{:.1})", s.median, s.min, s.max));
                let _ = writeln!(out, "| {name} | {} | {} |", way.0, spreads.join(" | "));
            }
        }
        let trip = |which| latency(results, which, &WAYS[2])[0].median;
        let _ = writeln!(out, "\nround trip at idle, back-end to bare echo: {:.2}", trip(1) / trip(0));
    }
    for (pairs, (all, private)) in &results.resident {
        let _ = writeln!(out, "\nresident with {pairs} pairs in session: {all} KiB, private {private} KiB");
    }
    if !results.startup_ms.is_empty() {
        let s = Spread::of(results.startup_ms.iter().copied());
        let _ =
            writeln!(out, "\nstart-up to the first answer: {:.1} ms ({:.1}-{:.1})", s.median, s.min, s.max);
    }
    out
}

/// Returns all results as JSON.
pub fn json(results: &Results) -> Value {
    let cases = results.cases.iter().map(|(case, rounds, system_calls)| {
        let f = figures(rounds);
        json!({
            "case": case.name(),
            "size": case.size, "pairs": case.pairs, "ring": case.ring,
            "rounds": rounds.len(),
            "floor_same_ns": f.same.json(), "floor_best_ns": f.best.json(), "cpu_ns": f.cpu.json(),
            "ratio_same": f.ratio_same.json(), "ratio_best": f.ratio_best.json(),
            "frames_per_second": f.rate.json(),
            "gbit_per_second": f.rate.median * case.size as f64 * 8.0 / 1e9,
            "kicks_per_frame": f.kicks.json(), "calls_per_frame": f.calls.json(),
            "system_calls_per_frame": system_calls,
        })
    });
    let latencies =
        LATENCIES.iter().enumerate().filter(|_| !results.latency.is_empty()).flat_map(|(which, name)| {
            WAYS.iter().map(move |way| {
                let [p50, p99, p999] = latency(results, which, way).map(Spread::json);
                json!({ "of": name, "way": way.0, "p50_us": p50, "p99_us": p99, "p99.9_us": p999 })
            })
        });
    let resident = results
        .resident
        .iter()
        .map(|(pairs, (all, private))| json!({ "pairs": pairs, "kib": all, "private_kib": private }));
    json!({
        "cases": cases.collect::<Vec<_>>(),
        "latency": latencies.collect::<Vec<_>>(),
        "resident": resident.collect::<Vec<_>>(),
        "startup_ms": Spread::of(results.startup_ms.iter().copied()).json(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spread_is_of_the_values() {
        let spread = Spread::of([3.0, 1.0, 2.0]);
        assert_eq!((spread.median, spread.min, spread.max), (2.0, 1.0, 3.0));
        assert_eq!(Spread::of([]).max, 0.0);
    }
}
