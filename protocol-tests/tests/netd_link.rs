//! The interface goes down and up. A front-end that can be notified (BACKEND_REQ and CONFIG) is notified once
//! each time, by whichever process serves it. Any other front-end always sees its link up.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use protocol_tests::daemon::poll_until;
use protocol_tests::rig::{LIMIT, QUIET, Rig};
use protocol_tests::session::{Session, Setup};
use protocol_tests::wire::{protocol, readable};

/// `VHOST_USER_BACKEND_CONFIG_CHANGE_MSG` of version 1, without body, that wants no reply.
const CHANGED: [u8; 12] = [2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];

/// Returns a session with a channel for the back-end's requests, and the channel's far end.
fn session(rig: &Rig, protocol: u64) -> (Session, UnixStream) {
    let base = Setup::default();
    let session = rig.session(&Setup { protocol: base.protocol | protocol, ..base });
    let (mine, theirs) = UnixStream::pair().expect("a pair");
    if protocol & protocol::BACKEND_REQ != 0 {
        session.frontend.set_backend_req_fd(&theirs).expect("the channel is taken");
    }
    (session, mine)
}

/// Returns `status` of the configuration space; bit 0 is the link.
fn status(session: &Session) -> u8 {
    session.frontend.get_config(6, 2).expect("status")[0]
}

/// Reads the next message of the back-end.
fn told(channel: &mut UnixStream) {
    assert!(readable(&*channel, LIMIT).expect("the channel"), "the front-end is told");
    let mut message = [0; 12];
    channel.read_exact(&mut message).expect("a whole message");
    assert_eq!(message, CHANGED);
}

fn quiet(channel: &UnixStream) {
    assert!(!readable(channel, QUIET).expect("the channel"), "the front-end was notified again");
}

fn set(rig: &Rig, how: &str) {
    rig.netns.ip(&format!("link set dev tap0 {how}")).expect("ip");
}

#[test]
fn the_front_end_is_told_of_its_link() {
    let Some(mut rig) = Rig::new("the_front_end_is_told_of_its_link", &[]) else { return };
    let (mut session, mut channel) = session(&rig, protocol::BACKEND_REQ);
    assert_eq!(status(&session), 1);
    for _ in 0..2 {
        set(&rig, "down");
        told(&mut channel);
        assert_eq!(status(&session), 0);
        set(&rig, "up");
        told(&mut channel);
        assert_eq!(status(&session), 1);
    }
    rig.netns.ip("link set dev tap0 mtu 8000").expect("ip");
    quiet(&channel);
    rig.netns.wait_until_up("tap0", LIMIT).expect("up");
    rig.both_ways(&mut session, 5);
    // A front-end that has already read its link as down is not notified.
    drop((session, channel));
    set(&rig, "down");
    rig.logged(&["front-end gone"]);
    let (session, mut channel) = self::session(&rig, protocol::BACKEND_REQ);
    let down = poll_until(LIMIT, || (status(&session) == 0).then_some(()));
    assert!(down.is_some(), "a later front-end reads the link as down");
    set(&rig, "up");
    told(&mut channel);
    assert_eq!(status(&session), 1);
    quiet(&channel);
}

/// Without the channel, a link once read as down would stay down for ever.
#[test]
fn who_cannot_be_told_sees_its_link_up() {
    let Some(rig) = Rig::new("who_cannot_be_told_sees_its_link_up", &[]) else { return };
    set(&rig, "down");
    let (session, _channel) = session(&rig, 0);
    for _ in 0..20 {
        assert_eq!(status(&session), 1);
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The channel and the last notification are handed over too, in hand-overs and after crashes under a
/// supervisor.
#[test]
fn the_channel_goes_on_with_the_connection() {
    let arguments = ["--control", "{control}", "--supervise"];
    let Some(mut rig) = Rig::new("the_channel_goes_on_with_the_connection", &arguments) else { return };
    let (session, mut channel) = session(&rig, protocol::BACKEND_REQ);
    for successor in [&["--supervise"][..], &["--supervise"]] {
        set(&rig, "down");
        told(&mut channel);
        rig.take_over(successor);
        assert_eq!(status(&session), 0);
        set(&rig, "up");
        told(&mut channel);
        // A worker that dies between sending and recording a notification leaves it to be sent again.
        assert_eq!(status(&session), 1);
        rig.kill_worker();
        assert_eq!(status(&session), 1);
        quiet(&channel);
    }
    // The next process reports a change that happened before it started.
    let worker = rig.worker();
    rustix::process::kill_process(worker, rustix::process::Signal::STOP).expect("stopped");
    set(&rig, "down");
    rustix::process::kill_process(worker, rustix::process::Signal::KILL).expect("killed");
    told(&mut channel);
    assert_eq!(status(&session), 0);
}

/// A front-end that never reads its channel blocks nothing: messages, frames and the end are served.
#[test]
fn a_channel_that_nobody_reads_is_no_hindrance() {
    let Some(mut rig) = Rig::new("a_channel_that_nobody_reads_is_no_hindrance", &[]) else { return };
    let (mut session, mut channel) = session(&rig, protocol::BACKEND_REQ);
    let (mine, theirs) = UnixStream::pair().expect("a pair");
    // Full, and blocking for a writer that does not set MSG_DONTWAIT.
    theirs.set_nonblocking(true).expect("a flag");
    while std::io::Write::write(&mut &theirs, &[0; 4096]).is_ok() {}
    while std::io::Write::write(&mut &theirs, &[0]).is_ok() {}
    theirs.set_nonblocking(false).expect("a flag");
    session.frontend.set_backend_req_fd(&theirs).expect("taken");
    for how in ["down", "up", "down", "up"] {
        set(&rig, how);
        session.frontend.sync().expect("served");
    }
    rig.netns.wait_until_up("tap0", LIMIT).expect("up");
    rig.both_ways(&mut session, 5);
    assert_eq!(channel.read(&mut [0; 12]).expect("closed"), 0, "the first channel has been given up");
    drop(mine);
    set(&rig, "down");
    session.frontend.sync().expect("served");
}
