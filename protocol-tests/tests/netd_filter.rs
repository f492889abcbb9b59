//! The filter of a guest's frames: its options, the frames that it refuses, its policy, and all of that in
//! the next process.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use protocol_tests::capture::Client;
use protocol_tests::daemon::{poll_until, program};
use protocol_tests::far_end::PortKind;
use protocol_tests::rig::{LIMIT, Rig};
use protocol_tests::scrape::Scrape;
use protocol_tests::session::{Session, Setup};
use protocol_tests::wire::protocol;
use serde_json::Value;

const MAC: &str = "52:54:00:01:02:03";
const GUEST: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];
const PEER: [u8; 6] = [0x52, 0x54, 0, 9, 9, 9];
const GUARD: [&str; 7] =
    ["--control", "{control}", "--guard", "--guest-ip", "192.0.2.10,2001:db8::10", "--mac", MAC];
/// A policy that allows datagrams to the neighbour, and one that allows nothing and refuses nothing.
const POLICY: &str = r#"
[network]
on-link = "192.0.2.0/24"
neighbours = { "192.0.2.1" = "52:54:00:09:09:09" }

[[allow]]
to = "192.0.2.1"
protocol = "udp"
"#;
const OTHER: &str = "mode = \"log\"\n";

/// Returns a UDP datagram from the guest to its neighbour, from this MAC address. `number` is its payload.
fn datagram(from: [u8; 6], number: u32) -> Vec<u8> {
    udp(from, PEER, [10, 1], number)
}

/// Returns a UDP datagram from the neighbour to the guest.
fn answer(number: u32) -> Vec<u8> {
    udp(PEER, GUEST, [1, 10], number)
}

fn udp(from: [u8; 6], to: [u8; 6], hosts: [u8; 2], number: u32) -> Vec<u8> {
    let mut ip = [0x45, 0, 0, 46, 0, 0, 0, 0, 64, 17, 0, 0, 192, 0, 2, hosts[0], 192, 0, 2, hosts[1]];
    let sum: u32 = ip.as_chunks().0.iter().map(|word| u32::from(u16::from_be_bytes(*word))).sum();
    ip[10..12].copy_from_slice(&(!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes());
    // From and to port 4000, without a checksum.
    let header = [0x0f, 0xa0, 0x0f, 0xa0, 0, 26, 0, 0];
    let payload = [&number.to_be_bytes()[..], &[0; 14]].concat();
    [&to[..], &from, &[0x08, 0], &ip, &header, &payload].concat()
}

/// Moves frames both ways with refused ones in between. Returns the number of refused ones.
fn guarded(rig: &mut Rig, session: &mut Session) -> u64 {
    for _ in 0..3 {
        let number = rig.number();
        session.tx(0).send(&datagram(PEER, number), LIMIT).expect("a refused frame comes back");
        rig.guest_to_wire(session, &datagram(GUEST, number));
        rig.wire_to_guest(session, &answer(number));
    }
    3
}

fn netd(arguments: &[&str]) -> Output {
    Command::new(program("volt-netd")).args(arguments).stdin(Stdio::null()).output().expect("volt-netd")
}

fn ctl(rig: &Rig, arguments: &[&str]) -> Output {
    let mut command = Command::new(program("volt-netd"));
    command.args(["ctl", "--control"]).arg(rig.control()).args(arguments).stdin(Stdio::null());
    command.output().expect("volt-netd ctl")
}

/// Returns what `ctl policy` prints.
fn policy(rig: &Rig, arguments: &[&str]) -> String {
    let output = ctl(rig, &[&["policy"], arguments].concat());
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).expect("text")
}

/// Returns why `ctl policy` fails.
fn refusal(rig: &Rig, arguments: &[&str]) -> String {
    let output = ctl(rig, &[&["policy"], arguments].concat());
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {output:?}");
    String::from_utf8(output.stderr).expect("text")
}

/// Returns how many frames with a wrong source were refused.
fn refused(rig: &Rig) -> u64 {
    rig.status()["filter"]["refused"]["tx"]["source_mac"].as_u64().unwrap_or(0)
}

