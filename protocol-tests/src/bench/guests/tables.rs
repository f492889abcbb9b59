//! The tables of what was measured.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::meter::Costs;
use super::way::Way;
use super::{Datagrams, Figures, Start, Streams};

/// The figures of each way's guests.
pub(super) type All = BTreeMap<Way, Vec<Figures>>;

pub(super) fn tables(all: &All) -> String {
    let mut text = String::new();
    if all.values().flatten().any(|figures| figures.streams.is_some()) {
        streams(all, &mut text);
    }
    for (title, of) in [
        ("UDP out", (|figures| figures.udp_out) as fn(&Figures) -> Option<Datagrams>),
        ("UDP in", |figures| figures.udp_in),
    ] {
        if all.values().flatten().any(|figures| of(figures).is_some()) {
            datagrams(title, all, of, &mut text);
        }
    }
    starts(all, &mut text);
    text
}

/// Returns median, least and most.
fn spread(values: impl Iterator<Item = f64>, digits: usize) -> String {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    match (values.first(), median(&values), values.last()) {
        (Some(least), Some(median), Some(most)) => {
            format!("{median:.digits$} ({least:.digits$}-{most:.digits$})")
        }
        _ => "-".to_owned(),
    }
}

/// Returns the median of sorted values.
fn median(values: &[f64]) -> Option<f64> {
    values.get(values.len() / 2).copied()
}

fn streams(all: &All, text: &mut String) {
    text.push_str(
        "| guest | TCP out, Mbit/s | TCP in, Mbit/s | echo requests/s | exits a frame, out | in | \
         interrupts a frame, out | in |\n|---|---:|---:|---:|---:|---:|---:|---:|\n",
    );
    for (way, figures) in all {
        let column = |of: &dyn Fn(&Streams) -> Option<f64>, digits| {
            spread(figures.iter().filter_map(|one| of(one.streams.as_ref()?)), digits)
        };
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {} | {} |",
            way.name(),
            column(&|one| Some(one.out), 0),
            column(&|one| Some(one.into), 0),
            column(&|one| Some(one.requests), 0),
            column(&|one| one.costs_out.exits, 2),
            column(&|one| one.costs_in.exits, 2),
            column(&|one| one.costs_out.interrupts, 3),
            column(&|one| one.costs_in.interrupts, 3),
        );
    }
    text.push('\n');
}

fn datagrams(title: &str, all: &All, of: fn(&Figures) -> Option<Datagrams>, text: &mut String) {
    let _ = writeln!(
        text,
        "| {title} | received/s | to vhost-net | lost, % | frames/s of the TAP | exits a frame | interrupts \
         a frame | guest, µs a frame | VMM | volt-netd, vhost-net | both, to vhost-net |\n\
         |---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
    );
    // The median of a way's figures, as a ratio to that of vhost-net.
    let ratio = |way: Way, value: &dyn Fn(Datagrams) -> f64| {
        let middle = |way: Way| {
            let mut values: Vec<f64> = all.get(&way)?.iter().filter_map(of).map(value).collect();
            values.sort_by(f64::total_cmp);
            median(&values)
        };
        let ratio = middle(way).zip(middle(way.vhost_net()));
        ratio.map_or("-".to_owned(), |(own, reference)| format!("{:.2}", own / reference))
    };
    for (way, figures) in all {
        let column = |value: &dyn Fn(Datagrams) -> f64, digits| {
            spread(figures.iter().filter_map(of).map(value), digits)
        };
        let events = |value: &dyn Fn(Costs) -> Option<f64>, digits| {
            spread(figures.iter().filter_map(of).filter_map(|one| value(one.costs)), digits)
        };
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            way.name(),
            column(&|one| one.rate, 0),
            ratio(*way, &|one| one.rate),
            column(&|one| one.lost * 100.0, 0),
            column(&|one| one.costs.frames, 0),
            events(&|costs| costs.exits, 2),
            events(&|costs| costs.interrupts, 3),
            column(&|one| one.costs.guest, 0),
            column(&|one| one.costs.vmm, 0),
            column(&|one| one.costs.movers, 0),
            ratio(*way, &|one| one.costs.vmm + one.costs.movers),
        );
    }
    text.push('\n');
}

fn starts(all: &All, text: &mut String) {
    text.push_str(
        "| guest | to the first line, ms | to init, ms | memory beside the guest's, KiB |\n\
         |---|---:|---:|---:|\n",
    );
    for (way, figures) in all {
        let column = |of: &dyn Fn(&Start) -> f64| spread(figures.iter().map(|one| of(&one.start)), 0);
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} |",
            way.name(),
            column(&|start| start.first_line.as_secs_f64() * 1000.0),
            column(&|start| start.init.as_secs_f64() * 1000.0),
            column(&|start| start.own_memory as f64),
        );
    }
}
