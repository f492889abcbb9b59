//! volt-netd as a systemd unit with a descriptor store; the test plays systemd's side. A unit that is killed
//! as a whole, or restarted, continues with interface, connection and guest.

use std::collections::BTreeMap;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};

use protocol_tests::daemon::{
    Daemon, RUNTIME_DIRECTORY, poll_until, program, wait_until_asleep, wait_until_dead,
};
use protocol_tests::far_end::Wire;
use protocol_tests::frame::{NetHeader, numbered};
use protocol_tests::netns::Netns;
use protocol_tests::rig::{LIMIT, Rig};
use protocol_tests::session::Setup;
use protocol_tests::wire::{WireError, encode, protocol, readable, request};
use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::{Signal, kill_process};

/// First number of the descriptors passed to a unit.
const HIGH: i32 = 500;

/// Serializes starts: a process started at the same moment would inherit the unit's descriptors too.
static ALONE: Mutex<()> = Mutex::new(());

/// systemd's side of a unit.
#[derive(Debug, Default)]
struct Unit {
    store: BTreeMap<String, OwnedFd>,
    /// The listening socket of its socket unit.
    socket: Option<UnixListener>,
    ready: bool,
}

type Shared = Arc<Mutex<Unit>>;

fn unit(shared: &Shared) -> std::sync::MutexGuard<'_, Unit> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Unit {
    /// Handles one notification with its descriptor.
    fn take(&mut self, text: &str, fd: Option<OwnedFd>) {
        let has = |line: &str| text.lines().any(|known| known == line);
        let name = text.lines().find_map(|line| line.strip_prefix("FDNAME=")).unwrap_or_default();
        self.ready |= has("READY=1");
        if has("FDSTORE=1") {
            assert!(has("FDPOLL=0") && !name.is_empty(), "{text}");
            self.store.insert(name.to_owned(), fd.expect("a descriptor to store"));
        } else if has("FDSTOREREMOVE=1") {
            self.store.remove(name);
        }
        // Dropping a barrier's descriptor confirms all notifications before it.
    }
}

/// Reads notifications until the test ends.
fn systemd(socket: UnixDatagram) -> Shared {
    let shared = Shared::default();
    let seen = shared.clone();
    std::thread::spawn(move || {
        loop {
            let mut bytes = [0; 4096];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let into = &mut [IoSliceMut::new(&mut bytes)];
            let Ok(message) = recvmsg(&socket, into, &mut control, RecvFlags::CMSG_CLOEXEC) else { return };
            let fd = control.drain().find_map(|message| match message {
                RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
                _ => None,
            });
            let len = message.bytes;
            unit(&seen).take(&String::from_utf8_lossy(&bytes[..len]), fd);
        }
    });
    shared
}

/// Starts the unit like systemd, with its socket and then the contents of its store.
fn start(netns: &Netns, shared: &Shared, notify: &Path, arguments: &[&str]) -> Daemon {
    let mut unit = unit(shared);
    unit.ready = false;
    let (mut script, mut names, mut copies) = (String::new(), Vec::new(), Vec::new());
    // systemd makes the sockets that it passes blocking, each time.
    let _ = unit.socket.as_ref().map(|socket| socket.set_nonblocking(false).expect("a flag"));
    let socket = unit.socket.iter().map(|socket| ("volt-netd.socket", socket.as_fd()));
    for (name, fd) in socket.chain(unit.store.iter().map(|(name, fd)| (name.as_str(), fd.as_fd()))) {
        let copy = fcntl_dupfd_cloexec(fd, HIGH).expect("a copy");
        fcntl_setfd(&copy, FdFlags::empty()).expect("inherited");
        script += &format!("exec {}<&{1} {1}<&-; ", 3 + names.len(), copy.as_raw_fd());
        names.push(name.to_owned());
        copies.push(copy);
    }
    if !names.is_empty() {
        script +=
            &format!("export LISTEN_PID=$$ LISTEN_FDS={} LISTEN_FDNAMES={}; ", names.len(), names.join(":"));
    }
    script += "exec \"$0\" \"$@\"";
    let mut command: Command = netns.command("bash");
    command.args(["-c", &script]).arg(program("volt-netd")).args(["--log-level", "debug", "--supervise"]);
    command.args(arguments).env("NOTIFY_SOCKET", notify);
    command.env(RUNTIME_DIRECTORY, notify.parent().expect("a directory"));
    Daemon::start(command).expect("volt-netd")
}

fn wait_until_ready(shared: &Shared, daemon: &Daemon) {
    let ready = poll_until(LIMIT, || unit(shared).ready.then_some(()));
    assert!(ready.is_some(), "{}", daemon.log());
}

