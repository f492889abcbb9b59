//! A new volt-netd takes over from the running one, under a front-end that cannot reconnect and is not told.
//! No frame is lost or repeated, no message is lost, and a failing successor changes nothing.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Duration;

use protocol_tests::daemon::copy_of;
use protocol_tests::far_end::{PortKind, Wire};
use protocol_tests::frame::{NetHeader, number_of, numbered};
use protocol_tests::rig::{LIMIT, Rig};
use protocol_tests::session::{Session, Setup};
use protocol_tests::succession::{Flow, SUPERVISED};
use protocol_tests::wire::{encode, flags, longs, request, words};
use rustix::process::Signal;

const CONTROL: [&str; 2] = ["--control", "{control}"];

/// Every kind of daemon takes over from every kind; connection, rings and interface continue.
#[test]
fn every_kind_takes_over_from_every_kind() {
    let Some(mut rig) = Rig::new("every_kind_takes_over_from_every_kind", &CONTROL) else { return };
    let mut session = rig.session(&Setup::default());
    rig.both_ways(&mut session, 10);
    for (round, arguments) in [&[][..], &["--supervise"], &["--supervise"], &[], &[]].into_iter().enumerate()
    {
        rig.take_over(arguments);
        rig.both_ways(&mut session, 10);
        session.frontend.sync().expect("the connection is served");
        let status = rig.status();
        assert_eq!(status["take_overs"], round + 1, "{status:#}");
        assert_eq!(status["supervised"], arguments.len() == 1, "{status:#}");
        assert_eq!(status["counters"][0]["tx_frames"], 10 * (round + 2), "counters go on: {status:#}");
    }
    let status = rig.status();
    assert_eq!(status["counters"][0]["pair"], 0, "{status:#}");
    keys_in_one_style(&status);
    assert_eq!(session.rx(0).ring.outstanding(), 64, "no receive buffer is lost");
    drop(session);
    let mut session = rig.session(&Setup::default());
    rig.both_ways(&mut session, 5);
    drop(session);
    let socket = rig.socket();
    assert!(rig.daemon.stop(LIMIT).expect("it ends").success());
    assert!(!socket.exists() && !rig.control().exists(), "the last one removes the sockets of the first");
}

