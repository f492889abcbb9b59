//! The dependencies between files and between neighbours in a folder, and their cycles.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use super::modules::{Id, Modules};

/// The names that one place uses of another, by (user, used).
pub(crate) type Arrows = BTreeMap<(String, String), BTreeSet<String>>;

/// Returns the dependencies from file to file, without those on a file's own module and its parents: their
/// definitions are there for their children, and move together with them.
pub(crate) fn between_files(modules: &Modules) -> Arrows {
    let mut arrows = Arrows::new();
    for (from, to, names) in modules.arrows().filter(|(from, to, _)| !modules.line(*from).contains(to)) {
        let (from, to) = (modules.file(from), modules.file(to));
        if from != to {
            arrows.entry((from, to)).or_default().extend(names);
        }
    }
    arrows
}

/// Returns the dependencies from one child of a module to another, each with all its descendants. The names
/// are prefixed with the file that uses them.
pub(crate) fn between_neighbours(modules: &Modules) -> Arrows {
    let mut arrows = Arrows::new();
    for (from, to, names) in modules.arrows() {
        let (from_line, to_line) = (modules.line(from), modules.line(to));
        let fork = from_line.iter().zip(&to_line).position(|(from, to)| from != to);
        if let Some(fork) = fork.filter(|fork| *fork > 0) {
            let ends = (label(modules, from_line[fork]), label(modules, to_line[fork]));
            let file = modules.file(from);
            let places =
                names.into_iter().map(|name| if ends.0 == file { name } else { format!("{name} in {file}") });
            arrows.entry(ends.clone()).or_default().extend(places);
        }
    }
    arrows
}

/// Returns the file of a module, or its folder if it has children.
fn label(modules: &Modules, id: Id) -> String {
    let file = modules.file(id);
    if modules.all[id].children.values().all(|child| modules.file(*child) == file) {
        return file;
    }
    let folder = file.strip_suffix("mod.rs").or(file.strip_suffix(".rs")).unwrap_or(&file);
    format!("{}/", folder.trim_end_matches('/'))
}

/// Returns each set of places that can all reach each other.
fn circles(arrows: &Arrows) -> Vec<BTreeSet<&str>> {
    let mut next: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (from, to) in arrows.keys() {
        next.entry(from).or_default().push(to);
    }
    let reached = |from| {
        let (mut reached, mut left) = (BTreeSet::new(), vec![from]);
        while let Some(place) = left.pop() {
            left.extend(next.get(place).into_iter().flatten().filter(|place| reached.insert(**place)));
        }
        reached
    };
    let reach: BTreeMap<&str, BTreeSet<&str>> = next.keys().map(|from| (*from, reached(*from))).collect();
    let circle = |from: &str| -> BTreeSet<&str> {
        let back = |to: &&&str| reach.get(**to).is_some_and(|reach| reach.contains(from));
        reach[from].iter().filter(back).copied().collect()
    };
    let circles: BTreeSet<_> =
        reach.keys().map(|from| circle(from)).filter(|circle| !circle.is_empty()).collect();
    circles.into_iter().collect()
}

/// Describes the cycles selected by `meant`: their members, and the names that connect them.
pub(crate) fn told(kind: &str, arrows: &Arrows, meant: impl Fn(&BTreeSet<&str>) -> bool) -> String {
    let mut text = String::new();
    for circle in circles(arrows).into_iter().filter(meant) {
        let list: Vec<_> = circle.iter().copied().collect();
        let _ = writeln!(text, "circle of {} {kind}: {}", list.len(), list.join(", "));
        for ((from, to), names) in arrows {
            if circle.contains(from.as_str()) && circle.contains(to.as_str()) {
                let names: Vec<_> = names.iter().map(String::as_str).collect();
                let _ = writeln!(text, "  {from} takes from {to}: {}", names.join(", "));
            }
        }
    }
    text
}
