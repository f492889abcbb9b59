//! Metrics as a scraper reads them: over HTTP, and parsed strictly.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use crate::netns::Netns;

/// The `Accept` header of a scraper that reads both formats.
pub const BOTH: &str =
    "application/openmetrics-text;version=1.0.0;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// Status line and headers, in lower case.
    pub head: String,
    /// The body.
    pub body: String,
}

/// Sends a request line and an `Accept` header to a Unix socket.
///
/// # Errors
/// Returns an error if no answer arrives in time.
pub fn ask(socket: &Path, line: &str, accept: &str, limit: Duration) -> io::Result<Answer> {
    let mut client = UnixStream::connect(socket)?;
    client.set_read_timeout(Some(limit))?;
    client.write_all(request(line, accept).as_bytes())?;
    let mut text = String::new();
    client.read_to_string(&mut text)?;
    answer(&text)
}

/// Sends a request over TCP, from inside a namespace.
///
/// # Errors
/// Returns an error if no answer arrives.
pub fn ask_tcp(netns: &Netns, host: &str, port: u16, line: &str) -> io::Result<Answer> {
    let script = "exec 3<>/dev/tcp/$1/$2 && printf %s \"$3\" >&3 && cat <&3";
    let mut command = netns.command("bash");
    command.args(["-c", script, "ask", host, &port.to_string(), &request(line, "*/*")]);
    answer(&String::from_utf8_lossy(&command.stdout(Stdio::piped()).output()?.stdout))
}

fn request(line: &str, accept: &str) -> String {
    format!("{line} HTTP/1.1\r\nHost: volt\r\nAccept: {accept}\r\n\r\n")
}

fn answer(text: &str) -> io::Result<Answer> {
    let (head, body) = text.split_once("\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
    Ok(Answer { head: head.to_lowercase(), body: body.to_owned() })
}

/// Values by name with labels.
#[derive(Clone, Debug, Default)]
pub struct Scrape(BTreeMap<String, f64>);

impl Scrape {
    /// Reads the metrics at a Unix socket, in the text format.
    ///
    /// # Panics
    /// If they do not arrive, or have another format.
    pub fn new(socket: &Path, limit: Duration) -> Scrape {
        let answer = ask(socket, "GET /metrics", "*/*", limit).expect("metrics");
        assert!(answer.head.starts_with("http/1.1 200 ok\r\n"), "{}", answer.head);
        assert!(answer.head.contains("\r\ncontent-type: text/plain; version=0.0.4;"), "{}", answer.head);
        read(&answer.body, "_total")
    }

    /// Reads the metrics in OpenMetrics.
    ///
    /// # Panics
    /// As [`Scrape::new`].
    pub fn open_metrics(socket: &Path, limit: Duration) -> Scrape {
        let answer = ask(socket, "GET /metrics", BOTH, limit).expect("metrics");
        let kind = "\r\ncontent-type: application/openmetrics-text; version=1.0.0;";
        assert!(answer.head.contains(kind), "{}", answer.head);
        let text = answer.body.strip_suffix("# EOF\n").expect("an end");
        read(text, "")
    }

    /// Returns the value of this name with labels.
    ///
    /// # Panics
    /// If there is none.
    pub fn get(&self, name: &str) -> f64 {
        *self.0.get(name).unwrap_or_else(|| panic!("no {name} in {:#?}", self.0))
    }

    /// Returns whether there is such a value.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Returns the values that never decrease.
    pub fn counters(&self) -> impl Iterator<Item = (&str, f64)> {
        let all = self.0.iter().map(|(name, value)| (name.as_str(), *value));
        all.filter(|(name, _)| name.split('{').next().is_some_and(|name| name.ends_with("_total")))
    }

    /// Returns the names with labels.
    pub fn names(&self) -> BTreeSet<&str> {
        self.0.keys().map(String::as_str).collect()
    }
}

/// Reads families: each with its help, its type and then all of its samples, without duplicates. A counter's
/// family ends in `of_counter`, its samples in `_total`.
///
/// # Panics
/// If the text has another form.
pub fn read(text: &str, of_counter: &str) -> Scrape {
    assert!(text.ends_with('\n') && !text.contains("\n\n"), "lines: {text:?}");
    let (mut scrape, mut families) = (Scrape::default(), BTreeSet::new());
    let (mut family, mut kind) = (String::new(), String::new());
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, help) = help.split_once(' ').expect("a help text");
            assert!(families.insert(name.to_owned()), "{name} comes twice");
            assert!(help.ends_with('.'), "{line}");
            (family, kind) = (name.to_owned(), String::new());
        } else if let Some(described) = line.strip_prefix("# TYPE ") {
            let (name, of) = described.split_once(' ').expect("a type");
            assert!(name == family && kind.is_empty() && ["counter", "gauge"].contains(&of), "{line}");
            assert!(of != "counter" || name.ends_with(of_counter), "{line}");
            kind = of.to_owned();
        } else {
            let (name, value) = line.rsplit_once(' ').expect("a value");
            let plain = name.split('{').next().unwrap_or_default();
            let expected = match kind.as_str() {
                "counter" if of_counter.is_empty() => format!("{family}_total"),
                _ => family.clone(),
            };
            assert!(plain == expected && !kind.is_empty(), "{line} in {family}");
            let value = value.parse().unwrap_or_else(|_| panic!("{line}"));
            assert!(scrape.0.insert(name.to_owned(), value).is_none(), "{name} comes twice");
        }
    }
    scrape
}
