//! States of a ring: started, enabled, stopped, set up again, and started at a wrong base.

use super::bench::{Bench, LIMIT, PLAIN, QUIET};
use super::{Finding, checks, ensure};
use crate::nic::{NicError, eventfd};
use crate::session::{Session, Setup, negotiate, offer_vring};
use crate::wire::{feature, request};

type Result = std::result::Result<(), Finding>;

checks! {
    "states/disabled-at-first", Must, Frames, "vhost-user, Ring states",
        "With protocol features no frame leaves before the first enable.", disabled_at_first;
    "states/enable-first", Robust, Completion,
        "vhost-user, Ring states (discards); Cloud Hypervisor kicks before it enables",
        "With protocol features nothing is used before the first enable, and everything after it; only the \
         transmit ring of the pair is enabled.", |b| enable_first(b, &[1]);
    "states/enable-first-pair", Robust, Completion,
        "vhost-user, Ring states (discards); Cloud Hypervisor kicks before it enables",
        "Like enable-first, with both rings enabled: some back-ends start with the pair.",
        |b| enable_first(b, &[0, 1]);
    "states/enabled-without-protocol", Must, Completion, "vhost-user, Ring states",
        "Without VHOST_USER_F_PROTOCOL_FEATURES a ring that starts is enabled.", without_protocol;
    "states/features-again", Robust, Completion, "UML and guests that drop features",
        "A second SET_FEATURES without bit 30 enables the rings already set up.", features_again;
    "states/disabled-transmit", Must, Frames, "vhost-user, Ring states",
        "A transmit ring disabled alone sends nothing, and resumes when enabled.",
        |b| disabled_transmit(b, &[1]);
    "states/disabled-receive", Must, Frames, "vhost-user, Ring states",
        "A receive ring disabled alone gets nothing, and resumes when enabled.",
        disabled_receive;
    "states/disabled-pair", Must, Frames, "vhost-user, Ring states",
        "A disabled pair sends nothing, and resumes both ways when enabled.",
        |b| disabled_transmit(b, &[0, 1]);
    "states/base-answered", Must, Completion, "vhost-user, GET_VRING_BASE",
        "GET_VRING_BASE answers the next index (both used and available), also after 65,535.",
        base_answered;
    "states/base-stops", Must, Completion, "vhost-user, Ring states (GET_VRING_BASE stops)",
        "One stopped ring of a pair is not processed until it is set up again, and then resumes.",
        |b| base_stops(b, &[1]);
    "states/base-stops-pair", Must, Completion, "vhost-user, Ring states (GET_VRING_BASE stops)",
        "A stopped pair is not processed until it is set up again, and then resumes.",
        |b| base_stops(b, &[0, 1]);
    "states/base-begins", Must, Completion, "vhost-user, SET_VRING_BASE",
        "A ring starts at its base and indices.", base_begins;
    "states/wrong-base", Robust, Completion, "Cloud Hypervisor sends the available index when it reconnects",
        "A ring starts at its used index if the base differs.", wrong_base;
    "states/resumed", Robust, Completion,
        "vhost-user, Ring states (a kick starts a ring); front-ends reconnect without one",
        "After a reconnect, frames offered meanwhile are sent without a kick.",
        resumed;
    "states/call-replaced", Must, Completion, "vhost-user, SET_VRING_CALL",
        "A call descriptor can be replaced under a running ring.", call_replaced;
    "states/kick-replaced", Robust, Completion, "vhost-user, SET_VRING_KICK",
        "A kick descriptor can be replaced under a running ring.", kick_replaced;
    "states/kick-before-addr", Robust, Completion, "DPDK's virtio-user: enable, then base, then addresses",
        "The messages of a vring may come in DPDK's order.", dpdk_order;
}

