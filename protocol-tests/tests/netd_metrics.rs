//! volt-netd's metrics: correct, in both formats, available whatever happens to the serving process, and
//! without cost to the guest.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use protocol_tests::daemon::{Daemon, poll_until, program};
use protocol_tests::frame::numbered;
use protocol_tests::held::Held;
use protocol_tests::rig::{LIMIT, Rig, namespace};
use protocol_tests::scrape::{BOTH, Scrape, ask, ask_tcp, read};
use protocol_tests::session::Setup;
use protocol_tests::succession::Flow;
use rustix::process::{Signal, kill_process};

const SERVED: [&str; 5] = ["--control", "{control}", "--metrics", "{metrics}", "--supervise"];

/// Returns name and labels of a value of pair 0.
fn of(name: &str, labels: &str) -> String {
    format!("volt_netd_{name}{{interface=\"tap0\",{labels}}}")
}

fn scrape(rig: &Rig) -> Scrape {
    Scrape::new(&rig.metrics(), LIMIT)
}

/// Reads the metrics once the threads of pair 0 have reported.
fn reported(rig: &Rig) -> Scrape {
    let all = |now: &Scrape| {
        let sizes = ["vring=\"0\",kind=\"rx\"", "vring=\"1\",kind=\"tx\""];
        sizes.iter().all(|vring| now.has(&of("vring_size", vring)))
    };
    poll_until(LIMIT, || Some(scrape(rig)).filter(all)).expect("a report")
}

/// Writes both formats for other parsers, if `VOLT_SCRAPES` names a directory (scripts/soak --metrics).
fn keep(rig: &Rig) {
    let Some(directory) = std::env::var_os("VOLT_SCRAPES").map(PathBuf::from) else { return };
    for (file, accept) in [("volt-netd.txt", "*/*"), ("volt-netd.openmetrics", BOTH)] {
        let answer = ask(&rig.metrics(), "GET /metrics", accept, LIMIT).expect("metrics");
        std::fs::write(directory.join(file), answer.body).expect("written");
    }
}

/// Workers are killed under traffic 20 times: no value ever decreases, and the final values match the peer's
/// counts.
#[test]
fn counters_go_on_over_deaths() {
    let Some(rig) = Rig::new("counters_go_on_over_deaths", &SERVED) else { return };
    let mut session = rig.session(&Setup::default());
    let mut flow = Flow::new(1000);
    let mut last = BTreeMap::new();
    let mut grows = || {
        let now = scrape(&rig);
        for (name, value) in now.counters() {
            let before = last.insert(name.to_owned(), value).unwrap_or(0.0);
            assert!(value >= before, "{name} went from {before} to {value}");
        }
        now
    };
    let kills = 20;
    for round in 0..kills {
        flow.run(&mut session, &rig.wire, Duration::from_micros(9_000 + 1370 * round));
        grows();
        kill_process(rig.worker(), Signal::KILL).expect("killed");
        // With or without a worker at this moment.
        grows();
        let up = poll_until(LIMIT, || (scrape(&rig).get("volt_netd_up") == 1.0).then_some(()));
        assert!(up.is_some(), "{}", rig.daemon.log());
    }
    flow.run_to(&mut session, &rig.wire, 500, 100);
    let (out, into) = flow.settle(&mut session, &rig.wire);
    let now = grows();
    assert_eq!(now.get("volt_netd_worker_restarts_total"), kills as f64);
    let counted =
        |direction: &str| now.get(&of("frames_total", &format!("pair=\"0\",direction=\"{direction}\"")));
    // A crash costs at most the count of the current frame; lost and repeated frames were counted.
    let slack = 64.0 * kills as f64;
    for (direction, peer) in [("tx", out.frames), ("rx", into.frames)] {
        let (counted, peer) = (counted(direction), f64::from(peer));
        assert!((counted - peer).abs() <= slack, "{direction}: {counted} for {peer}");
    }
    // Without a crash the counts are exact.
    let before = (counted("tx"), counted("rx"));
    let bytes = |scrape: &Scrape| scrape.get(&of("bytes_total", "pair=\"0\",direction=\"tx\""));
    let bytes_before = bytes(&now);
    for number in 0..100 {
        rig.guest_to_wire(&mut session, &numbered(2_000_000 + number, 1000));
        rig.wire_to_guest(&mut session, &numbered(2_000_000 + number, 1000));
    }
    let now = grows();
    let counted =
        |direction: &str| now.get(&of("frames_total", &format!("pair=\"0\",direction=\"{direction}\"")));
    assert_eq!((counted("tx"), counted("rx")), (before.0 + 100.0, before.1 + 100.0));
    assert_eq!(bytes(&now), bytes_before + 100_000.0);
}

