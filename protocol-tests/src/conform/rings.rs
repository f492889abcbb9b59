//! Rings and frames: used entries, notifications, wrap-around, sizes, chains of every shape, merged buffers.

use std::time::Instant;

use super::bench::{Bench, LIMIT, PLAIN, QUIET};
use super::{Finding, checks, ensure};
use crate::nic::Queue;
use crate::ring::Used;
use crate::session::{Session, SessionError, Setup};
use crate::wire::{WireError, feature, readable};

type Result = std::result::Result<(), Finding>;

checks! {
    "rings/transmit-length-zero", Must, Completion, "virtio 1.2, 2.7.8 (used len: bytes written)",
        "The used length of a transmit chain is 0.", transmit_length;
    "rings/each-chain-once", Must, Completion, "virtio 1.2, 2.7.8.2 and 2.7.14",
        "Each chain is returned once, its entry written before the index.", each_once;
    "rings/called", Must, Completion, "virtio 1.2, 2.7.7.2",
        "Without EVENT_IDX the driver is called for used buffers.", |b| modes(b, feature::EVENT_IDX);
    "rings/called-event-idx", Must, Completion, "virtio 1.2, 2.7.7.2",
        "With EVENT_IDX the driver is called when the index passes used_event.", called_event;
    "rings/no-interrupt", Robust, Completion, "virtio 1.2, 2.7.7.2 (SHOULD NOT)",
        "With VIRTQ_AVAIL_F_NO_INTERRUPT the driver is not called.", no_interrupt;
    "rings/used-event-not-passed", Robust, Completion, "virtio 1.2, 2.7.7.2 (SHOULD NOT)",
        "The driver is not called before the index passes used_event.", event_not_passed;
    "rings/kicked-again", Must, Completion, "virtio 1.2, 2.7.10.2 (avail_event)",
        "A driver that kicks only as avail_event requests is always served.", |b| modes(b, 0);
    "rings/wrap", Must, Completion, "virtio 1.2, 2.7.6 and 2.7.8 (idx increases for ever)",
        "Indices run through 65,535, with EVENT_IDX and without.", wrap;
    "rings/size-1", Must, Completion, "virtio 1.2, 2.7", "A ring of 1 descriptor works.", |b| size(b, 1);
    "rings/size-2", Must, Completion, "virtio 1.2, 2.7", "A ring of 2 descriptors works.", |b| size(b, 2);
    "rings/size-1024", Robust, Completion, "virtio 1.2, 2.7 (the device chooses the maximum); QEMU's limit",
        "A ring of 1024 descriptors works.", |b| size(b, 1024);
    "rings/size-32768", Robust, Completion, "virtio 1.2, 2.7 (the device chooses the maximum)",
        "A ring of 32768 descriptors works.", |b| size(b, 32_768);
    "rings/transmit-content", Must, Frames, "virtio 1.2, 5.1.6.2",
        "Frames of 60 to 1514 bytes leave unchanged and in order.", content;
    "rings/order", Robust, Frames, "virtio 1.2, 5.1.6.2 (no order is demanded); TCP slows down without",
        "Frames offered together leave once each and in order.", order;
    "rings/shapes", Must, Frames, "virtio 1.2, 2.7.4.1 (no assumption about framing)",
        "A frame may be cut anywhere: through its header, or into single bytes.", shapes;
    "rings/chain-100", Must, Frames, "virtio 1.2, 2.7.4.1",
        "A frame may lie in a hundred parts.", |b| long_chain(b, 256, 99);
    "rings/chain-1100", Must, Frames, "virtio 1.2, 2.7.4.1 and 2.7.5.2 (up to the queue size)",
        "A frame may lie in more parts than one host system call takes.",
        |b| long_chain(b, 2048, 1099);
    "rings/jumbo", Robust, Frames,
        "virtio 1.2, 5.1.6.3 (1514 bytes without offloads); Linux takes any MTU where none is offered",
        "Frames of 9014 and of 60,000 bytes leave unchanged.", jumbo;
    "rings/indirect", Must, Frames, "virtio 1.2, 2.7.5.3", "A frame may lie in an indirect table.", indirect;
    "rings/direct-then-indirect", Must, Frames, "virtio 1.2, 2.7.5.3.2",
        "Direct descriptors may be followed by an indirect table.", mixed;
    "rings/receive-length", Must, Frames, "virtio 1.2, 2.7.8 and 5.1.6.4",
        "The used length of a receive chain is that of header and frame.", receive_length;
    "rings/receive-split-header", Must, Frames, "virtio 1.2, 2.7.4.1",
        "A receive buffer may be cut through the header.", receive_split;
    "rings/num-buffers-one", Must, Frames, "virtio 1.2, 5.1.6.4.1",
        "num_buffers is 1 for a frame in one buffer, with MRG_RXBUF and without.", num_buffers_one;
    "rings/merged", Must, Frames, "virtio 1.2, 5.1.6.4",
        "A long frame takes num_buffers buffers, published together.", merged;
    "rings/receive-wrap", Must, Frames, "virtio 1.2, 2.7.6 and 2.7.8",
        "Receive indices run through 65,535.", receive_wrap;
    "rings/receive-no-buffers", Must, Frames, "virtio 1.2, 5.1.6.3",
        "A receive ring without buffers resumes when it gets some.", no_buffers;
}

