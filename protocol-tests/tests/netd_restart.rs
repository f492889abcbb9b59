//! volt-netd's rules for the start index of a ring, its processing, and its state after an end. Only the used
//! index in guest memory counts, so nothing is lost or repeated.

use std::time::Duration;

use protocol_tests::frame::{NetHeader, number_of, numbered};
use protocol_tests::nic::Nic;
use protocol_tests::rig::{LIMIT, QUIET, Rig};
use protocol_tests::session::{Session, Setup, negotiate, offer_vring};
use protocol_tests::wire::request;
use rustix::process::Signal;

/// Passes a card to a new connection with these bases, and enables it without a kick.
fn resume_at(rig: &Rig, nic: Nic, base: u16) -> Session {
    let mut frontend = rig.connect();
    negotiate(&mut frontend, nic.features, Setup::default().protocol).expect("negotiation");
    frontend.set_mem_table(&nic.mem).expect("memory");
    for queue in &nic.queues {
        offer_vring(&frontend, &nic.mem, queue, base).expect("a vring");
        frontend.set_vring_enable(queue.vring, true).expect("enable");
    }
    Session { frontend, nic, protocol: 0 }
}

/// Offers frames with these numbers and publishes them, without a kick.
fn offer(session: &mut Session, numbers: std::ops::Range<u32>) {
    let queue = session.tx(0);
    for number in numbers {
        queue.offer(&NetHeader::default(), &numbered(number, 90), &[]).expect("room");
    }
    queue.ring.publish();
}

/// Whatever base a front-end sends after a reconnect, the ring continues at its used index. Receive buffers
/// posted before are filled, frames published meanwhile are sent without a kick, and none twice.
#[test]
fn the_used_index_counts_and_not_the_base() {
    let Some(mut rig) = Rig::new("the_used_index_counts_and_not_the_base", &[]) else { return };
    let mut session = rig.session(&Setup::default());
    rig.both_ways(&mut session, 7);
    for base in [0, 7, 8, 64, 300, 65_535] {
        let Session { frontend, mut nic, .. } = session;
        drop(frontend);
        std::thread::sleep(Duration::from_millis(20));
        let queue = nic.tx(0);
        for number in 1000..1005 {
            queue.offer(&NetHeader::default(), &numbered(number, 200), &[]).expect("room");
        }
        queue.ring.publish();
        session = resume_at(&rig, nic, base);
        for number in 1000..1005 {
            session.tx(0).used(LIMIT).expect("sent after the reconnect without a kick");
            rig.expect(&numbered(number, 200));
        }
        rig.both_ways(&mut session, 10);
        assert!(rig.wire.recv(Duration::ZERO).expect("the wire").is_none(), "nothing is sent twice");
        assert_eq!(session.rx(0).ring.outstanding(), 64, "no receive buffer is lost");
    }
}

/// A starting ring calls the driver once, in case its last call was lost with the last connection.
#[test]
fn a_start_calls_the_driver() {
    let Some(rig) = Rig::new("a_start_calls_the_driver", &[]) else { return };
    let mut session = rig.session(&Setup::default());
    for vring in 0..2 {
        let call = &session.nic.queues[vring].call;
        assert!(protocol_tests::wire::readable(call, LIMIT).expect("poll"), "vring {vring} is called");
    }
    session.rx(0).drain_call();
}

/// A kick before the first enable is kept: nothing is processed before the enable, and everything after.
#[test]
fn kick_before_enable() {
    let Some(rig) = Rig::new("kick_before_enable", &[]) else { return };
    let setup = Setup { enabled: 0, ..Setup::default() };
    let mut session = Session::start(rig.connect(), &setup).expect("a session");
    offer(&mut session, 0..5);
    session.tx(0).kick_always().expect("kicked");
    assert!(rig.wire.recv(QUIET).expect("the wire").is_none(), "nothing is sent before the first enable");
    assert_eq!(session.tx(0).ring.used_idx(), 0, "the ring was drained");
    session.frontend.set_vring_enable(1, true).expect("enable");
    for number in 0..5 {
        rig.expect(&numbered(number, 90));
    }
}

