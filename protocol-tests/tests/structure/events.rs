//! Each log line for operators has an event name, which is listed with its level and values in a documented
//! table. The tables contain no other events.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use proc_macro2::{TokenStream, TokenTree};

use super::relative;
use super::tokens::{for_tests, is_punct, past_item};
use protocol_tests::lab::repository;

/// The folders used by both programs: the device, the log and others.
const SHARED: [&str; 5] = ["net", "program", "virtio", "sandbox", "http"];
const NETD: [&str; 2] = ["net-daemon/src", "net-daemon/vhost-user/src"];
const VMM: [&str; 1] = ["vmm/src"];

/// Lines that the log's own code writes without a macro; `netd_log` and `netd_sandbox` test them.
const OF_THE_LOG: [(&str, &str, &[&str]); 2] =
    [("log_lines_missing", "warn", &["lines"]), ("sandbox_violation", "error", &[])];

const LEVELS: [&str; 3] = ["error", "warn", "info"];
/// Functions that take an event and its message, an error.
const SAYING: [&str; 2] = ["say", "last_line"];

/// The properties of an event: its levels, and the keys of its values.
#[derive(Debug, Default, PartialEq, Eq)]
struct Event {
    levels: BTreeSet<String>,
    keys: BTreeSet<String>,
}

type Events = BTreeMap<String, Event>;

fn add(events: &mut Events, name: &str, level: &str, keys: impl IntoIterator<Item = String>) {
    let event = events.entry(name.to_owned()).or_default();
    event.levels.insert(level.to_owned());
    event.keys.extend(keys);
}

/// Returns the text of a string literal.
fn literal(token: Option<&TokenTree>) -> Option<String> {
    Some(token?.to_string().strip_prefix('"')?.strip_suffix('"')?.to_owned())
}

/// Collects the events of all code but tests; lists the lines without an event.
fn read(tokens: TokenStream, events: &mut Events, nameless: &mut Vec<String>) {
    let tokens: Vec<_> = tokens.into_iter().collect();
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        at += 1;
        match (token, tokens.get(at), tokens.get(at + 1)) {
            (TokenTree::Punct(punct), Some(TokenTree::Group(group)), _)
                if punct.as_char() == '#' && for_tests(group) =>
            {
                at = past_item(&tokens, at + 1);
            }
            (TokenTree::Ident(level), bang, Some(TokenTree::Group(line)))
                if is_punct(bang, '!') && LEVELS.iter().any(|known| level == known) =>
            {
                match named(line.stream()) {
                    Some((name, keys)) => add(events, &name, &level.to_string(), keys),
                    None => nameless.push(format!("{level}!{line}")),
                }
            }
            (TokenTree::Ident(name), Some(TokenTree::Group(call)), _)
                if SAYING.iter().any(|known| name == known) =>
            {
                let event = literal(call.stream().into_iter().next().as_ref());
                event.into_iter().for_each(|event| add(events, &event, "error", []));
                read(call.stream(), events, nameless);
            }
            (TokenTree::Group(group), ..) => read(group.stream(), events, nameless),
            _ => {}
        }
    }
}

/// Returns the event of a line and the keys of its values: `target: T, event = "name", key, other:% = value;
/// "..."`.
fn named(line: TokenStream) -> Option<(String, BTreeSet<String>)> {
    let tokens: Vec<_> = line.into_iter().collect();
    let end = (0..tokens.len()).find(|at| is_punct(tokens.get(*at), ';'))?;
    let mut values: BTreeMap<String, Option<String>> = tokens[..end]
        .split(|token| is_punct(Some(token), ','))
        .filter_map(|value| Some((value.first()?.to_string(), literal(value.last()))))
        .collect();
    values.remove("target");
    let event = values.remove("event")??;
    Some((event, values.into_keys().collect()))
}

/// Returns the sources in a folder, without those of tests.
fn sources(folder: &Path, found: &mut Vec<(String, TokenStream)>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        if path.is_dir() && name != "tests" {
            sources(&path, found);
        } else if path.extension().is_some_and(|end| end == "rs") && !["tests", "testing"].contains(&&*name) {
            let text = fs::read_to_string(&path).expect("a source");
            found.push((relative(&path), text.parse().unwrap_or_else(|error| panic!("{path:?}: {error}"))));
        }
    }
}