/// Checks that every key at every level is in snake_case.
fn keys_in_one_style(value: &serde_json::Value) {
    for (key, value) in value.as_object().into_iter().flatten() {
        assert!(key.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_')), "{key}");
        keys_in_one_style(value);
    }
    value.as_array().into_iter().flatten().for_each(keys_in_one_style);
}

/// With frames in flight in both directions throughout, none is lost, repeated or reordered, and a peer keeps
/// its connection.
#[test]
fn nothing_is_lost_or_repeated_under_traffic() {
    PortKind::ALL.into_iter().for_each(hand_over_under_traffic);
}

fn hand_over_under_traffic(port: PortKind) {
    let Some(mut rig) = Rig::on(port, "nothing_is_lost_or_repeated_under_traffic", &CONTROL) else { return };
    let mut session = rig.session(&Setup::default());
    let mut flow = Flow::new(1000);
    for round in 0..10 {
        flow.run(&mut session, &rig.wire, Duration::from_millis(20 + 7 * round));
        let successor = rig.successor(if round % 3 == 1 { &["--supervise"] } else { &[] });
        while successor.logged(0, &["took over"], Duration::ZERO).is_none() {
            assert!(!rig.daemon.has_exited() || successor.logged(0, &["took over"], LIMIT).is_some());
            flow.run(&mut session, &rig.wire, Duration::from_millis(1));
        }
        rig.succeed(successor);
    }
    flow.run_to(&mut session, &rig.wire, 1000, 200);
    let (out, into) = flow.settle(&mut session, &rig.wire);
    assert!(out.is_perfect() && into.is_perfect(), "{port:?}: out: {out:?}, in: {into:?}");
    if let Wire::Stream(peer) = &rig.wire {
        assert_eq!(peer.accepted(), 1);
    }
    assert_eq!(session.rx(0).ring.outstanding(), 64, "no receive buffer is lost");
}

/// The successor finishes a message of which the daemon has read half, with its descriptor, and a reply that
/// the front-end has not read.
#[test]
fn half_a_message_is_handed_over() {
    let Some(mut rig) = Rig::new("half_a_message_is_handed_over", &CONTROL) else { return };
    let mut session = rig.session(&Setup::default());
    for arguments in [&[][..], &["--supervise"], &["--supervise"], &[]] {
        let call = protocol_tests::nic::eventfd().expect("an eventfd");
        let message = encode(request::SET_VRING_CALL, flags::NEED_REPLY, &longs(&[1]));
        for half in [5, 14] {
            let (first, rest) = message.split_at(half);
            session.frontend.channel().send_bytes(first, &[call.as_fd()]).expect("half");
            std::thread::sleep(Duration::from_millis(20));
            rig.take_over(arguments);
            session.frontend.channel().send_bytes(rest, &[]).expect("the rest");
            let reply = session.frontend.channel().recv_reply(request::SET_VRING_CALL).expect("a reply");
            assert_eq!(reply.u64().expect("a status"), 0);
        }
        session.nic.queues[1].call = call;
        rig.both_ways(&mut session, 5);
    }
}

/// Replies that a front-end has not read are neither lost nor sent twice.
#[test]
fn unsent_replies_are_handed_over() {
    let Some(mut rig) = Rig::new("unsent_replies_are_handed_over", &CONTROL) else { return };
    let mut session = rig.session(&Setup::default());
    for arguments in [&[][..], &["--supervise"], &[]] {
        // More replies than the socket holds.
        let ask = encode(request::GET_CONFIG, 0, &[words(&[0, 256, 0]), vec![0; 256]].concat());
        let mut asked = 0;
        let stuck = loop {
            let stream = session.frontend.channel().socket();
            match rustix::net::send(stream, &ask, rustix::net::SendFlags::DONTWAIT) {
                Ok(sent) if sent == ask.len() => asked += 1,
                Ok(sent) => break sent,
                Err(_) => break ask.len(),
            }
            if asked % 50 == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        assert!(asked > 100, "{asked}");
        rig.take_over(arguments);
        for _ in 0..asked {
            let reply = session.frontend.channel().recv_reply(request::GET_CONFIG).expect("every reply");
            assert_eq!(reply.body.len(), 12 + 256);
        }
        if stuck < ask.len() {
            session.frontend.channel().send_bytes(&ask[stuck..], &[]).expect("the rest");
            session.frontend.channel().recv_reply(request::GET_CONFIG).expect("its reply");
        }
        session.frontend.sync().expect("and no other");
        rig.both_ways(&mut session, 3);
    }
}

/// The successor delivers a frame that waits for the guest's buffers.
#[test]
fn a_frame_that_waits_for_buffers_is_handed_over() {
    let Some(mut rig) = Rig::new("a_frame_that_waits_for_buffers_is_handed_over", &CONTROL) else { return };
    let mut session = Session::start(rig.connect(), &Setup::default()).expect("a session");
    session.rx(0).fill(2, &[300]).expect("two small buffers");
    let frame = numbered(7, 1400);
    rig.wire.send(&frame).expect("sent");
    std::thread::sleep(Duration::from_millis(50));
    for arguments in [&["--supervise"][..], &[]] {
        rig.take_over(arguments);
    }
    session.rx(0).fill(8, &[300]).expect("more buffers");
    assert_eq!(session.rx(0).recv(LIMIT).expect("the frame that waited").bytes, frame);
}

/// Pairs, the control queue and the driver's settings on it are handed over too.
#[test]
fn pairs_and_the_control_queue_are_handed_over() {
    let arguments = ["--queues", "2", "--control", "{control}"];
    let Some(mut rig) = Rig::new("pairs_and_the_control_queue_are_handed_over", &arguments) else { return };
    let base = Setup::pairs(2);
    let features = base.features | protocol_tests::wire::feature::CTRL_VQ;
    let setup = Setup { control: Some(4), features, ..base };
    let mut session = Session::start(rig.connect(), &setup).expect("a session");
    for pair in 0..2 {
        session.rx(pair).fill(64, &[2048]).expect("buffers");
    }
    let set_pairs = |session: &mut Session, count: u16| {
        let control = session.nic.queues.last_mut().expect("the control queue");
        assert_eq!(control.command(4, 0, &count.to_le_bytes(), LIMIT).expect("an answer"), 0);
    };
    set_pairs(&mut session, 2);
    for arguments in [&["--supervise"][..], &[]] {
        rig.take_over(arguments);
        assert_eq!(rig.status()["front_end"]["serving_pairs"], serde_json::json!([0, 1]));
        set_pairs(&mut session, 1);
        assert_eq!(rig.status()["front_end"]["serving_pairs"], serde_json::json!([0]));
        for number in 0..50 {
            rig.wire.send(&numbered(number, 100)).expect("sent");
            let got = session.rx(0).recv(LIMIT).expect("no frame goes to the other pair");
            assert_eq!(number_of(&got.bytes), Some(number));
        }
        set_pairs(&mut session, 2);
    }
}

/// Returns one frame of the control socket's protocol: two words, then JSON.
fn ask(rig: &Rig, document: &str) -> UnixStream {
    let mut socket = UnixStream::connect(rig.control()).expect("the control socket");
    socket.set_read_timeout(Some(LIMIT)).expect("a limit");
    say(&mut socket, document);
    socket
}

fn say(socket: &mut UnixStream, document: &str) {
    let words = [document.len() as u32, 0].map(u32::to_le_bytes).concat();
    socket.write_all(&[&words, document.as_bytes()].concat()).expect("sent");
}

fn answer(socket: &mut UnixStream) -> String {
    let mut words = [[0; 4]; 2];
    socket.read_exact(words.as_flattened_mut()).expect("an answer");
    let mut document = vec![0; u32::from_le_bytes(words[0]) as usize];
    socket.read_exact(&mut document).expect("all of it");
    String::from_utf8(document).expect("text")
}

/// If a successor fails at any point before the end, the daemon and its frames continue.
#[test]
fn a_successor_that_fails_changes_nothing() {
    for arguments in [&CONTROL[..], &SUPERVISED] {
        let Some(mut rig) = Rig::new("a_successor_that_fails_changes_nothing", arguments) else { return };
        let mut session = rig.session(&Setup::default());
        let before = rig.usage();
        let mut well = |rig: &mut Rig| {
            rig.both_ways(&mut session, 3);
            session.frontend.sync().expect("the connection is served");
        };
        // Another format is refused before anything stops.
        let mut other = ask(&rig, r#"{"TakeOver":{"formats":[99],"program":"another"}}"#);
        let refusal = answer(&mut other);
        assert!(refusal.contains("Refused") && refusal.contains("99"), "{refusal}");
        well(&mut rig);
        let take_over = r#"{"TakeOver":{"formats":[1],"program":"another"}}"#;
        // It disconnects without reading, after reading, reports an error, or sends nonsense.
        drop(ask(&rig, take_over));
        well(&mut rig);
        let mut other = ask(&rig, take_over);
        assert!(answer(&mut other).contains("\"Offer\""));
        drop(other);
        well(&mut rig);
        for response in [r#"{"Cannot":"because"}"#, "[]"] {
            let mut other = ask(&rig, take_over);
            answer(&mut other);
            say(&mut other, response);
            well(&mut rig);
        }
        // Ready, and gone at once.
        for _ in 0..5 {
            let mut other = ask(&rig, take_over);
            answer(&mut other);
            // Before it reports ready: the daemon may be quick.
            other.shutdown(std::net::Shutdown::Read).expect("shut");
            say(&mut other, "\"Ready\"");
            std::thread::sleep(Duration::from_millis(20));
            well(&mut rig);
        }
        // Half a request, no request, and very many clients.
        let clients: Vec<_> = (0..40)
            .map(|_| {
                let mut client = UnixStream::connect(rig.control()).expect("the control socket");
                client.write_all(&[7, 0, 0]).expect("half a word");
                client
            })
            .collect();
        well(&mut rig);
        drop(clients);
        rig.settled(&before);
        rig.take_over(&[]);
        rig.both_ways(&mut session, 3);
    }
}

/// An older program gets the newest format that it reads, with all its content.
#[test]
fn each_reader_gets_the_newest_format_that_it_reads() {
    let test = "each_reader_gets_the_newest_format_that_it_reads";
    let Some(mut rig) = Rig::new(test, &CONTROL) else { return };
    let mut session = rig.session(&Setup::default());
    rig.both_ways(&mut session, 3);
    for (formats, expected) in [("[1]", 1), ("[1,2]", 2), ("[2,7]", 2)] {
        let take_over = format!(r#"{{"TakeOver":{{"formats":{formats},"program":"another"}}}}"#);
        let offer: serde_json::Value =
            serde_json::from_str(&answer(&mut ask(&rig, &take_over))).expect("JSON");
        let state = &offer["Offer"]["state"];
        assert_eq!(state["format"], expected, "{formats}: {state:#}");
        // Counters are in the state, or in memory that it refers to.
        let written = &state["leftover"]["counters"][0]["tx frames"];
        let named = &state["device"]["counters"];
        assert_eq!(written.as_u64(), (expected == 1).then_some(3), "{formats}: {state:#}");
        assert_eq!(named.is_u64(), expected > 1, "{formats}: {state:#}");
        let fds = offer["Offer"]["fds"].as_array().expect("descriptors");
        assert!(named.is_null() || fds.contains(named), "{formats}: {offer:#}");
        rig.both_ways(&mut session, 0);
    }
    assert_eq!(rig.status()["counters"][0]["tx_frames"], 3);
}

/// A daemon is stopped while its successor waits: the successor gives up, and the daemon continues when it
/// runs again.
#[test]
fn a_stopped_daemon_loses_nothing_and_never_serves_beside_another() {
    let test = "a_stopped_daemon_loses_nothing_and_never_serves_beside_another";
    let Some(mut rig) = Rig::new(test, &CONTROL) else { return };
    let mut session = rig.session(&Setup::default());
    rig.both_ways(&mut session, 3);
    rig.daemon.signal(Signal::STOP).expect("stopped");
    let mut successor = rig.successor(&[]);
    let status = successor.wait(LIMIT).expect("it gives up");
    assert!(!status.success(), "{}", successor.log());
    rig.daemon.signal(Signal::CONT).expect("continued");
    rig.both_ways(&mut session, 10);
    rig.take_over(&[]);
    rig.both_ways(&mut session, 10);
}

/// The control socket belongs to its owner, and refuses other users even if they can reach it.
#[test]
fn others_may_not_control() {
    let Some(rig) = Rig::new("others_may_not_control", &CONTROL) else { return };
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(rig.control()).expect("the socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIP others_may_not_control: only root can be somebody else");
        return;
    }
    let open = |path: &std::path::Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("permissions");
    };
    open(rig.dir.path(), 0o755);
    open(&rig.control(), 0o666);
    // A copy, and paths relative to its directory: the user need not be able to reach the directories above.
    let copy = rig.dir.path().join("volt-netd");
    copy_of("volt-netd", &copy);
    open(&copy, 0o755);
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65534", "--clear-groups", "./volt-netd", "ctl", "status", "--control"]);
    let control = rig.control();
    command.arg(control.strip_prefix(rig.dir.path()).expect("below it")).current_dir(rig.dir.path());
    let output = command.output().expect("setpriv");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("65534"), "{output:?}");
    rig.logged(&["user 65534 may not control"]);
}

/// A successor knows how its interface was opened.
#[test]
fn an_interface_that_is_deleted_is_found_again_by_a_successor() {
    let test = "an_interface_that_is_deleted_is_found_again_by_a_successor";
    let Some(mut rig) = Rig::new(test, &CONTROL) else { return };
    let mut session = rig.session(&Setup::default());
    rig.take_over(&[]);
    rig.netns.ip("link del tap0").expect("deleted");
    session.tx(0).send_cut(&NetHeader::default(), &numbered(1, 90), &[], LIMIT).expect("used");
    rig.logged(&["tap0 is gone"]);
    rig.add_port_again();
    rig.logged(&["opened again"]);
    rig.netns.wait_until_up("tap0", LIMIT).expect("up");
    rig.both_ways(&mut session, 5);
    rig.take_over(&["--supervise"]);
    rig.both_ways(&mut session, 5);
}

/// In a loop, for `VOLT_SOAK_SECONDS` or two seconds: no successor has more descriptors, threads or memory
/// than the first one of the same program.
#[test]
fn successors_do_not_grow() {
    let Some(mut rig) = Rig::new("successors_do_not_grow", &CONTROL) else { return };
    let seconds =
        std::env::var("VOLT_SOAK_SECONDS").map_or(2, |text| text.parse().expect("a number of seconds"));
    let end = std::time::Instant::now() + Duration::from_secs(seconds);
    let mut session = rig.session(&Setup::default());
    let mut firsts = BTreeMap::new();
    let mut count = 0;
    while std::time::Instant::now() < end || count <= 11 {
        if count % 5 == 0 {
            rig.take_over(&["--supervise"]);
            rig.both_ways(&mut session, 2);
            rig.kill_worker();
            rig.both_ways(&mut session, 2);
        }
        rig.take_over(&[]);
        rig.both_ways(&mut session, 2);
        count += 1;
        let now = rig.usage();
        let first = *firsts.entry(rig.program()).or_insert(now);
        assert!(now.fds <= first.fds && now.threads <= first.threads, "{count}: {first:?}, {now:?}");
        assert!(now.resident <= first.resident + 1024, "{count}: {first:?}, {now:?}");
    }
    println!("{count} hand-overs in {seconds} s");
    assert_eq!(session.rx(0).ring.outstanding(), 64, "no receive buffer is lost");
}
