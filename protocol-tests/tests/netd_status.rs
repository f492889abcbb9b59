//! `volt-netd ctl status`: the table agrees with the JSON, and `--watch` continues across crashes and
//! hand-overs.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Command, Stdio};

use protocol_tests::daemon::{poll_until, program};
use protocol_tests::lab::repository;
use protocol_tests::rig::{LIMIT, Rig};
use protocol_tests::session::Setup;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const CONTROL: [&str; 2] = ["--control", "{control}"];

fn ctl(rig: &Rig, arguments: &[&str]) -> Command {
    // The parent of the tests may ignore SIGINT, which children would inherit.
    let mut command = Command::new("env");
    command.arg("--default-signal").arg(program("volt-netd"));
    command.args(["ctl", "--control"]).arg(rig.control()).arg("status").args(arguments);
    command
}

/// Returns the cells of the first line with this beginning.
fn cells<'a>(text: &'a str, begin: &[&str]) -> Vec<&'a str> {
    let mut lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    lines.find(|cells| cells.starts_with(begin)).unwrap_or_else(|| panic!("no line {begin:?} in\n{text}"))
}

/// A `--watch` whose output is read block by block.
struct Watch {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Watch {
    fn start(rig: &Rig) -> Watch {
        let mut command = ctl(rig, &["--watch", "0.1"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("volt-netd ctl");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        Watch { child, output }
    }

    /// Returns the lines up to the next empty one.
    fn block(&mut self) -> String {
        let mut block = String::new();
        loop {
            let before = block.len();
            let read = self.output.read_line(&mut block).expect("text");
            if read == 0 || &block[before..] == "\n" {
                block.truncate(before);
                return block;
            }
        }
    }

    /// Returns a block that `fits`, with the frames of both ways so far; no block counts less than an earlier
    /// one.
    fn frames(&mut self, last: &mut [u64; 2], fits: impl Fn(&str, [u64; 2]) -> bool) -> String {
        let found = poll_until(LIMIT, || {
            let block = self.block();
            let number = |text: &str| text.replace(',', "").parse().expect("a number");
            // From the right, because a rate and its unit are two words, and a dash is one.
            let frames = ["rx", "tx"].map(|way| {
                let cells = cells(&block, &["0", way]);
                number(cells[cells.len() - 4])
            });
            assert!(frames[0] >= last[0] && frames[1] >= last[1], "{last:?}, and then\n{block}");
            *last = frames;
            fits(&block, frames).then_some(block)
        });
        found.unwrap_or_else(|| panic!("no such block; frames so far: {last:?}"))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn people_and_programs_are_told_the_same() {
    let Some(mut rig) = Rig::new("people_and_programs_are_told_the_same", &CONTROL) else { return };
    let mut session = rig.session(&Setup::default());
    rig.both_ways(&mut session, 20);
    let output = |arguments: &[&str]| {
        let output = ctl(&rig, arguments).output().expect("volt-netd ctl");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("text")
    };
    let (table, json) = (output(&[]), output(&["--json"]));
    let json: Value = serde_json::from_str(&json).expect("JSON");
    let counters = &json["counters"][0];
    for (way, key) in [("rx", "rx_frames"), ("tx", "tx_frames")] {
        let frames = counters[key].as_u64().expect("a number");
        assert!(frames >= 20);
        assert_eq!(cells(&table, &["0", way])[2], frames.to_string(), "{table}");
    }
    assert_eq!(cells(&table, &["interface"])[1..], ["tap0", "up"], "{table}");
    assert_eq!(cells(&table, &["front-end"])[1], "connected,", "{table}");
    assert_eq!(cells(&table, &["sandbox"])[1], "on", "{table}");
    assert_eq!(cells(&table, &["0", "rx", "running"])[3], json["vrings"][0]["size"].to_string(), "{table}");
    assert!(table.starts_with("volt-netd "), "{table}");
    let wrong = ctl(&rig, &["--json", "--watch", "1"]).output().expect("volt-netd ctl");
    assert_eq!(wrong.status.code(), Some(2));
}

/// Collects the keys of all nested objects.
fn keys(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(object) => object.iter().for_each(|(key, value)| {
            found.insert(key.clone());
            keys(value, found);
        }),
        Value::Array(list) => list.iter().for_each(|value| keys(value, found)),
        _ => {}
    }
}

/// Every key is in the tables of the docs, and every documented key exists.
#[test]
fn every_key_is_documented() {
    let guard = ["--mac", "52:54:00:01:02:03", "--guard", "--guest-ip", "192.0.2.10"];
    let arguments = [&CONTROL[..], &guard].concat();
    let Some(rig) = Rig::new("every_key_is_documented", &arguments) else { return };
    let _session = rig.session(&Setup::default());
    let mut shown = BTreeSet::new();
    keys(&rig.status(), &mut shown);
    // The part of the reference page about volt-netd.
    let section = |name: &str| {
        let path = repository().join("docs/reference").join(name);
        let page = std::fs::read_to_string(path).expect(name);
        let (_, below) = page.split_once("\n## volt-netd\n").expect("a section");
        below.split("\n## ").next().unwrap_or_default().to_owned()
    };
    let in_column = |page: &str, column: usize| -> BTreeSet<String> {
        let rows = page.lines().filter(|line| line.starts_with("| "));
        let cells = rows.filter_map(|row| row.split('|').nth(column).map(str::to_owned)).collect::<String>();
        cells.split('`').skip(1).step_by(2).map(str::to_owned).collect()
    };
    let mut documented = in_column(&section("status.md"), 1);
    documented.append(&mut in_column(&section("counters.md"), 2));
    documented.extend(["rx_rate", "tx_rate", "pair"].map(str::to_owned));
    assert_eq!(shown, documented);
}

/// Counters continue across killed workers and a hand-over, and the watch ends with the daemon.
#[test]
fn a_watch_outlives_workers_and_daemons() {
    let arguments = [&CONTROL[..], &["--supervise"]].concat();
    let Some(mut rig) = Rig::new("a_watch_outlives_workers_and_daemons", &arguments) else { return };
    let mut session = rig.session(&Setup::default());
    rig.both_ways(&mut session, 10);
    let mut watch = Watch::start(&rig);
    let mut last = [0, 0];
    let first = watch.frames(&mut last, |_, frames| frames[1] >= 10);
    assert_eq!(cells(&first, &["0", "tx"])[2..5], ["-", "-", "-"], "nothing to compare with: {first}");
    assert!(
        first.lines().next().is_some_and(|line| line.contains("Z  tap0 up, front-end connected")),
        "{first}"
    );
    let moving = |block: &str, _: [u64; 2]| block.contains("bit/s");
    watch.frames(&mut last, moving);
    for round in 1..=3 {
        rig.kill_worker();
        rig.both_ways(&mut session, 10);
        let restarts = format!("{round} restart");
        watch.frames(&mut last, |block, frames| block.contains(&restarts) && frames[1] >= 10 + 10 * round);
    }
    rig.take_over(&["--supervise"]);
    rig.both_ways(&mut session, 10);
    let block = watch.frames(&mut last, |block, frames| block.contains("1 take-over") && frames[1] >= 50);
    assert!(block.contains(&format!("process {}", rig.worker().as_raw_nonzero())), "{block}");
    // Meanwhile a second watch is ended by SIGINT, and a third ends when its reader closes the pipe.
    let mut interrupted = Watch::start(&rig);
    interrupted.block();
    kill_process(Pid::from_child(&interrupted.child), Signal::INT).expect("signalled");
    let ended = poll_until(LIMIT, || interrupted.child.try_wait().expect("a child"));
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&ended.expect("it ends")), Some(libc::SIGINT));
    let mut head = ctl(&rig, &["--watch", "0.1"]).stdout(Stdio::piped()).spawn().expect("volt-netd ctl");
    drop(head.stdout.take());
    assert!(poll_until(LIMIT, || head.try_wait().expect("a child")).expect("it ends").success());

    drop(session);
    assert!(rig.daemon.stop(LIMIT).expect("it ends").success());
    let ended = poll_until(LIMIT, || watch.child.try_wait().expect("a child")).expect("it ends");
    assert_eq!(ended.code(), Some(1));
    let mut why = String::new();
    watch.child.stderr.take().expect("piped").read_to_string(&mut why).expect("text");
    assert!(why.contains("no daemon answers at"), "{why}");
}

/// On a terminal each block replaces the previous one.
#[test]
fn a_terminal_is_redrawn_in_place() {
    let Some(rig) = Rig::new("a_terminal_is_redrawn_in_place", &CONTROL) else { return };
    let line = format!(
        "timeout 2 '{}' ctl --control '{}' status --watch 0.3",
        program("volt-netd").display(),
        rig.control().display()
    );
    let run = |term: &str| {
        let mut script = Command::new("script");
        script.args(["-qec", &line, "/dev/null"]).env("TERM", term).stdin(Stdio::null());
        let output = script.output().expect("script of util-linux");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let (drawn, dumb) = (run("xterm"), run("dumb"));
    assert!(drawn.matches("\x1b[H\x1b[J").count() >= 2 && !drawn.contains("\r\n\r\n"), "{drawn:?}");
    assert!(!dumb.contains('\x1b') && dumb.contains("\r\n\r\n"), "{dumb:?}");
}