/// Checks that a chain is not used for a while.
pub(super) fn untouched(session: &mut Session, when: &str) -> Result {
    match session.tx(0).used(QUIET) {
        Ok(used) => Err(Finding::Fail(format!("{when} the ring used {used:?}"))),
        Err(NicError::Timeout { used, taken, .. }) if used == taken => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn offer(bench: &mut Bench, session: &mut Session) -> std::result::Result<Vec<u8>, Finding> {
    let frame = bench.frame(90);
    session.tx(0).offer(&PLAIN, &frame, &[])?;
    session.tx(0).kick_always()?;
    Ok(frame)
}

/// Starts a session with rings that are started and not yet enabled.
fn not_enabled(bench: &mut Bench) -> std::result::Result<Session, Finding> {
    let session = bench.session(&Setup { enabled: 0, ..Setup::default() })?;
    Bench::offered(&session, feature::PROTOCOL_FEATURES, "VHOST_USER_F_PROTOCOL_FEATURES")?;
    Ok(session)
}

fn enable(session: &Session, vrings: &[u32], enabled: bool) -> Result {
    vrings.iter().try_for_each(|vring| session.frontend.set_vring_enable(*vring, enabled))?;
    Ok(session.frontend.sync()?)
}

fn disabled_at_first(bench: &mut Bench) -> Result {
    let mut session = not_enabled(bench)?;
    offer(bench, &mut session)?;
    bench.expect_none(&mut session)?;
    enable(&session, &[0, 1], true)?;
    session.tx(0).used(LIMIT)?;
    // A back-end may discard or keep the frames offered while disabled.
    while bench.leaves(&mut session, QUIET)?.is_some() {}
    bench.both_ways(&mut session, 3)
}

fn enable_first(bench: &mut Bench, vrings: &[u32]) -> Result {
    let mut session = not_enabled(bench)?;
    offer(bench, &mut session)?;
    untouched(&mut session, "before its first enable")?;
    enable(&session, vrings, true)?;
    session.tx(0).used(LIMIT)?;
    Ok(())
}

fn without_protocol(bench: &mut Bench) -> Result {
    let base = Setup::default();
    let setup = Setup { enabled: 0, features: base.features & !feature::PROTOCOL_FEATURES, ..base };
    let mut session = bench.session(&setup)?;
    bench.both_ways(&mut session, 3)
}

fn features_again(bench: &mut Bench) -> Result {
    let mut session = Session::start(bench.connect()?, &Setup { enabled: 0, ..Setup::default() })?;
    offer(bench, &mut session)?;
    let fewer = session.nic.features & !feature::PROTOCOL_FEATURES;
    session.frontend.set_features(fewer)?;
    session.tx(0).used(LIMIT)?;
    Ok(())
}

fn disabled_transmit(bench: &mut Bench, vrings: &[u32]) -> Result {
    let mut session = bench.session(&Setup::default())?;
    bench.both_ways(&mut session, 2)?;
    enable(&session, vrings, false)?;
    let frame = bench.frame(90);
    session.tx(0).offer(&PLAIN, &frame, &[])?;
    session.tx(0).kick_always()?;
    bench.expect_none(&mut session)?;
    enable(&session, vrings, true)?;
    session.tx(0).used(LIMIT)?;
    // A back-end may discard or keep the frames offered while disabled.
    while bench.leaves(&mut session, QUIET)?.is_some() {}
    bench.both_ways(&mut session, 3)
}

fn disabled_receive(bench: &mut Bench) -> Result {
    let mut session = bench.session(&Setup::default())?;
    bench.both_ways(&mut session, 2)?;
    session.frontend.set_vring_enable(0, false)?;
    session.frontend.sync()?;
    let frame = bench.frame(90);
    bench.inject(&mut session, &frame)?;
    match session.rx(0).used(QUIET) {
        Ok(used) => return Err(Finding::Fail(format!("disabled, the receive ring used {used:?}"))),
        Err(NicError::Timeout { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    session.frontend.set_vring_enable(0, true)?;
    let second = bench.frame(91);
    bench.inject(&mut session, &second)?;
    let got = session.rx(0).recv(LIMIT)?;
    ensure!(got.bytes == frame || got.bytes == second, "another frame came: {:02x?}", got.bytes);
    Ok(())
}

fn base_answered(bench: &mut Bench) -> Result {
    for start in [0, 65_530] {
        let mut session = bench.session(&Setup { start, ..Setup::default() })?;
        for _ in 0..10 {
            let frame = bench.frame(100);
            session.tx(0).send(&frame, LIMIT)?;
        }
        let base = session.frontend.get_vring_base(1)?;
        let want = start.wrapping_add(10);
        ensure!(base == u32::from(want), "GET_VRING_BASE answered {base}, not {want}");
    }
    Ok(())
}

fn base_stops(bench: &mut Bench, vrings: &[u32]) -> Result {
    let mut session = bench.session(&Setup::default())?;
    bench.both_ways(&mut session, 2)?;
    for vring in vrings {
        session.frontend.get_vring_base(*vring)?;
    }
    offer(bench, &mut session)?;
    untouched(&mut session, "stopped,")?;
    for vring in vrings {
        let queue = &session.nic.queues[*vring as usize];
        offer_vring(&session.frontend, &session.nic.mem, queue, queue.ring.used_idx())?;
    }
    enable(&session, vrings, true)?;
    for vring in vrings {
        session.nic.queues[*vring as usize].kick_always()?;
    }
    session.tx(0).used(LIMIT)?;
    Ok(())
}

fn base_begins(bench: &mut Bench) -> Result {
    let mut session = bench.session(&Setup { start: 12_345, ..Setup::default() })?;
    bench.both_ways(&mut session, 3)
}

fn wrong_base(bench: &mut Bench) -> Result {
    for wrong in [0, 64, 65_535] {
        let setup = Setup { start: 1000, ..Setup::default() };
        let mut frontend = bench.connect()?;
        let (features, protocol) = negotiate(&mut frontend, setup.features, setup.protocol)?;
        let nic = setup.nic(features).map_err(Finding::from)?;
        frontend.set_mem_table(&nic.mem)?;
        for queue in &nic.queues {
            offer_vring(&frontend, &nic.mem, queue, wrong)?;
            frontend.set_vring_enable(queue.vring, true)?;
        }
        let mut session = Session { frontend, nic, protocol };
        session.rx(0).fill(32, &[2048])?;
        bench.both_ways(&mut session, 3)?;
    }
    Ok(())
}

fn resumed(bench: &mut Bench) -> Result {
    let mut session = bench.session(&Setup::default())?;
    bench.both_ways(&mut session, 3)?;
    let Session { frontend, mut nic, .. } = session;
    for vring in 0..2 {
        frontend.get_vring_base(vring)?;
    }
    drop(frontend);
    let frame = bench.frame(100);
    nic.tx(0).offer(&PLAIN, &frame, &[])?;
    nic.tx(0).ring.publish();
    let mut session = Session::resume(bench.connect()?, nic, &Setup::default())?;
    session.tx(0).used(LIMIT)?;
    if bench.sees_frames() {
        bench.expect(&mut session, &frame)?;
    }
    bench.both_ways(&mut session, 3)
}

fn call_replaced(bench: &mut Bench) -> Result {
    let mut session = bench.session(&Setup::default())?;
    for _ in 0..5 {
        bench.both_ways(&mut session, 2)?;
        session.tx(0).call = eventfd()?;
        session.frontend.set_vring_fd(request::SET_VRING_CALL, 1, Some(&session.nic.queues[1].call))?;
        session.frontend.sync()?;
    }
    bench.both_ways(&mut session, 2)
}

fn kick_replaced(bench: &mut Bench) -> Result {
    let mut session = bench.session(&Setup::default())?;
    for _ in 0..5 {
        bench.both_ways(&mut session, 2)?;
        session.tx(0).kick = eventfd()?;
        session.frontend.set_vring_fd(request::SET_VRING_KICK, 1, Some(&session.nic.queues[1].kick))?;
        session.frontend.sync()?;
    }
    bench.both_ways(&mut session, 2)
}

fn dpdk_order(bench: &mut Bench) -> Result {
    let setup = Setup::default();
    let mut frontend = bench.connect()?;
    let (features, protocol) = negotiate(&mut frontend, setup.features, setup.protocol)?;
    let nic = setup.nic(features).map_err(Finding::from)?;
    for queue in &nic.queues {
        frontend.set_vring_enable(queue.vring, true)?;
        frontend.set_vring_fd(request::SET_VRING_CALL, queue.vring, Some(&queue.call))?;
    }
    frontend.set_mem_table(&nic.mem)?;
    for queue in &nic.queues {
        let layout = queue.ring.layout();
        frontend.set_vring_num(queue.vring, u32::from(layout.size))?;
        frontend.set_vring_base(queue.vring, 0)?;
        frontend.set_vring_addr(queue.vring, &nic.mem, &layout)?;
        frontend.set_vring_fd(request::SET_VRING_KICK, queue.vring, Some(&queue.kick))?;
    }
    let mut session = Session { frontend, nic, protocol };
    session.rx(0).fill(32, &[2048])?;
    bench.both_ways(&mut session, 3)
}