fn events_of<'a>(folders: impl IntoIterator<Item = &'a str>) -> Events {
    let (mut events, mut found, mut nameless) = (Events::new(), Vec::new(), Vec::new());
    folders.into_iter().for_each(|folder| sources(&repository().join(folder), &mut found));
    for (path, tokens) in found {
        let before = nameless.len();
        read(tokens, &mut events, &mut nameless);
        nameless[before..].iter_mut().for_each(|line| *line = format!("{path}: {line}\n"));
    }
    assert!(nameless.is_empty(), "{}these lines have no event = \"...\"", nameless.concat());
    events
}

/// Returns the rows of the tables below a heading of a page, up to the next heading.
fn documented(page: &str, heading: &str) -> Events {
    let text = fs::read_to_string(repository().join(page)).expect("a page");
    let (_, below) = text.split_once(&format!("\n## {heading}\n")).expect("the heading");
    let table = below.split("\n## ").next().unwrap_or_default();
    let words = |cell: &str| {
        let words = cell.split(',').map(|word| word.trim().trim_matches('`').to_owned());
        words.filter(|word| !word.is_empty()).collect()
    };
    let mut events = Events::new();
    for row in table.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<_> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [name, levels, values, meaning, to_do] = cells[..] else { panic!("{page}: five cells: {row}") };
        assert!(!meaning.is_empty() && !to_do.is_empty(), "{page}: {row}");
        let event = Event { levels: words(levels), keys: words(values) };
        let known = events.insert(name.trim_matches('`').to_owned(), event);
        assert!(known.is_none(), "{page}: {name} stands twice");
    }
    events
}

/// Reports the differences between documentation and sources.
fn compare(said: &mut String, page: &str, documented: &Events, events: &Events) {
    for (name, event) in events.iter().filter(|(name, event)| documented.get(*name) != Some(event)) {
        let join = |words: &BTreeSet<String>| words.iter().cloned().collect::<Vec<_>>().join(", ");
        *said += &format!("{page}: | `{name}` | {} | {} |\n", join(&event.levels), join(&event.keys));
    }
    for name in documented.keys().filter(|name| !events.contains_key(*name)) {
        *said += &format!("{page}: {name} is in no source\n");
    }
}

#[test]
fn each_event_is_documented() {
    let folders: Vec<_> = SHARED.iter().map(|name| format!("net-daemon/{name}/src")).collect();
    let mut shared = events_of(folders.iter().map(String::as_str));
    for (name, level, keys) in OF_THE_LOG {
        add(&mut shared, name, level, keys.iter().map(|key| (*key).to_owned()));
    }
    let mut own = [events_of(NETD), events_of(VMM)];
    for events in &mut own {
        events.retain(|name, event| {
            let Some(both) = shared.get_mut(name) else { return true };
            both.levels.append(&mut event.levels);
            both.keys.append(&mut event.keys);
            false
        });
    }
    let [netd, vmm] = own;
    assert!(netd.len() > 30 && vmm.len() > 30 && shared.len() > 15, "lines of the log are found");
    let snake = |name: &&String| !name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    let odd: Vec<_> = netd.keys().chain(vmm.keys()).chain(shared.keys()).filter(snake).collect();
    assert!(odd.is_empty(), "names are in snake_case: {odd:?}");
    let mut said = String::new();
    let page = "docs/reference/events.md";
    for (heading, events) in [("volt-netd", &netd), ("Both programs", &shared), ("volt-vmm", &vmm)] {
        compare(&mut said, page, &documented(page, heading), events);
    }
    assert!(said.is_empty(), "{said}the tables of events differ from what is logged");
}

#[test]
fn a_line_without_a_name_is_found() {
    let (mut events, mut nameless) = (Events::new(), Vec::new());
    let text = r#"
        fn f() {
            info!(target: END, event = "one", pid:% = self.pid, vring; "a line; {why}");
            if let Err(error) = g() { warn!("nameless; {error}") }
            logging::say("two", &text);
            debug!("for developers");
        }
        #[cfg(test)]
        mod tests { fn t() { error!("not of the program") } }
    "#;
    read(text.parse().expect("tokens"), &mut events, &mut nameless);
    assert_eq!(nameless.len(), 1, "{nameless:?}");
    assert_eq!(events.keys().collect::<Vec<_>>(), ["one", "two"]);
    let keys: Vec<_> = events["one"].keys.iter().collect();
    assert_eq!(keys, ["pid", "vring"]);
}