/// Killed with its supervisor, ended and started again, and with changed options: the unit continues, except
/// in the last case.
#[test]
fn a_unit_that_is_killed_or_restarted_goes_on() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(mut rig) = Rig::new("a_unit_that_is_killed_or_restarted_goes_on", &[]) else { return };
    assert!(rig.daemon.stop(LIMIT).expect("it ends").success());
    let notify = rig.dir.path().join("notify");
    let shared = systemd(UnixDatagram::bind(&notify).expect("a socket"));
    let (socket, control) = (rig.socket(), rig.control());
    let arguments = [
        "--tap",
        "tap0",
        "--socket",
        socket.to_str().expect("text"),
        "--control",
        control.to_str().expect("text"),
    ];
    rig.daemon = start(&rig.netns, &shared, &notify, &arguments);
    wait_until_ready(&shared, &rig.daemon);
    let setup = Setup::default();
    let mut session =
        rig.session(&Setup { protocol: setup.protocol | protocol::BACKEND_REQ, ..setup.clone() });
    let (requests, channel) = UnixStream::pair().expect("a pair");
    session.frontend.set_backend_req_fd(channel).expect("taken");
    rig.both_ways(&mut session, 5);
    for round in 0..6 {
        let worker = rig.worker();
        if round % 2 == 0 {
            // As at the end of a control group: no process has time to react.
            // Not during a request, whose connection would be closed.
            assert!(wait_until_asleep(rig.daemon.pid(), LIMIT));
            kill_process(worker, Signal::STOP).expect("stopped");
            rig.daemon.signal(Signal::KILL).expect("killed");
            kill_process(worker, Signal::KILL).expect("killed");
            rig.daemon.wait(LIMIT).expect("it ends");
        } else {
            assert!(rig.daemon.stop(LIMIT).expect("it ends").success(), "{}", rig.daemon.log());
        }
        assert!(wait_until_dead(worker, LIMIT));
        // Frames and messages sent meanwhile wait: in the ring, in the interface, in the connection.
        let (out, into) = (numbered(100 + round, 90), numbered(200 + round, 90));
        session.tx(0).offer(&NetHeader::default(), &out, &[]).expect("room");
        session.tx(0).kick_always().expect("kicked");
        rig.wire.send(&into).expect("sent");
        rig.daemon = start(&rig.netns, &shared, &notify, &arguments);
        wait_until_ready(&shared, &rig.daemon);
        rig.expect(&out);
        session.tx(0).used(LIMIT).expect("used");
        assert_eq!(session.rx(0).recv(LIMIT).expect("the frame that waited").bytes, into);
        session.frontend.sync().expect("the connection is served");
        rig.both_ways(&mut session, 5);
        assert_eq!(session.rx(0).ring.outstanding(), 64, "no receive buffer is lost");
    }
    assert!(
        !readable(&requests, std::time::Duration::ZERO).expect("the channel"),
        "its link was up all the time, and so was the channel"
    );
    rig.netns.ip("link set dev tap0 down").expect("ip");
    assert!(readable(&requests, LIMIT).expect("the channel"), "the front-end is told of its link");
    rig.netns.ip("link set dev tap0 up").expect("ip");
    rig.netns.wait_until_up("tap0", LIMIT).expect("up");
    // The store holds only what is in use: state, counters, TAP, two listeners, connection, its channel,
    // memory, two kicks and two calls.
    session.frontend.sync().expect("served");
    let settled = poll_until(LIMIT, || (unit(&shared).store.len() == 12).then_some(()));
    assert!(settled.is_some(), "{:?}", unit(&shared).store.keys());
    // A unit that is stopped for good loses its store.
    assert!(rig.daemon.stop(LIMIT).expect("it ends").success());
    unit(&shared).store.clear();
    assert!(readable(session.frontend.channel().socket(), LIMIT).expect("poll"), "the connection ends");
    rig.daemon = start(&rig.netns, &shared, &notify, &arguments);
    wait_until_ready(&shared, &rig.daemon);
    let mut session = rig.session(&Setup::default());
    rig.both_ways(&mut session, 5);
    // Options that cannot change while the state is kept stay, and are named.
    assert!(rig.daemon.stop(LIMIT).expect("it ends").success());
    let slower = [&arguments[..], &["--rx-rate", "1Mbit", "--busy-poll-us", "50"]].concat();
    rig.daemon = start(&rig.netns, &shared, &notify, &slower);
    wait_until_ready(&shared, &rig.daemon);
    rig.logged(&["--rx-rate, --busy-poll-us: the old values stay in force"]);
    rig.both_ways(&mut session, 5);
    // With other options the state belongs to another daemon.
    assert!(rig.daemon.stop(LIMIT).expect("it ends").success());
    rig.netns.add_tap("tap1", false).expect("another TAP");
    let other = [&["--tap", "tap1"], &arguments[2..]].concat();
    rig.daemon = start(&rig.netns, &shared, &notify, &other);
    wait_until_ready(&shared, &rig.daemon);
    rig.logged(&["with other options", "starting afresh"]);
    assert!(readable(session.frontend.channel().socket(), LIMIT).expect("poll"));
    rig.wire = Wire::Tap(rig.netns.wire("tap1").expect("a packet socket"));
    rig.netns.wait_until_up("tap1", LIMIT).expect("up");
    let mut session = rig.session(&Setup::default());
    rig.both_ways(&mut session, 5);
}