/// Writes a policy file.
fn file(dir: &tempfile::TempDir, name: &str, text: &str) -> PathBuf {
    let path = dir.path().join(name);
    std::fs::write(&path, text).expect("a file");
    path
}

fn text(path: &Path) -> &str {
    path.to_str().expect("text")
}

#[test]
fn wrong_options_are_refused_by_name() {
    let tap = ["--tap", "tap0", "--socket", "/nonexistent/s"];
    for (arguments, words) in [
        (&["--guard", "--guest-ip", "192.0.2.10"][..], "add --mac"),
        (&["--mac", MAC, "--guard"], "add --guest-ip ADDRESS or --guard=learn,dhcp=ADDRESS"),
        (&["--mac", MAC, "--guest-ip", "192.0.2.10"], "add --guard or --policy FILE"),
        (&["--mac", MAC, "--flows", "64"], "add --guard or --policy FILE"),
        (&["--mac", MAC, "--guard=learn"], "learn needs dhcp=ADDRESS, prefix=PREFIX or both"),
        (&["--mac", MAC, "--guard", "--guest-ip", "ff02::1"], "the address of a host"),
        (&["--mac", MAC, "--guard", "--guest-ip", "::1,::2,::3"], "the address of a host"),
    ] {
        let output = netd(&[&tap, arguments].concat());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && said.contains(words), "{arguments:?}: {said}");
    }
    let dir = tempfile::tempdir().expect("a directory");
    let missing = dir.path().join("missing.toml");
    let wrong = file(&dir, "wrong.toml", "mode = \"enforce\"\nallow = 7\n");
    for (path, words) in [(&missing, "No such file"), (&wrong, "line 2")] {
        let guard = ["--mac", MAC, "--guest-ip", "192.0.2.10", "--policy", text(path)];
        let output = netd(&[&tap[..], &guard].concat());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let names = said.contains(words) && said.contains(text(path));
        assert!(output.status.code() == Some(1) && names, "{said}");
    }
}

#[test]
fn frames_of_another_are_refused_counted_listed_and_captured() {
    PortKind::ALL.into_iter().for_each(frames_of_another_are_refused_counted_listed_and_captured_on);
}

fn frames_of_another_are_refused_counted_listed_and_captured_on(port: PortKind) {
    let test = "frames_of_another_are_refused_counted_listed_and_captured";
    let arguments = [&GUARD[..], &["--metrics", "{metrics}"]].concat();
    let Some(mut rig) = Rig::on(port, test, &arguments) else { return };
    let name = port.interface();
    rig.logged(&[
        &format!("{name} with 1 queue pair"),
        "guarded as 52:54:00:01:02:03 with 192.0.2.10, 2001:db8::10",
    ]);
    let mut session = rig.session(&Setup::default());
    let mut capture = Client::start(&rig, &[]);
    let count = guarded(&mut rig, &mut session);
    let frames = capture.stop().frames;
    let because = "refused: source_mac (the source MAC address is not the guest's)";
    let bad: Vec<_> = frames.iter().filter(|frame| frame.comments.contains(&because.to_owned())).collect();
    assert_eq!((bad.len() as u64, frames.len() as u64), (count, 3 * count), "{frames:#?}");
    assert!(bad.iter().all(|frame| !frame.inbound && frame.bytes[6..12] == PEER), "{bad:#?}");

    let status = rig.status();
    assert_eq!(status["counters"][0]["tx_filtered"], count, "{status:#}");
    assert_eq!(status["counters"][0]["tx_frames"], count, "{status:#}");
    let filter = &status["filter"];
    assert_eq!((&filter["mac"], &filter["policy"]), (&MAC.into(), &Value::Null), "{filter:#}");
    assert_eq!(filter["addresses"], serde_json::json!(["192.0.2.10", "2001:db8::10"]));
    assert_eq!((refused(&rig), &filter["flows_max"]), (count, &16_384.into()), "{filter:#}");
    let scrape = Scrape::new(&rig.metrics(), LIMIT);
    let labels = format!("interface=\"{name}\",direction=\"tx\",reason=\"source_mac\"");
    assert_eq!(scrape.get(&format!("volt_netd_filter_refused_frames_total{{{labels}}}")), count as f64);
    assert_eq!(scrape.get(&format!("volt_netd_filter_flows_max{{interface=\"{name}\"}}")), 16_384.0);
    let table = String::from_utf8(ctl(&rig, &["status"]).stdout).expect("text");
    assert!(table.contains("52:54:00:01:02:03 with 192.0.2.10, 2001:db8::10, 3 frames refused"), "{table}");

    let listed = policy(&rig, &["log", "--json"]);
    let listed: Vec<Value> = listed.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let frames: u64 = listed.iter().filter_map(|entry| entry["frames"].as_u64()).sum();
    assert_eq!(frames, count, "{listed:#?}");
    assert!(listed.iter().all(|entry| entry["reason"] == "source_mac" && entry["refused"] == true));
    assert!(policy(&rig, &["log"]).contains("source_mac, 3 frames"));
    assert!(policy(&rig, &["suggest"]).starts_with("# No frame was refused for lack of a rule."));
    for request in [&["show"][..], &["test", "tcp 192.0.2.1 443"]] {
        assert!(refusal(&rig, request).contains("has no policy"), "{request:?}");
    }
}