/// After ENABLE 0 a transmit ring is processed only on a kick, and then drained without a frame on the wire;
/// after a new enable it resumes.
#[test]
fn disabled_transmit_ring() {
    let Some(mut rig) = Rig::new("disabled_transmit_ring", &[]) else { return };
    let mut session = rig.session(&Setup::default());
    rig.both_ways(&mut session, 3);
    session.frontend.set_vring_enable(1, false).expect("disable");
    session.frontend.sync().expect("taken");
    offer(&mut session, 50..60);
    std::thread::sleep(QUIET);
    assert_eq!(session.tx(0).ring.used_idx(), 3, "not touched without a kick");
    session.tx(0).kick_always().expect("kicked");
    for _ in 0..10 {
        assert_eq!(session.tx(0).used(LIMIT).expect("drained").len, 0);
    }
    assert!(rig.wire.recv(QUIET).expect("the wire").is_none(), "frames of a disabled ring are dropped");
    session.frontend.set_vring_enable(1, true).expect("enable");
    rig.both_ways(&mut session, 3);
}

/// A disabled receive ring keeps its buffers; frames wait in the TAP and arrive after the new enable.
#[test]
fn disabled_receive_ring() {
    let Some(mut rig) = Rig::new("disabled_receive_ring", &[]) else { return };
    let mut session = rig.session(&Setup::default());
    rig.both_ways(&mut session, 3);
    session.frontend.set_vring_enable(0, false).expect("disable");
    session.frontend.sync().expect("taken");
    rig.wire.send(&numbered(500, 100)).expect("sent");
    assert!(session.rx(0).used(QUIET).is_err(), "a disabled ring gets no frame");
    session.frontend.set_vring_enable(0, true).expect("enable");
    assert_eq!(number_of(&session.rx(0).recv(LIMIT).expect("the frame that waited").bytes), Some(500));
}

/// GET_VRING_BASE stops the ring and answers its used index, with buffers outstanding. Then the ring is not
/// processed, kicked or not, until it is set up again and resumes.
#[test]
fn get_vring_base_answers_the_used_index() {
    let Some(mut rig) = Rig::new("get_vring_base_answers_the_used_index", &[]) else { return };
    let mut session = rig.session(&Setup { start: 65_530, ..Setup::default() });
    rig.both_ways(&mut session, 10);
    for vring in [0, 1] {
        let base = session.frontend.get_vring_base(vring).expect("a base");
        assert_eq!(base, u32::from(session.nic.queues[vring as usize].ring.used_idx()));
        assert_eq!(base, 4, "65530 and 10");
    }
    offer(&mut session, 70..72);
    session.tx(0).kick_always().expect("kicked");
    rig.wire.send(&numbered(600, 100)).expect("sent");
    assert!(rig.wire.recv(QUIET).expect("the wire").is_none(), "a stopped ring is not processed");
    assert_eq!(session.rx(0).ring.used_idx(), 4);
    for queue in &session.nic.queues {
        offer_vring(&session.frontend, &session.nic.mem, queue, 0).expect("a vring again");
    }
    rig.expect(&numbered(70, 90));
    rig.expect(&numbered(71, 90));
    assert_eq!(number_of(&session.rx(0).recv(LIMIT).expect("the frame that waited").bytes), Some(600));
}

/// Call and kick descriptors may be replaced under a running ring (a VMM that moves to MSI-X does).
#[test]
fn descriptors_replaced_while_running() {
    let Some(mut rig) = Rig::new("descriptors_replaced_while_running", &[]) else { return };
    let mut session = rig.session(&Setup::default());
    for round in 0..20 {
        for queue in &mut session.nic.queues {
            queue.call = protocol_tests::nic::eventfd().expect("an eventfd");
            session
                .frontend
                .set_vring_fd(request::SET_VRING_CALL, queue.vring, Some(&queue.call))
                .expect("call");
            if round % 2 == 1 {
                queue.kick = protocol_tests::nic::eventfd().expect("an eventfd");
                session
                    .frontend
                    .set_vring_fd(request::SET_VRING_KICK, queue.vring, Some(&queue.kick))
                    .expect("kick");
            }
        }
        rig.both_ways(&mut session, 5);
    }
}