/// A unit's new start filters before the first frame: as its options say, otherwise as before.
#[test]
fn a_unit_filters_from_the_first_frame() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(mut rig) = Rig::new("a_unit_filters_from_the_first_frame", &[]) else { return };
    assert!(rig.daemon.stop(LIMIT).expect("it ends").success());
    let notify = rig.dir.path().join("notify");
    let shared = systemd(UnixDatagram::bind(&notify).expect("a socket"));
    let policy = rig.dir.path().join("policy.toml");
    std::fs::write(&policy, "mode = \"log\"\n").expect("a file");
    let (socket, control) = (rig.socket(), rig.control());
    let [socket, control, policy] = [&socket, &control, &policy].map(|path| path.to_str().expect("text"));
    let arguments = ["--tap", "tap0", "--socket", socket, "--control", control];
    let arguments = [&arguments[..], &["--mac", "52:54:00:01:02:03"]].concat();
    rig.daemon = start(&rig.netns, &shared, &notify, &arguments);
    wait_until_ready(&shared, &rig.daemon);
    let mut session = rig.session(&Setup::default());
    rig.both_ways(&mut session, 5);
    let guard = &["--guard", "--guest-ip", "192.0.2.10"][..];
    let with_policy = [guard, &["--policy", policy]].concat();
    let log = serde_json::Value::from("log");
    for (round, (options, mode, kept)) in [
        (guard, serde_json::Value::Null, ""),
        (&with_policy, log.clone(), ""),
        (guard, log.clone(), "--policy: the old values stay in force"),
        (&[], log, "--guard, --policy: the old values stay in force"),
    ]
    .into_iter()
    .enumerate()
    {
        assert!(rig.daemon.stop(LIMIT).expect("it ends").success(), "{}", rig.daemon.log());
        // Not a frame of this guest.
        session.tx(0).offer(&NetHeader::default(), &numbered(1, 90), &[]).expect("room");
        session.tx(0).kick_always().expect("kicked");
        rig.daemon = start(&rig.netns, &shared, &notify, &[&arguments[..], options].concat());
        wait_until_ready(&shared, &rig.daemon);
        session.tx(0).used(LIMIT).expect("used");
        let status = rig.status();
        assert_eq!(status["filter"]["policy"], mode, "{options:?}: {status:#}");
        assert_eq!(status["counters"][0]["tx_filtered"], round + 1, "{options:?}: {status:#}");
        rig.logged(&[kept]);
        session.frontend.sync().expect("the connection is served");
    }
    assert_eq!(rig.status()["counters"][0]["tx_frames"], 5, "none of them was sent");
}

/// The unit is killed as a whole while a reply leaves: the reply is never sent again, because the front-end
/// would take it for the reply to its next request.
#[test]
fn a_reply_is_not_sent_again_by_the_next_start() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(mut rig) = Rig::new("a_reply_is_not_sent_again_by_the_next_start", &[]) else { return };
    assert!(rig.daemon.stop(LIMIT).expect("it ends").success());
    let notify = rig.dir.path().join("notify");
    let shared = systemd(UnixDatagram::bind(&notify).expect("a socket"));
    let socket = rig.socket();
    let arguments = ["--tap", "tap0", "--socket", socket.to_str().expect("text")];
    rig.daemon = start(&rig.netns, &shared, &notify, &arguments);
    wait_until_ready(&shared, &rig.daemon);
    let mut frontend = rig.connect();
    let (mut well, mut closed) = (0, 0);
    for _ in 0..12 {
        let worker = rig.worker();
        frontend.sync().expect("served");
        rig.daemon.signal(Signal::KILL).expect("killed");
        rig.daemon.wait(LIMIT).expect("it ends");
        assert!(wait_until_dead(worker, LIMIT));
        rig.daemon = start(&rig.netns, &shared, &notify, &arguments);
        wait_until_ready(&shared, &rig.daemon);
        // Replies come in order: any before the status of this request would be surplus.
        let ask = encode(request::GET_QUEUE_NUM, 0, &[]);
        let sent = frontend.channel().send_bytes(&ask, &[]);
        match sent.and_then(|()| frontend.channel().recv_reply(request::GET_QUEUE_NUM)) {
            Ok(_) => well += 1,
            Err(WireError::Closed(_)) => {
                closed += 1;
                frontend = rig.connect();
            }
            Err(error) => panic!("a surplus reply? {error}"),
        }
    }
    println!("{well} connections went on, {closed} were closed");
}