/// Connection, vrings, interface, sandbox, limits and drops have correct values, in both formats and on the
/// control socket. Values that only a supervisor has are absent without one.
#[test]
fn what_is_so_is_served() {
    let Some(mut rig) = Rig::new("what_is_so_is_served", &SERVED[..4]) else { return };
    let idle = scrape(&rig);
    assert_eq!(idle.get("volt_netd_front_end_connected"), 0.0);
    assert!(!idle.has("volt_netd_worker_restarts_total") && !idle.has("volt_netd_front_end_memory_bytes"));
    let mut session = rig.session(&Setup::default());
    rig.both_ways(&mut session, 5);
    for number in 0..3 {
        session.tx(0).offer(&Default::default(), &numbered(number, 90), &[]).expect("room");
    }
    reported(&rig);
    session.tx(0).ring.publish();
    let now = scrape(&rig);
    for (name, value) in [
        ("volt_netd_up", 1.0),
        ("volt_netd_sandboxed", 1.0),
        ("volt_netd_front_end_connected", 1.0),
        ("volt_netd_serving_queue_pairs", 1.0),
    ] {
        assert_eq!(now.get(name), value, "{name}");
    }
    assert!(now.get("volt_netd_front_end_memory_bytes") > 0.0);
    assert!(now.has(&format!("volt_netd_build_info{{version=\"{}\"}}", env!("CARGO_PKG_VERSION"))));
    let (rx, tx) = ("vring=\"0\",kind=\"rx\"", "vring=\"1\",kind=\"tx\"");
    for (vring, state) in [(rx, "running"), (tx, "running")] {
        for known in ["stopped", "disabled", "running", "broken"] {
            let value = now.get(&of("vring_state", &format!("{vring},state=\"{known}\"")));
            assert_eq!(value, f64::from(u8::from(known == state)), "{vring} {known}");
        }
    }
    assert_eq!(now.get(&of("vring_size", rx)), 256.0);
    assert_eq!(now.get(&of("vring_available", rx)), 64.0, "each used buffer was offered again");
    assert_eq!(now.get(&of("vring_no_progress", tx)), 0.0);
    // Frames published without a kick are found by polling.
    for number in 0..3 {
        rig.expect(&numbered(number, 90));
        session.tx(0).used(LIMIT).expect("used");
    }
    assert_eq!(scrape(&rig).get(&of("vring_available", tx)), 0.0);

    rig.netns.ip("link set dev tap0 down").expect("ip");
    let down = poll_until(LIMIT, || {
        (scrape(&rig).get("volt_netd_interface_up{interface=\"tap0\"}") == 0.0).then_some(())
    });
    assert!(down.is_some());
    session.tx(0).send(&numbered(9, 90), LIMIT).expect("used");
    let dropped = of("dropped_total", "pair=\"0\",direction=\"tx\",reason=\"no_port\"");
    assert_eq!(scrape(&rig).get(&dropped), 1.0);

    let open = Scrape::open_metrics(&rig.metrics(), LIMIT);
    assert_eq!(open.names(), scrape(&rig).names());
    keep(&rig);
    let mut ctl = rig.netns.command(program("volt-netd"));
    let printed = ctl
        .args(["ctl", "--control"])
        .arg(rig.control())
        .arg("metrics")
        .stdout(Stdio::piped())
        .output()
        .expect("volt-netd");
    assert_eq!(read(&String::from_utf8_lossy(&printed.stdout), "_total").names(), open.names());
    let socket = rig.metrics();
    assert!(rig.daemon.stop(LIMIT).expect("it ends").success());
    assert!(!socket.exists(), "the socket's file is removed");
}

/// The reference page lists name, type and labels of each metric as served.
#[test]
fn the_page_lists_what_is_served() {
    let page = include_str!("../../docs/reference/metrics.md");
    let cells = |line: &'static str| line.trim_matches('|').split('|').map(str::trim).collect::<Vec<_>>();
    let rows = page.lines().filter(|line| line.starts_with("| `volt_netd_")).map(cells);
    let plain = |text: &str| text.replace('`', "");
    let listed: BTreeSet<_> = rows
        .filter(|row| ["gauge", "counter"].contains(&row[1]))
        .map(|row| (plain(row[0]), plain(row[2]).replace(", ", ",")))
        .collect();
    // Its filter refuses the frame.
    let guard = ["--mac", "52:54:00:01:02:03", "--guard", "--guest-ip", "192.0.2.10"];
    let arguments = [&SERVED[..], &guard].concat();
    let Some(rig) = Rig::new("the_page_lists_what_is_served", &arguments) else { return };
    let mut session = rig.session(&Setup::default());
    session.tx(0).send(&numbered(1, 90), LIMIT).expect("used");
    let now = reported(&rig);
    let shape = |name: &str| {
        let (name, labels) = name.trim_end_matches('}').split_once('{').unwrap_or((name, ""));
        let keys = labels.split(',').filter_map(|label| label.split_once('=')).map(|(key, _)| key);
        (name.to_owned(), keys.collect::<Vec<_>>().join(","))
    };
    assert_eq!(listed, now.names().into_iter().map(shape).collect());
}