fn without(features: u64) -> Setup {
    let base = Setup::default();
    Setup { features: base.features & !features, ..base }
}

fn event_idx(bench: &Bench) -> std::result::Result<Session, Finding> {
    let session = bench.session(&Setup::default())?;
    Bench::offered(&session, feature::EVENT_IDX, "VIRTIO_F_EVENT_IDX")?;
    Ok(session)
}

fn transmit_length(bench: &mut Bench) -> Result {
    let mut session = bench.session(&Setup::default())?;
    let frame = bench.frame(200);
    let used = session.tx(0).send(&frame, LIMIT)?;
    ensure!(used.len == 0, "used length {} for head {}", used.len, used.head);
    Ok(())
}

fn each_once(bench: &mut Bench) -> Result {
    let mut session = bench.session(&Setup::default())?;
    for _ in 0..4 {
        let mut heads = Vec::new();
        for _ in 0..8 {
            let frame = bench.frame(80);
            heads.push(session.tx(0).offer(&PLAIN, &frame, &[12])?);
        }
        session.tx(0).kick()?;
        for _ in 0..8 {
            let used = watched(&mut session)?;
            ensure!(heads.contains(&used.head), "head {} of {heads:?}", used.head);
        }
        std::thread::sleep(QUIET / 4);
        ensure!(session.tx(0).try_used()?.is_none(), "more came back than was given");
    }
    Ok(())
}

/// Takes the next used chain as soon as the index shows it: waiting for the call would hide an entry that is
/// not written yet.
fn watched(session: &mut Session) -> std::result::Result<Used, Finding> {
    let deadline = Instant::now() + LIMIT;
    loop {
        match session.tx(0).try_used()? {
            Some(used) => return Ok(used),
            None if Instant::now() > deadline => return Ok(session.tx(0).used(QUIET)?),
            None => std::thread::yield_now(),
        }
    }
}

fn modes(bench: &mut Bench, off: u64) -> Result {
    let mut session = bench.session(&without(off))?;
    if off == 0 {
        Bench::offered(&session, feature::EVENT_IDX, "VIRTIO_F_EVENT_IDX")?;
    }
    for _ in 0..100 {
        let frame = bench.frame(70);
        session.tx(0).send(&frame, LIMIT)?;
    }
    Ok(())
}

fn called_event(bench: &mut Bench) -> Result {
    let mut session = event_idx(bench)?;
    for batch in [1u16, 5, 17] {
        let queue = session.tx(0);
        let event = queue.ring.last_used().wrapping_add(batch - 1);
        queue.ring.set_used_event(event);
        queue.drain_call();
        for _ in 0..batch {
            let frame = bench.frame(70);
            queue.offer(&PLAIN, &frame, &[])?;
        }
        queue.kick()?;
        ensure!(
            readable(&queue.call, LIMIT)?,
            "no call: used_event {event}, used.idx {}",
            queue.ring.used_idx()
        );
        for _ in 0..batch {
            queue.used(LIMIT)?;
        }
    }
    Ok(())
}

/// Waits until the transmit ring has used all chains, without asking for calls.
pub(super) fn wait_used(session: &mut Session) -> Result {
    let ring = &session.tx(0).ring;
    let all = ring.avail_idx();
    let there = crate::daemon::poll_until(LIMIT, || (ring.used_idx() == all).then_some(()));
    ensure!(there.is_some(), "used.idx {} does not come to {all}", ring.used_idx());
    Ok(())
}

/// Uses two chains, so that no call is pending: the calls of a starting ring and of the first chain are made
/// before the wait for the second, which asks for none.
pub(super) fn settle(bench: &mut Bench, session: &mut Session) -> Result {
    let [first, second] = [70, 71].map(|len| bench.frame(len));
    session.tx(0).send(&first, LIMIT)?;
    let event_idx = session.nic.features & feature::EVENT_IDX != 0;
    let queue = session.tx(0);
    match event_idx {
        true => queue.ring.set_used_event(queue.ring.avail_idx().wrapping_add(0x4000)),
        false => queue.ring.set_no_interrupt(true),
    }
    queue.offer(&PLAIN, &second, &[])?;
    queue.kick()?;
    wait_used(session)?;
    session.tx(0).drain_call();
    Ok(())
}