/// `--follow` shows what is refused later, and ends with its reader.
#[test]
fn the_list_is_followed() {
    let Some(mut rig) = Rig::new("the_list_is_followed", &GUARD) else { return };
    let mut session = rig.session(&Setup::default());
    let mut command = Command::new(program("volt-netd"));
    command.args(["ctl", "--control"]).arg(rig.control()).args(["policy", "log", "--follow"]);
    let mut client = command.stdout(Stdio::piped()).spawn().expect("volt-netd ctl");
    let mut lines = BufReader::new(client.stdout.take().expect("piped"));
    let mut count: u64 = 0;
    for _ in 0..2 {
        guarded(&mut rig, &mut session);
        // The list may leave out a frame while it is read.
        let before = count;
        while count == before {
            let mut line = String::new();
            assert!(lines.read_line(&mut line).expect("text") > 0, "it has ended");
            let (_, frames) = line.split_once("source_mac, ").expect("an entry");
            count = frames.split(' ').next().and_then(|count| count.parse().ok()).expect("a count");
        }
        assert!(count > before, "{count} after {before}");
    }
    drop(lines);
    let ended = || {
        session.tx(0).send(&datagram(PEER, 1), LIMIT).expect("a refused frame comes back");
        client.try_wait().expect("a child")
    };
    assert!(poll_until(LIMIT, ended).expect("it ends").success());
}