/// A rate limit that delays frames is counted each time.
#[test]
fn waits_for_a_limit_are_counted() {
    let arguments = [&SERVED[..4], &["--tx-rate", "50pps:1"]].concat();
    let Some(rig) = Rig::new("waits_for_a_limit_are_counted", &arguments) else { return };
    let mut session = rig.session(&Setup::default());
    for number in 0..6 {
        session.tx(0).offer(&Default::default(), &numbered(number, 90), &[]).expect("room");
    }
    session.tx(0).kick_always().expect("kicked");
    for number in 0..6 {
        rig.expect(&numbered(number, 90));
    }
    let waits = |direction| of("limiter_waits_total", &format!("pair=\"0\",direction=\"{direction}\""));
    let now = scrape(&rig);
    assert!((4.0..=6.0).contains(&now.get(&waits("tx"))), "{now:?}");
    assert_eq!(now.get(&waits("rx")), 0.0);
}

/// With a worker that does not answer, counts are still served. A successor serves at the same socket, and so
/// does its worker without a supervisor.
#[test]
fn metrics_outlive_whoever_serves() {
    let Some(mut rig) = Rig::new("metrics_outlive_whoever_serves", &SERVED) else { return };
    let mut session = rig.session(&Setup::default());
    rig.both_ways(&mut session, 3);
    let frames = of("frames_total", "pair=\"0\",direction=\"tx\"");
    assert_eq!(scrape(&rig).get(&frames), 3.0);
    let worker = rig.worker();
    kill_process(worker, Signal::STOP).expect("stopped");
    let held = scrape(&rig);
    assert_eq!((held.get("volt_netd_up"), held.get(&frames)), (0.0, 3.0));
    kill_process(worker, Signal::CONT).expect("goes on");
    assert_eq!(scrape(&rig).get("volt_netd_up"), 1.0, "a late answer was used for the next question");
    rig.take_over(&["--supervise"]);
    rig.both_ways(&mut session, 3);
    let now = scrape(&rig);
    assert_eq!((now.get("volt_netd_take_overs_total"), now.get(&frames)), (1.0, 6.0));
    rig.daemon.signal(Signal::KILL).expect("killed");
    rig.daemon.wait(LIMIT).expect("it ends");
    rig.logged(&["the supervisor is gone"]);
    rig.both_ways(&mut session, 3);
    let alone =
        poll_until(LIMIT, || Some(scrape(&rig)).filter(|now| !now.has("volt_netd_worker_restarts_total")));
    assert_eq!(alone.map(|alone| alone.get(&frames)), Some(9.0));
}

/// At a loopback address by TCP, elsewhere only if requested, and with an error if it cannot listen.
#[test]
fn addresses() {
    let Some(netns) = namespace("addresses") else { return };
    netns.ip("link set dev lo up").expect("ip");
    netns.add_tap("tap0", false).expect("a TAP");
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("s");
    let start = |arguments: &[&str]| {
        let mut command = netns.command(program("volt-netd"));
        command.args(["--tap", "tap0", "--socket"]).arg(&socket).args(arguments);
        Daemon::start(command).expect("volt-netd")
    };
    let mut daemon = start(&["--metrics", "tcp:127.0.0.1:9101"]);
    daemon.wait_for_socket(&socket, LIMIT).expect("it listens");
    let answer = ask_tcp(&netns, "127.0.0.1", 9101, "GET /metrics").expect("metrics");
    assert!(answer.head.starts_with("http/1.1 200 ok\r\n"), "{}", answer.head);
    assert_eq!(read(&answer.body, "_total").get("volt_netd_up"), 1.0);
    let answer = ask_tcp(&netns, "127.0.0.1", 9101, "GET /").expect("an answer");
    assert!(
        answer.head.starts_with("http/1.1 404 ") && answer.body == "metrics are at /metrics\n",
        "{answer:?}"
    );
    let answer = ask_tcp(&netns, "127.0.0.1", 9101, "POST /metrics").expect("an answer");
    assert!(
        answer.head.starts_with("http/1.1 405 ") && answer.head.contains("\r\nallow: get, head"),
        "{answer:?}"
    );
    for (status, told, arguments) in [
        (
            1,
            "cannot serve metrics at 127.0.0.1:9101: another program listens there",
            &["tcp:127.0.0.1:9101"][..],
        ),
        (
            1,
            "cannot serve metrics at 192.0.2.1:9101: choose an address of this host",
            &["tcp:192.0.2.1:9101", "--metrics-public"],
        ),
        (1, "cannot serve metrics: cannot listen on /nonexistent/m", &["unix:/nonexistent/m"]),
        (2, "choose a loopback address, or add --metrics-public", &["tcp:0.0.0.0:9101"]),
        (2, "'localhost:9101' is not an address for metrics: give unix:PATH", &["localhost:9101"]),
    ] {
        let other = dir.path().join("other");
        let mut command = netns.command(program("volt-netd"));
        command.args(["--tap", "tap1", "--socket"]).arg(&other).arg("--metrics").args(arguments);
        let output = command.output().expect("volt-netd");
        let said = String::from_utf8_lossy(&output.stderr).replace("\n  ", " ");
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {said}");
        assert!(said.contains(told), "{arguments:?}: {said}");
        assert!(!other.exists(), "{arguments:?} leaves no socket");
    }
    assert!(daemon.stop(LIMIT).expect("it ends").success(), "{}", daemon.log());
    // A port can be reused at once.
    let mut daemon = start(&["--metrics", "tcp:0.0.0.0:9101", "--metrics-public"]);
    daemon.wait_for_socket(&socket, LIMIT).expect("it listens");
    assert!(ask_tcp(&netns, "127.0.0.1", 9101, "GET /metrics").is_ok());
}

