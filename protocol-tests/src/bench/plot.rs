//! Results as a plot: a bar of CPU time per frame for each case, floors beside the back-end, with its spread.

use std::fmt::Write;

use crate::bench::report::{Spread, figures};
use crate::bench::suite::Results;

const WIDTH: f64 = 900.0;
const LEFT: f64 = 170.0;
const ROOM: f64 = 640.0;
const BAR: f64 = 9.0;
const ROW: f64 = 3.0 * BAR + 9.0;
const TOP: f64 = 44.0;
/// Colour and name of each bar.
const BARS: [(&str, &str); 3] =
    [("#b8c4ce", "floor, one buffer"), ("#7d93a6", "floor, same iovecs"), ("#d9722e", "back-end")];

/// Returns the plot as an SVG document.
pub fn svg(results: &Results) -> String {
    let rows: Vec<(String, [Spread; 3])> = results
        .cases
        .iter()
        .map(|(case, rounds, _)| (case.name(), figures(rounds)))
        .map(|(name, f)| (name, [f.best, f.same, f.cpu]))
        .collect();
    let height = TOP + ROW * rows.len() as f64 + 10.0;
    // Long frames cost many times as much as short ones: a logarithmic axis from 100 ns.
    let most = rows.iter().flat_map(|(_, spreads)| spreads).map(|s| s.max).fold(1000.0, f64::max);
    let x = |ns: f64| LEFT + ROOM * (ns.max(100.0) / 100.0).ln() / (most / 100.0).ln();
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    for (at, (colour, name)) in BARS.iter().enumerate() {
        let left = LEFT + 150.0 * at as f64;
        let _ = writeln!(out, "<rect x=\"{left}\" y=\"8\" width=\"10\" height=\"10\" fill=\"{colour}\"/>");
        let _ = writeln!(out, "<text x=\"{}\" y=\"17\">{name}</text>", left + 15.0);
    }
    for ns in
        [100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10_000.0, 20_000.0].iter().filter(|ns| **ns <= most)
    {
        let at = x(*ns);
        let _ = writeln!(
            out,
            "<text x=\"{at:.1}\" y=\"36\" text-anchor=\"middle\" fill=\"#666\">{ns} ns</text>\n\
             <line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"40\" y2=\"{height}\" stroke=\"#e4e4e4\"/>"
        );
    }
    for (row, (name, spreads)) in rows.iter().enumerate() {
        let top = TOP + ROW * row as f64;
        let _ = writeln!(
            out,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{name}</text>",
            LEFT - 6.0,
            top + 18.0
        );
        for (at, (spread, (colour, _))) in spreads.iter().zip(BARS).enumerate() {
            let (y, end) = (top + BAR * at as f64, x(spread.median));
            let _ = writeln!(
                out,
                "<rect x=\"{LEFT}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{BAR}\" fill=\"{colour}\"/>\n\
                 <line x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{mid:.1}\" y2=\"{mid:.1}\" stroke=\"#333\"/>\n\
                 <text x=\"{:.1}\" y=\"{:.1}\" font-size=\"9\" fill=\"#333\">{:.0}</text>",
                end - LEFT,
                x(spread.min),
                x(spread.max),
                x(spread.max) + 4.0,
                y + 8.0,
                spread.median,
                mid = y + BAR / 2.0,
            );
        }
    }
    out.push_str("</svg>\n");
    out
}