/// With socket activation, descriptor 3 is the unit's socket at each start, and stored descriptors follow it.
/// The unit continues and accepts new front-ends, also after its socket was created again.
#[test]
fn a_unit_with_a_socket_goes_on_and_takes_new_front_ends() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(mut rig) = Rig::new("a_unit_with_a_socket_goes_on_and_takes_new_front_ends", &[]) else {
        return;
    };
    assert!(rig.daemon.stop(LIMIT).expect("it ends").success());
    let notify = rig.dir.path().join("notify");
    let shared = systemd(UnixDatagram::bind(&notify).expect("a socket"));
    let path = rig.socket();
    let listen = || Some(UnixListener::bind(&path).expect("a socket"));
    unit(&shared).socket = listen();
    let control = rig.control();
    let arguments = ["--tap", "tap0", "--fd", "3", "--control", control.to_str().expect("text")];
    rig.daemon = start(&rig.netns, &shared, &notify, &arguments);
    wait_until_ready(&shared, &rig.daemon);
    let mut session = rig.session(&Setup::default());
    for round in 0..4 {
        rig.both_ways(&mut session, 3);
        let worker = rig.worker();
        if round % 2 == 0 {
            // Not during a request, whose connection would be closed.
            assert!(wait_until_asleep(rig.daemon.pid(), LIMIT));
            kill_process(worker, Signal::STOP).expect("stopped");
            rig.daemon.signal(Signal::KILL).expect("killed");
            kill_process(worker, Signal::KILL).expect("killed");
            rig.daemon.wait(LIMIT).expect("it ends");
        } else {
            assert!(rig.daemon.stop(LIMIT).expect("it ends").success(), "{}", rig.daemon.log());
        }
        assert!(wait_until_dead(worker, LIMIT));
        if round == 3 {
            // Like systemctl restart of the socket unit.
            unit(&shared).socket = None;
            std::fs::remove_file(&path).expect("removed");
            unit(&shared).socket = listen();
        }
        rig.daemon = start(&rig.netns, &shared, &notify, &arguments);
        wait_until_ready(&shared, &rig.daemon);
        rig.both_ways(&mut session, 3);
        session.frontend.sync().expect("the connection is served");
    }
    drop(session);
    let mut session = rig.session(&Setup::default());
    rig.both_ways(&mut session, 3);
    assert_eq!(session.rx(0).ring.outstanding(), 64, "no receive buffer is lost");
}

/// A unit without a control socket, as older daemons had none, continues with the default one, and keeps it.
#[test]
fn a_unit_without_a_control_socket_gets_one() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(mut rig) = Rig::new("a_unit_without_a_control_socket_gets_one", &[]) else { return };
    assert!(rig.daemon.stop(LIMIT).expect("it ends").success());
    let notify = rig.dir.path().join("notify");
    let shared = systemd(UnixDatagram::bind(&notify).expect("a socket"));
    let socket = rig.socket();
    let control = rig.dir.path().join("tap0.ctl");
    let arguments = ["--tap", "tap0", "--socket", socket.to_str().expect("text")];
    let without = [&arguments[..], &["--control", "none"]].concat();
    rig.daemon = start(&rig.netns, &shared, &notify, &without);
    wait_until_ready(&shared, &rig.daemon);
    let mut session = rig.session(&Setup::default());
    for (arguments, has, kept) in [
        (&without[..], false, false),
        (&arguments, true, false),
        (&arguments, true, false),
        (&without, true, true),
    ] {
        assert!(rig.daemon.stop(LIMIT).expect("it ends").success());
        rig.daemon = start(&rig.netns, &shared, &notify, arguments);
        wait_until_ready(&shared, &rig.daemon);
        rig.both_ways(&mut session, 3);
        rig.logged(&["continued with the state that systemd kept"]);
        let mut ctl = Command::new(program("volt-netd"));
        let answer = ctl.args(["ctl", "status", "--control"]).arg(&control).output().expect("ctl");
        assert_eq!(answer.status.success(), has, "{answer:?}");
        assert_eq!(
            rig.daemon.log().contains("--control: the old values stay in force"),
            kept,
            "{}",
            rig.daemon.log()
        );
    }
}