#[test]
fn a_policy_is_replaced_at_once() {
    let dir = tempfile::tempdir().expect("a directory");
    let (first, other) = (file(&dir, "first.toml", POLICY), file(&dir, "other.toml", OTHER));
    let arguments = [&GUARD[..], &["--policy", text(&first)]].concat();
    let Some(mut rig) = Rig::new("a_policy_is_replaced_at_once", &arguments) else { return };
    rig.logged(&["guarded as 52:54:00:01:02:03", &format!("policy {}: enforce", first.display())]);
    let mut session = rig.session(&Setup::default());
    guarded(&mut rig, &mut session);
    assert_eq!(policy(&rig, &["show"]), POLICY);
    assert_eq!(rig.status()["filter"]["policy"], "enforce");
    assert!(policy(&rig, &["test", "udp 192.0.2.1 4000"]).contains("allow"));
    let denied = ctl(&rig, &["policy", "test", "tcp 192.0.2.1 443"]);
    assert!(denied.status.code() == Some(1) && !denied.stdout.is_empty(), "{denied:?}");

    assert!(policy(&rig, &["set", text(&other)]).contains("policy: log"));
    rig.logged(&["policy changed: guarded as 52:54:00:01:02:03", "policy: log"]);
    assert_eq!(policy(&rig, &["show"]), OTHER);
    assert_eq!(rig.status()["filter"]["policy"], "log");
    // The rules allow none of these flows, but refuse none either. The guard refuses as ever.
    let mut capture = Client::start(&rig, &[]);
    guarded(&mut rig, &mut session);
    rig.wire_to_guest(&mut session, &udp(PEER, GUEST, [7, 10], 1));
    let frames = capture.stop().frames;
    let said = |inbound: bool, words: &str| {
        let is = |comment: &String| comment.starts_with(words);
        frames.iter().filter(|frame| frame.inbound == inbound && frame.comments.iter().any(is)).count()
    };
    let counts = [said(false, "refused: source_mac"), said(false, "would be refused: "), said(true, "would")];
    assert_eq!(counts, [3, 1, 1], "the first frame of each flow: {frames:#?}");
    assert!(policy(&rig, &["log"]).contains("would be refused, "));
    let wrong = file(&dir, "wrong.toml", "mode = \"enforce\"\nallow = 7\n");
    assert!(refusal(&rig, &["set", text(&wrong)]).contains("line 2"));
    // A client may send anything: the daemon checks it, too.
    let set = |text: &str| serde_json::json!({ "Policy": { "Set": text } }).to_string();
    assert!(ask(&rig, &set("\nmode = 7")).contains("line 2"));
    assert_eq!(policy(&rig, &["show"]), OTHER, "nothing has changed");
    assert!(ask(&rig, &set(POLICY)).contains("Policy"));
    guarded(&mut rig, &mut session);
    assert_eq!(policy(&rig, &["show"]), POLICY);
    assert_eq!(refused(&rig), 9);
    session.frontend.sync().expect("the connection is served");
}

/// The guest is told that its datagram was refused. The list names the peer, and a rule for it.
#[test]
fn a_suggested_rule_allows_what_was_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let text_of = POLICY.replace("\"udp\"", "\"tcp\"");
    let first = file(&dir, "first.toml", &text_of);
    let arguments = [&GUARD[..], &["--policy", text(&first)]].concat();
    let Some(mut rig) = Rig::new("a_suggested_rule_allows_what_was_refused", &arguments) else { return };
    let mut session = rig.session(&Setup::default());
    session.tx(0).send(&datagram(GUEST, 1), LIMIT).expect("a refused frame comes back");
    let told = session.rx(0).recv(LIMIT).expect("the guest is told").bytes;
    // An ICMP error for the guest, as if from its neighbour.
    assert_eq!(
        (&told[..6], &told[12..14], told[23], told[34]),
        (&GUEST[..], &[8, 0][..], 1, 3),
        "{told:02x?}"
    );
    let listed: Value = serde_json::from_str(&policy(&rig, &["log", "--json"])).expect("one entry");
    assert_eq!((&listed["peer"], &listed["port"]), (&"192.0.2.1".into(), &4000.into()), "{listed:#}");
    assert!(policy(&rig, &["log"]).contains("  udp 192.0.2.1 4000: not_"), "{listed:#}");
    let rules = policy(&rig, &["suggest"]);
    let better = file(&dir, "better.toml", &format!("{text_of}{rules}"));
    policy(&rig, &["set", text(&better)]);
    guarded(&mut rig, &mut session);
}

#[test]
fn a_daemon_without_a_filter_has_no_policy() {
    let dir = tempfile::tempdir().expect("a directory");
    let first = file(&dir, "first.toml", POLICY);
    let Some(rig) = Rig::new("a_daemon_without_a_filter_has_no_policy", &GUARD[..2]) else { return };
    for request in
        [&["set", text(&first)][..], &["show"], &["test", "tcp 192.0.2.1 443"], &["log"], &["suggest"]]
    {
        assert!(refusal(&rig, request).contains("without --guard or --policy"), "{request:?}");
    }
    assert!(rig.status()["filter"].is_null());
}

