//! Live migration: each write of a back-end is marked in the log. What a check asks for lies on pages of its
//! own, so that no other write marks them. [`super::migration`] checks how logging begins and ends.

use super::bench::{Bench, LIMIT};
use super::logged::{
    Range, arrival, covering, log_on, log_rings, logs, marked, none_marked, ready, send, sized, usual,
};
use super::queues::controlled;
use super::{Finding, checks, ensure};
use crate::daemon::poll_until;
use crate::dirty_log::{DirtyLog, PAGE};
use crate::frontend::mem_table;
use crate::memory::GuestMemory;
use crate::nic::Queue;
use crate::ring::{DriverRing, Part};
use crate::session::{Session, Setup};
use crate::wire::{feature, protocol, request};

type Result = std::result::Result<(), Finding>;

/// Receive buffers of a check: frames of others may take some.
const BUFFERS: u64 = 16;

checks! {
    "migration/payload", Must, Frames, "vhost-user, Migration",
        "The pages of a received frame are marked: those of its header and of all its bytes.", payload;
    "migration/merged", Must, Frames, "vhost-user, Migration; virtio 1.2, 5.1.6.4",
        "Each buffer of a merged frame is marked.", merged;
    "migration/num-buffers", Must, Frames, "vhost-user, Migration; virtio 1.2, 5.1.6.4.1",
        "The page of num_buffers is marked, also if the rest of the header lies on others.", num_buffers;
    "migration/used-ring", Must, Frames, "vhost-user, Migration (used vring); virtio 1.2, 2.7.8",
        "The used elements of a receive ring are marked.", used_elements;
    "migration/used-index", Must, Completion, "vhost-user, Migration (used vring); virtio 1.2, 2.7.8",
        "The index of a used ring is marked.", used_index;
    "migration/avail-event", Must, Completion,
        "vhost-user, Migration (used vring); virtio 1.2, 2.7.8 (its last field)",
        "With EVENT_IDX a written avail_event is marked.", avail_event;
    "migration/transmit-used-ring", Must, Completion, "vhost-user, Migration (used vring)",
        "The used elements of a transmit ring are marked.", transmit_used;
    "migration/control-status", Must, Control, "vhost-user, Migration; virtio 1.2, 5.1.6.5",
        "The answer to a command on the control queue is marked.", control_status;
    "migration/log-address-elsewhere", Must, Completion,
        "vhost-user, Migration (log_guest_addr might be outside the legal guest physical address range)",
        "A used ring is marked at its log address, which may be outside guest memory.", elsewhere;
    "migration/log-offset", Must, Completion, "vhost-user, Log description",
        "A log begins in its file at its offset, which may be any number.", offset;
    "migration/ring-off", Robust, Completion, "vhost-user, Migration (VHOST_VRING_F_LOG)",
        "After SET_VRING_ADDR without VHOST_VRING_F_LOG the used ring is not marked.", ring_off;
    "migration/new-memory", Must, Frames, "vhost-user, Migration and SET_MEM_TABLE",
        "A frame in memory that a second SET_MEM_TABLE adds is marked.", |b| grown(b, false);
    "migration/new-region", Must, Frames, "vhost-user, Migration and ADD_MEM_REG",
        "A frame in memory that ADD_MEM_REG adds is marked.", |b| grown(b, true);
}

/// Allocates whole pages.
fn whole_pages(queue: &mut Queue, count: u64) -> u64 {
    queue.alloc(((count + 1) * PAGE) as usize).next_multiple_of(PAGE)
}

/// Makes receive buffers of several pages available, each cut as `shape` cuts it.
fn post(session: &mut Session, shape: &[Range]) -> Result {
    let queue = session.rx(0);
    for _ in 0..BUFFERS {
        let at = whole_pages(queue, 6);
        let parts: Vec<_> = shape.iter().map(|(from, len)| Part::into(at + from, *len as u32)).collect();
        queue.submit(&parts)?;
    }
    Ok(queue.kick()?)
}