/// Memory may be added and removed, and the whole table replaced, while frames flow.
#[test]
fn memory_table_replaced_while_running() {
    let Some(mut rig) = Rig::new("memory_table_replaced_while_running", &[]) else { return };
    let mut session = rig.session(&Setup::default());
    let more = protocol_tests::memory::GuestMemory::flat(0x4000_0000, 1 << 20).expect("memory");
    for _ in 0..10 {
        session.frontend.add_mem_reg(&more.specs()[0], more.fds()[0]).expect("added");
        rig.both_ways(&mut session, 3);
        session.frontend.rem_mem_reg(&more.specs()[0]).expect("removed");
        rig.both_ways(&mut session, 3);
        session.frontend.set_mem_table(&session.nic.mem).expect("the same table again");
        rig.both_ways(&mut session, 3);
    }
}

/// SIGTERM at any moment loses and repeats nothing: used frames were sent once, and the next daemon sends the
/// rest. A kill may repeat one batch, and loses nothing either.
#[test]
fn daemon_replaced_under_transmission() {
    let Some(mut rig) = Rig::new("daemon_replaced_under_transmission", &[]) else { return };
    let mut session = rig.session(&Setup { size: 1024, ..Setup::default() });
    let mut number = 10_000;
    for (round, signal) in [Signal::TERM, Signal::KILL, Signal::TERM, Signal::KILL].into_iter().enumerate() {
        offer(&mut session, number..number + 800);
        session.tx(0).kick_always().expect("kicked");
        std::thread::sleep(Duration::from_micros(150 * round as u64));
        rig.daemon.signal(signal).expect("signalled");
        let status = rig.daemon.wait(LIMIT).expect("it ends");
        assert!(signal == Signal::KILL || status.success(), "{status}:\n{}", rig.daemon.log());
        rig.restart(&[]);
        session = resume_at(&rig, session.nic, 12_345);
        for _ in 0..800 {
            session.tx(0).used(LIMIT).expect("all frames are used, once");
        }
        let mut seen = Vec::new();
        while let Some((_, frame)) = rig.wire.recv(QUIET).expect("the wire") {
            seen.push(number_of(&frame).expect("an intact frame"));
        }
        let sent = seen.len();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen, (number..number + 800).collect::<Vec<_>>(), "no frame is lost");
        let most = if signal == Signal::KILL { 64 } else { 0 };
        assert!(sent - 800 <= most, "{} frames came twice after {signal:?}", sent - 800);
        number += 800;
    }
    assert!(session.tx(0).try_used().expect("an intact ring").is_none());
    rig.both_ways(&mut session, 10);
    assert_eq!(session.rx(0).ring.outstanding(), 64, "no receive buffer is lost");
}

/// A VMM replaces call descriptors under traffic when its guest moves an interrupt. Every frame arrives once
/// and in order, and every completion is signalled on the current descriptor.
#[test]
fn call_descriptors_replaced_under_traffic() {
    let Some(rig) = Rig::new("call_descriptors_replaced_under_traffic", &[]) else { return };
    let mut session = rig.session(&Setup::default());
    for round in 0..200 {
        offer(&mut session, round * 4..round * 4 + 4);
        session.tx(0).kick_always().expect("kicked");
        rig.wire.send(&numbered(10_000 + round, 100)).expect("sent");
        for vring in 0..2 {
            let call = protocol_tests::nic::eventfd().expect("an eventfd");
            session.frontend.set_vring_fd(request::SET_VRING_CALL, vring, Some(&call)).expect("call");
            session.nic.queues[vring as usize].call = call;
        }
        for number in round * 4..round * 4 + 4 {
            session.tx(0).used(LIMIT).expect("sent, and called for");
            rig.expect(&numbered(number, 90));
        }
        let got = session.rx(0).recv(LIMIT).expect("received, and called for");
        assert_eq!(number_of(&got.bytes), Some(10_000 + round));
    }
    assert!(rig.wire.recv(QUIET).expect("the wire").is_none(), "nothing is sent twice");
    assert_eq!(session.rx(0).ring.outstanding(), 64, "no receive buffer is lost");
}