/// An announcement after a migration passes, but not one of another guest.
#[test]
fn the_guest_is_announced() {
    let Some(rig) = Rig::new("the_guest_is_announced", &GUARD) else { return };
    let wanted = protocol::MQ | protocol::REPLY_ACK | protocol::RARP;
    let session = rig.session(&Setup { protocol: wanted, ..Setup::default() });
    session.frontend.send_rarp(PEER).expect("taken");
    rig.logged(&["52:54:00:09:09:09 is not announced", "the filter knows the guest by another address"]);
    session.frontend.send_rarp(GUEST).expect("taken");
    let (_, frame) = rig.wire.recv(LIMIT).expect("the wire").expect("an announcement");
    assert_eq!((&frame[6..12], &frame[12..14]), (&GUEST[..], &[0x80, 0x35][..]));
    assert_eq!(refused(&rig), 1);
}

/// Sends a request to the control socket. Returns the answer.
fn ask(rig: &Rig, document: &str) -> String {
    let mut socket = UnixStream::connect(rig.control()).expect("the control socket");
    socket.set_read_timeout(Some(LIMIT)).expect("a limit");
    let words = [document.len() as u32, 0].map(u32::to_le_bytes).concat();
    socket.write_all(&[&words, document.as_bytes()].concat()).expect("sent");
    let mut words = [[0; 4]; 2];
    socket.read_exact(words.as_flattened_mut()).expect("an answer");
    let mut document = vec![0; u32::from_le_bytes(words[0]) as usize];
    socket.read_exact(&mut document).expect("all of it");
    String::from_utf8(document).expect("text")
}