/// Starts a session whose receive buffers have this shape, and its log.
fn logged(
    bench: &Bench,
    setup: &Setup,
    shape: &[Range],
) -> std::result::Result<(Session, DirtyLog, GuestMemory), Finding> {
    let mut session = ready(bench, setup)?;
    let log = covering(&session)?;
    log_on(&session, &log)?;
    post(&mut session, shape)?;
    log.take();
    let mem = session.nic.mem.clone();
    Ok((session, log, mem))
}

fn payload(bench: &mut Bench) -> Result {
    // The header is alone on a page, and the frame crosses into another.
    let shape = [(0, 12), (3 * PAGE - 1000, 2048)];
    let (mut session, log, mem) = logged(bench, &usual(), &shape)?;
    let buffers = arrival(bench, &mut session, &mem, 1500)?;
    marked(&log, &buffers.concat(), "a received frame")
}

fn merged(bench: &mut Bench) -> Result {
    let (mut session, log, mem) = logged(bench, &usual(), &[(0, 500)])?;
    Bench::offered(&session, feature::MRG_RXBUF, "VIRTIO_NET_F_MRG_RXBUF")?;
    let buffers = arrival(bench, &mut session, &mem, 1400)?;
    ensure!(buffers.len() == 3, "a frame of 1400 bytes in buffers of 500 took {}", buffers.len());
    marked(&log, &buffers.concat(), "a merged frame")
}

fn num_buffers(bench: &mut Bench) -> Result {
    let shape = [(PAGE - 10, 10), (2 * PAGE, 2), (4 * PAGE, 488)];
    let (mut session, log, mem) = logged(bench, &usual(), &shape)?;
    Bench::offered(&session, feature::MRG_RXBUF, "VIRTIO_NET_F_MRG_RXBUF")?;
    let buffers = arrival(bench, &mut session, &mem, 1400)?;
    let header = buffers.first().and_then(|ranges| ranges.get(..2));
    marked(&log, header.ok_or_else(|| Finding::Fail("no header".to_owned()))?, "header and num_buffers")
}

/// Returns the last used element that the driver took.
fn element(ring: &DriverRing) -> Range {
    let layout = ring.layout();
    (layout.used + 4 + 8 * u64::from(ring.last_used().wrapping_sub(1) % layout.size), 8)
}

fn used_elements(bench: &mut Bench) -> Result {
    let (mut session, log, mem) = logged(bench, &sized(), &[(0, 2048)])?;
    arrival(bench, &mut session, &mem, 200)?;
    marked(&log, &[element(&session.rx(0).ring)], "a used element of the receive ring")
}

fn used_index(bench: &mut Bench) -> Result {
    let (mut session, log, mem) = logged(bench, &sized(), &[(0, 2048)])?;
    send(bench, &mut session)?;
    marked(&log, &[(session.tx(0).ring.layout().used, 4)], "the transmit ring's used index")?;
    if bench.sees_frames() {
        arrival(bench, &mut session, &mem, 200)?;
        marked(&log, &[(session.rx(0).ring.layout().used, 4)], "the receive ring's used index")?;
    }
    Ok(())
}

fn avail_event(bench: &mut Bench) -> Result {
    let (mut session, log, _) = logged(bench, &sized(), &[(0, 2048)])?;
    Bench::offered(&session, feature::EVENT_IDX, "VIRTIO_F_EVENT_IDX")?;
    let before = session.tx(0).ring.avail_event();
    send(bench, &mut session)?;
    let ring = &session.tx(0).ring;
    // A back-end that polls need not write it.
    if poll_until(LIMIT, || (ring.avail_event() != before).then_some(())).is_none() {
        return Ok(());
    }
    let layout = ring.layout();
    marked(&log, &[(layout.used + 4 + 8 * u64::from(layout.size), 2)], "avail_event")
}

