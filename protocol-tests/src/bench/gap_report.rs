//! The cost of replacements, as a table.

use std::fmt::Write;

use crate::bench::event::{Event, Kind};
use crate::bench::report::Spread;

/// Returns the median and worst of each kind, in Markdown.
pub fn table(rows: &[(Kind, Vec<Event>)]) -> String {
    let mut out = String::from(
        "| replaced by | events | gap to wire, ms: median | worst | gap to guest, ms: median | worst | \
         lost to wire | lost to guest | repeated to wire | repeated to guest | \
         bench's own stall, ms: worst |\n\
         |---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n",
    );
    for (kind, events) in rows {
        let name = match kind {
            Kind::None => "nothing",
            Kind::HandOver => "hand-over",
            Kind::Crash => "supervised crash",
            Kind::Restart => "unsupervised restart",
        };
        let gap = |way: usize| Spread::of(events.iter().map(|event| event.gaps[way].as_secs_f64() * 1e3));
        let most = |count: fn(&Event) -> usize| events.iter().map(count).max().unwrap_or(0);
        let stall = Spread::of(events.iter().map(|event| event.stall.as_secs_f64() * 1e3));
        let [wire, guest] = [gap(0), gap(1)];
        let _ = writeln!(
            out,
            "| {name} | {} | {:.2} | {:.2} | {:.2} | {:.2} | {} | {} | {} | {} | {:.2} |",
            events.len(),
            wire.median,
            wire.max,
            guest.median,
            guest.max,
            most(|event| event.lost[0]),
            most(|event| event.lost[1]),
            most(|event| event.repeated[0]),
            most(|event| event.repeated[1]),
            stall.max,
        );
    }
    out.push_str("\nA probe every 0.1 ms each way. Lost and repeated: most frames in one event.\n");
    out
}