/// A program of an earlier format would pass all frames. Without a filter, it can take over as ever.
#[test]
fn no_program_that_cannot_filter_takes_over() {
    let test = "no_program_that_cannot_filter_takes_over";
    let take_over = |formats: &str| format!(r#"{{"TakeOver":{{"formats":{formats},"program":"another"}}}}"#);
    let Some(mut rig) = Rig::new(test, &GUARD) else { return };
    let mut session = rig.session(&Setup::default());
    guarded(&mut rig, &mut session);
    for formats in ["[1]", "[1,2]"] {
        let said = ask(&rig, &take_over(formats));
        assert!(
            said.contains("this daemon filters its guest's frames, and the new program cannot"),
            "{said}"
        );
        guarded(&mut rig, &mut session);
    }
    let offer: Value = serde_json::from_str(&ask(&rig, &take_over("[1,2,3]"))).expect("JSON");
    let state = &offer["Offer"]["state"];
    assert_eq!(
        (&state["format"], &state["filter"]["setup"]["flows"]),
        (&3.into(), &16_384.into()),
        "{state:#}"
    );
    let fds = offer["Offer"]["fds"].as_array().expect("descriptors");
    assert!(fds.contains(&state["filter"]["memory"]), "{offer:#}");
    guarded(&mut rig, &mut session);

    let Some(rig) = Rig::new(test, &GUARD[..2]) else { return };
    let offer: Value = serde_json::from_str(&ask(&rig, &take_over("[1,2,3]"))).expect("JSON");
    assert_eq!(offer["Offer"]["state"]["format"], 2, "an older program can read it: {offer:#}");

    // Nor does one that does not know the port.
    for port in [PortKind::Stream, PortKind::Xdp] {
        let Some(mut rig) = Rig::on(port, test, &GUARD[..2]) else { return };
        let mut session = rig.session(&Setup::default());
        let said = ask(&rig, &take_over("[1,2,3]"));
        assert!(said.contains("its port is one of --stream, --dgram and --xdp"), "{said}");
        rig.both_ways(&mut session, 3);
        let offer: Value = serde_json::from_str(&ask(&rig, &take_over("[1,2,3,4]"))).expect("JSON");
        assert_eq!(offer["Offer"]["state"]["format"], 4, "{offer:#}");
    }
}

/// The filter goes on after a hand-over, with what the new command line changes.
#[test]
fn a_successor_filters_from_the_first_frame() {
    PortKind::ALL.into_iter().for_each(a_successor_filters_from_the_first_frame_on);
}

fn a_successor_filters_from_the_first_frame_on(port: PortKind) {
    let dir = tempfile::tempdir().expect("a directory");
    let (first, other) = (file(&dir, "first.toml", POLICY), file(&dir, "other.toml", OTHER));
    let Some(mut rig) = Rig::on(port, "a_successor_filters_from_the_first_frame", &GUARD) else { return };
    let mut session = rig.session(&Setup::default());
    let mut count = guarded(&mut rig, &mut session);
    for (arguments, mode) in [
        (&[][..], Value::Null),
        (&["--policy", text(&first)], "enforce".into()),
        (&["--supervise"], "enforce".into()),
        (&["--guard", "--guest-ip", "192.0.2.10"], "enforce".into()),
        (&["--policy", text(&other), "--supervise"], "log".into()),
    ] {
        rig.take_over(arguments);
        count += guarded(&mut rig, &mut session);
        let status = rig.status();
        assert_eq!(status["filter"]["policy"], mode, "{arguments:?}: {status:#}");
        assert_eq!(refused(&rig), count, "the memory goes on: {status:#}");
    }
    assert_eq!(rig.status()["filter"]["addresses"], serde_json::json!(["192.0.2.10"]));
    // Another size of the flow table needs other memory.
    rig.take_over(&["--guard", "--flows", "128"]);
    assert_eq!(guarded(&mut rig, &mut session), refused(&rig));
    assert_eq!(rig.status()["filter"]["flows_max"], 128);
}

/// A successor adds a filter to a guest without one. It needs the guest's addresses.
#[test]
fn a_successor_adds_a_filter() {
    let arguments = ["--control", "{control}", "--mac", MAC];
    let Some(mut rig) = Rig::new("a_successor_adds_a_filter", &arguments) else { return };
    let mut session = rig.session(&Setup::default());
    rig.both_ways(&mut session, 3);
    let mut successor = rig.successor(&["--guard"]);
    let status = successor.wait(LIMIT).expect("it gives up");
    assert_eq!(status.code(), Some(1), "{}", successor.log());
    let why = successor.logged(0, &["add --guest-ip ADDRESS or --guard=learn,dhcp=ADDRESS"], LIMIT);
    assert!(why.is_some(), "{}", successor.log());
    rig.both_ways(&mut session, 3);
    rig.take_over(&["--guard", "--guest-ip", "192.0.2.10"]);
    rig.logged(&["guarded as 52:54:00:01:02:03 with 192.0.2.10"]);
    assert_eq!(guarded(&mut rig, &mut session), refused(&rig));
    // The old daemon may have offered an address that is not the guest's.
    rig.take_over(&["--mac", "52:54:00:0a:0b:0c", "--guard"]);
    rig.logged(&["guarded as 52:54:00:0a:0b:0c with 192.0.2.10"]);
}

/// A worker that is restarted has the policy that was in force, not that of the file.
#[test]
fn a_restarted_worker_filters() {
    PortKind::ALL.into_iter().for_each(a_restarted_worker_filters_on);
}

fn a_restarted_worker_filters_on(port: PortKind) {
    let dir = tempfile::tempdir().expect("a directory");
    let (first, other) = (file(&dir, "first.toml", POLICY), file(&dir, "other.toml", OTHER));
    let arguments = [&GUARD[..], &["--supervise", "--policy", text(&first)]].concat();
    let Some(mut rig) = Rig::on(port, "a_restarted_worker_filters", &arguments) else { return };
    let mut session = rig.session(&Setup::default());
    let mut count = guarded(&mut rig, &mut session);
    std::fs::write(&first, "nonsense").expect("a file");
    rig.kill_worker();
    count += guarded(&mut rig, &mut session);
    assert_eq!((refused(&rig), policy(&rig, &["show"])), (count, POLICY.to_owned()));
    policy(&rig, &["set", text(&other)]);
    rig.kill_worker();
    count += guarded(&mut rig, &mut session);
    assert_eq!((refused(&rig), policy(&rig, &["show"])), (count, OTHER.to_owned()));
    // A successor that dies before it has committed anything leaves nothing of its own behind.
    rig.take_over(&["--supervise"]);
    rig.kill_worker();
    count += guarded(&mut rig, &mut session);
    assert_eq!((refused(&rig), policy(&rig, &["show"])), (count, OTHER.to_owned()));
}