/// Idle clients, and clients that do not read, occupy only their own places, and for a short time.
#[test]
fn clients_that_hold_on() {
    let Some(mut rig) = Rig::new("clients_that_hold_on", &SERVED) else { return };
    let mut session = rig.session(&Setup::default());
    scrape(&rig);
    let before = rig.usage();
    let silent: Vec<_> = (0..8).map(|_| UnixStream::connect(rig.metrics()).expect("connected")).collect();
    rig.both_ways(&mut session, 50);
    session.frontend.sync().expect("served");
    let start = Instant::now();
    scrape(&rig);
    assert!(start.elapsed() < LIMIT / 2, "{:?}", start.elapsed());
    for mut client in silent {
        client.set_read_timeout(Some(LIMIT)).expect("a limit");
        let mut text = String::new();
        let _ = client.read_to_string(&mut text);
        assert!(text.is_empty() || text.starts_with("HTTP/1.1 408 "), "{text}");
    }
    let long = ask(&rig.metrics(), &format!("GET /{}", "m".repeat(1 << 17)), "*/*", LIMIT);
    assert!(long.is_err() || long.is_ok_and(|answer| answer.head.starts_with("http/1.1 431 ")));
    rig.settled(&before);
    assert!(rig.daemon.stop(LIMIT).expect("it ends").success(), "{}", rig.daemon.log());
}

/// A thread blocked by a front-end's descriptor makes no progress: the metrics show it, the log reports it
/// once, and it ends with the blockade.
#[test]
fn no_progress_is_told() {
    let Some(mut rig) = Rig::new("no_progress_is_told", &SERVED) else { return };
    let mut session = rig.session(&Setup::default());
    rig.both_ways(&mut session, 3);
    let (tx, idle) = (
        of("vring_no_progress", "vring=\"1\",kind=\"tx\""),
        of("vring_idle_seconds", "vring=\"1\",kind=\"tx\""),
    );
    assert_eq!(scrape(&rig).get(&tx), 0.0);
    let held = Held::new(&mut session, 1);
    rig.expect(&numbered(1, 90));
    let stuck = poll_until(LIMIT, || {
        std::thread::sleep(Duration::from_millis(500));
        Some(scrape(&rig)).filter(|now| now.get(&tx) == 1.0)
    });
    let stuck = stuck.unwrap_or_else(|| panic!("{}", rig.daemon.log()));
    assert!(stuck.get(&idle) >= 4.0, "{stuck:?}");
    assert_eq!(stuck.get("volt_netd_up"), 1.0);
    let told =
        || rig.daemon.log().matches("queue pair 0 makes no progress: its thread does not answer").count();
    assert_eq!(told(), 1, "{}", rig.daemon.log());
    held.release();
    let moves = poll_until(LIMIT, || (scrape(&rig).get(&tx) == 0.0).then_some(()));
    assert!(moves.is_some() && told() == 1, "{}", rig.daemon.log());
    rig.logged(&["queue pair 0 makes progress again"]);
    // The chain is returned, although its call was lost.
    assert!(poll_until(LIMIT, || session.tx(0).try_used().expect("a ring")).is_some());
    session.tx(0).offer(&Default::default(), &numbered(2, 90), &[]).expect("room");
    session.tx(0).kick_always().expect("kicked");
    rig.expect(&numbered(2, 90));
}