fn no_interrupt(bench: &mut Bench) -> Result {
    let mut session = bench.session(&without(feature::EVENT_IDX))?;
    settle(bench, &mut session)?;
    not_called(bench, &mut session, "VIRTQ_AVAIL_F_NO_INTERRUPT set")
}

fn event_not_passed(bench: &mut Bench) -> Result {
    let mut session = event_idx(bench)?;
    settle(bench, &mut session)?;
    session.tx(0).ring.set_used_event(40);
    not_called(bench, &mut session, "used_event 40, used.idx 3")
}

/// Uses one more chain and checks that the driver is not called.
fn not_called(bench: &mut Bench, session: &mut Session, when: &str) -> Result {
    let frame = bench.frame(70);
    session.tx(0).offer(&PLAIN, &frame, &[])?;
    session.tx(0).kick()?;
    wait_used(session)?;
    ensure!(!readable(&session.tx(0).call, QUIET / 4)?, "called with {when}");
    Ok(())
}

fn wrap(bench: &mut Bench) -> Result {
    for off in [0, feature::EVENT_IDX] {
        let mut session = bench.session(&Setup { start: 65_530, size: 16, ..without(off) })?;
        for _ in 0..20 {
            let frame = bench.frame(64);
            session.tx(0).send(&frame, LIMIT)?;
        }
        let used = session.tx(0).ring.used_idx();
        ensure!(used == 14, "used.idx is {used} after 65530 and 20");
    }
    Ok(())
}

/// Starts a session with rings of this size. The device chooses the maximum, the driver any smaller size.
fn sized(bench: &Bench, size: u16) -> std::result::Result<Session, Finding> {
    let mut session = match Session::start(bench.connect()?, &Setup { size, ..Setup::default() }) {
        Err(SessionError::Wire(WireError::Refused { request: "SET_VRING_NUM", .. })) if size > 256 => {
            return Err(Finding::NotOffered(format!("a ring of {size} descriptors")));
        }
        other => other?,
    };
    session.nic.queues.iter_mut().try_for_each(Queue::kick_always)?;
    session.rx(0).fill(usize::from(size).min(32), &[2048])?;
    Ok(session)
}

fn size(bench: &mut Bench, size: u16) -> Result {
    let mut session = sized(bench, size)?;
    bench.both_ways(&mut session, 10)
}

fn content(bench: &mut Bench) -> Result {
    let mut session = bench.session(&Setup::default())?;
    for len in (60..=1514).step_by(31).chain([1514]) {
        let frame = bench.frame(len);
        session.tx(0).send(&frame, LIMIT)?;
        bench.expect(&mut session, &frame)?;
    }
    Ok(())
}

fn order(bench: &mut Bench) -> Result {
    let mut session = bench.session(&Setup::default())?;
    let frames: Vec<_> = (0..24).map(|at| bench.frame(70 + at)).collect();
    for frame in &frames {
        session.tx(0).offer(&PLAIN, frame, &[12])?;
    }
    session.tx(0).kick()?;
    for frame in &frames {
        bench.expect(&mut session, frame)?;
    }
    bench.expect_none(&mut session)
}

/// Sends a frame in the given parts and sees it leave.
fn cut(bench: &mut Bench, session: &mut Session, len: usize, cuts: &[usize]) -> Result {
    let frame = bench.frame(len);
    session.tx(0).send_cut(&PLAIN, &frame, cuts, LIMIT)?;
    bench.expect(session, &frame)
}

fn shapes(bench: &mut Bench) -> Result {
    let mut session = bench.session(&Setup::default())?;
    for cuts in [&[12][..], &[1], &[11, 1], &[5, 7, 14], &[26], &[13, 13, 13], &[1; 30], &[12, 60]] {
        cut(bench, &mut session, 120, cuts)?;
    }
    Ok(())
}

fn long_chain(bench: &mut Bench, size: u16, cuts: usize) -> Result {
    let mut session = sized(bench, size)?;
    cut(bench, &mut session, 1400, &vec![1412 / (cuts + 1); cuts])
}

/// Uses receive buffers that hold the longest frame in one piece, because an echo returns it.
fn jumbo(bench: &mut Bench) -> Result {
    let mut session = bench.started(&Setup::default())?;
    session.rx(0).fill(8, &[65_562])?;
    for len in [9014, 60_000] {
        let frame = bench.frame(len);
        session.tx(0).send(&frame, LIMIT)?;
        bench.expect(&mut session, &frame)?;
    }
    Ok(())
}