fn transmit_used(bench: &mut Bench) -> Result {
    let (mut session, log, _) = logged(bench, &sized(), &[(0, 2048)])?;
    send(bench, &mut session)?;
    marked(&log, &[element(&session.tx(0).ring)], "a used element of the transmit ring")
}

fn control_status(bench: &mut Bench) -> Result {
    let session = &mut controlled(bench, usual(), 2)?;
    logs(session)?;
    let log = covering(session)?;
    log_on(session, &log)?;
    log.take();
    let mem = session.nic.mem.clone();
    let queue = session.nic.queues.last_mut().ok_or_else(|| Finding::Fail("no queue".to_owned()))?;
    let at = whole_pages(queue, 3);
    mem.write(at, &[4, 0, 1, 0]);
    let status = (at + 2 * PAGE, 1);
    queue.submit(&[Part::out(at, 2), Part::out(at + 2, 2), Part::into(status.0, 1)])?;
    queue.kick()?;
    queue.used(LIMIT)?;
    marked(&log, &[status], "the answer to a command")
}

fn elsewhere(bench: &mut Bench) -> Result {
    let mut session = ready(bench, &sized())?;
    let log = covering(&session)?;
    log_on(&session, &log)?;
    let (place, used) = (session.nic.mem.end() + 4 * PAGE + 8, session.tx(0).ring.layout().used);
    log_rings(&session, |ring| (ring.used == used).then_some(place))?;
    log.take();
    send(bench, &mut session)?;
    let (at, len) = element(&session.tx(0).ring);
    marked(&log, &[(place, 4), (place + at - used, len)], "the log address of a used ring")
}

fn offset(bench: &mut Bench) -> Result {
    let mut session = ready(bench, &usual())?;
    let log = DirtyLog::new(covering(&session)?.size(), 0x1235)?;
    log_on(&session, &log)?;
    log.take();
    send(bench, &mut session)?;
    marked(&log, &[(session.tx(0).ring.layout().used, 4)], "a used ring, in a log at offset 0x1235,")
}

/// Without receive buffers, only used rings are written.
fn ring_off(bench: &mut Bench) -> Result {
    let mut session = ready(bench, &usual())?;
    let log = covering(&session)?;
    log_on(&session, &log)?;
    send(bench, &mut session)?;
    marked(&log, &[(session.tx(0).ring.layout().used, 4)], "a used ring")?;
    log_rings(&session, |_| None)?;
    log.take();
    send(bench, &mut session)?;
    none_marked(&log, "without VHOST_VRING_F_LOG")
}

/// Adds memory under logging, after a log that covers it, and receives a frame there.
fn grown(bench: &mut Bench, slots: bool) -> Result {
    let base = usual();
    let more = if slots { protocol::CONFIGURE_MEM_SLOTS } else { 0 };
    let mut session = ready(bench, &Setup { protocol: base.protocol | more, ..base })?;
    if session.protocol & more != more {
        return Err(Finding::NotOffered("VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS".to_owned()));
    }
    log_on(&session, &covering(&session)?)?;
    send(bench, &mut session)?;
    let added = GuestMemory::flat(0x4000_0000, 1 << 20)?;
    let log = DirtyLog::covering(added.end())?;
    session.frontend.set_log_base(&log)?;
    let old = &session.nic.mem;
    let (specs, files) = ([old.specs(), added.specs()].concat(), [old.fds(), added.fds()].concat());
    match slots {
        true => session.frontend.add_mem_reg(&added.specs()[0], added.fds()[0])?,
        false => session.frontend.tell(request::SET_MEM_TABLE, &mem_table(&specs), &files)?,
    }
    session.frontend.sync()?;
    for at in 0..BUFFERS {
        session.rx(0).submit(&[Part::into(0x4000_0000 + 2 * at * PAGE, 2048)])?;
    }
    session.rx(0).kick()?;
    let buffers = arrival(bench, &mut session, &added, 300)?;
    marked(&log, &buffers.concat(), "a frame in added memory")
}