fn indirect(bench: &mut Bench) -> Result {
    let mut session = bench.session(&Setup::default())?;
    Bench::offered(&session, feature::INDIRECT_DESC, "VIRTIO_F_INDIRECT_DESC")?;
    for cuts in [&[12][..], &[5, 20], &[], &[1; 40]] {
        let frame = bench.frame(300);
        let queue = session.tx(0);
        let parts = queue.place(&PLAIN, &frame, cuts);
        queue.submit_indirect(&parts)?;
        queue.kick()?;
        queue.used(LIMIT)?;
        bench.expect(&mut session, &frame)?;
    }
    Ok(())
}

fn mixed(bench: &mut Bench) -> Result {
    let mut session = bench.session(&Setup::default())?;
    Bench::offered(&session, feature::INDIRECT_DESC, "VIRTIO_F_INDIRECT_DESC")?;
    let frame = bench.frame(300);
    let queue = session.tx(0);
    let parts = queue.place(&PLAIN, &frame, &[12, 40, 50]);
    let table = queue.alloc(64);
    let added = queue.ring.add_mixed(&parts[..2], Some((table, &parts[2..])));
    added.map_err(|error| Finding::Fail(error.to_string()))?;
    queue.kick()?;
    queue.used(LIMIT)?;
    bench.expect(&mut session, &frame)
}

fn receive_length(bench: &mut Bench) -> Result {
    let mut session = bench.session(&Setup::default())?;
    for len in [60, 61, 700, 1514] {
        let frame = bench.frame(len);
        bench.inject(&mut session, &frame)?;
        let got = bench.arrives(&mut session, &frame)?;
        let used = got.chains[0].len as usize;
        ensure!(used == 12 + len, "used length {used} for a frame of {len} bytes and its header of 12");
    }
    Ok(())
}

fn receive_split(bench: &mut Bench) -> Result {
    for lens in [&[12, 2000][..], &[1, 2000], &[11, 1, 2000], &[20, 30, 2000]] {
        let mut session = bench.started(&Setup::default())?;
        session.rx(0).fill(8, lens)?;
        let frame = bench.frame(900);
        bench.inject(&mut session, &frame)?;
        bench.arrives(&mut session, &frame)?;
    }
    Ok(())
}

fn num_buffers_one(bench: &mut Bench) -> Result {
    for off in [0, feature::MRG_RXBUF] {
        let mut session = bench.session(&without(off))?;
        let frame = bench.frame(100);
        bench.inject(&mut session, &frame)?;
        let count = bench.arrives(&mut session, &frame)?.header.num_buffers;
        ensure!(count == 1, "num_buffers is {count} (MRG_RXBUF off: {})", off != 0);
    }
    Ok(())
}

fn merged(bench: &mut Bench) -> Result {
    let mut session = bench.started(&Setup::default())?;
    Bench::offered(&session, feature::MRG_RXBUF, "VIRTIO_NET_F_MRG_RXBUF")?;
    session.rx(0).fill(64, &[300])?;
    for len in [100, 288, 289, 700, 1500] {
        let frame = bench.frame(len);
        bench.inject(&mut session, &frame)?;
        let got = bench.arrives(&mut session, &frame)?;
        let want = (12 + len).div_ceil(300);
        let unfilled = got.chains[..got.chains.len() - 1].iter().find(|used| used.len != 300);
        ensure!(unfilled.is_none(), "{len} bytes: a buffer before the last has {unfilled:?} of 300 bytes");
        ensure!(got.chains.len() == want, "{len} bytes in {} buffers of 300, not {want}", got.chains.len());
    }
    Ok(())
}

fn receive_wrap(bench: &mut Bench) -> Result {
    let mut session = bench.session(&Setup { start: 65_530, size: 16, ..Setup::default() })?;
    for _ in 0..20 {
        let frame = bench.frame(100);
        bench.inject(&mut session, &frame)?;
        bench.arrives(&mut session, &frame)?;
    }
    Ok(())
}

fn no_buffers(bench: &mut Bench) -> Result {
    let mut session = bench.started(&Setup::default())?;
    let frame = bench.frame(100);
    bench.inject(&mut session, &frame)?;
    std::thread::sleep(QUIET);
    session.rx(0).fill(2, &[2048])?;
    // The back-end may drop or keep a frame for which there is no buffer.
    let second = bench.frame(101);
    bench.inject(&mut session, &second)?;
    let got = session.rx(0).recv(LIMIT)?;
    ensure!(got.bytes == frame || got.bytes == second, "another frame came: {:02x?}", got.bytes);
    Ok(())
}
