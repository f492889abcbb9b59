//! The message orders of front-ends in use, event windows, and headers of received frames.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use super::bench::{Bench, LIMIT, PLAIN, QUIET};
use super::rings::{settle, wait_used};
use super::{Finding, checks, ensure};
use crate::frame::{NetHeader, checksum, gso, tcp, udp, uso_header};
use crate::frontend::{Frontend, mem_table};
use crate::nic::{Nic, eventfd};
use crate::session::{Session, Setup, negotiate, offer_vring};
use crate::wire::{feature, protocol, readable, request, words};

type Result = std::result::Result<(), Finding>;

checks! {
    "orders/qemu", Robust, Completion, "QEMU 7.2 to 11.1, measured",
        "Vring 0 is enabled before SET_FEATURES, rings before they exist; rings stop by ENABLE 0 and \
         GET_VRING_BASE, and start again.", qemu;
    "orders/cloud-hypervisor", Robust, Completion, "Cloud Hypervisor's sources",
        "Kicks are written before ENABLE, and not repeated for frames offered before; a reconnect sends the \
         used index as base.", cloud_hypervisor;
    "orders/uml", Robust, Completion, "User-mode Linux 6.1 and 7.2, measured",
        "Every message without a reply asks for an answer, also the one that acknowledges REPLY_ACK; calls \
         go to a socket pair, the memory table has room for two regions, rings stop by ENABLE 0 alone.", uml;
    "orders/dpdk", Robust, Completion, "DPDK virtio-user's sources",
        "ENABLE comes before SET_FEATURES; base 0 before the addresses, also for used rings.", dpdk;
    "rings/event-windows", Must, Completion, "virtio 1.2, 2.7.7.2",
        "The driver is called when the used index passes used_event, across 65,535.",
        |b| event_windows(b, true);
    "rings/event-windows-quiet", Robust, Completion, "virtio 1.2, 2.7.7.2 (SHOULD NOT)",
        "The driver is not called when the used index does not pass used_event, across 65,535.",
        |b| event_windows(b, false);
    "rings/headers-not-stale", Must, Frames, "virtio 1.2, 5.1.6.4.1",
        "After a driver has acknowledged fewer receive offloads, no frame carries a mark of a dropped one, \
         nor lacks the work that a mark stood for.", not_stale;
}

fn running(
    bench: &mut Bench,
    frontend: Frontend,
    nic: Nic,
    fresh: bool,
) -> std::result::Result<Session, Finding> {
    let mut session = Session { frontend, nic, protocol: 0 };
    if fresh {
        session.rx(0).fill(32, &[2048])?;
    }
    bench.both_ways(&mut session, 20)?;
    Ok(session)
}

fn qemu(bench: &mut Bench) -> Result {
    let mut frontend = bench.connect()?;
    let offered = frontend.get_features()?;
    let offered_protocol = frontend.get_protocol_features()?;
    let both = offered_protocol & (protocol::MQ | protocol::REPLY_ACK);
    if both & protocol::REPLY_ACK == 0 {
        return Err(Finding::NotOffered("REPLY_ACK".to_owned()));
    }
    let backend_req = offered_protocol & protocol::BACKEND_REQ;
    frontend.set_protocol_features(both | backend_req)?;
    frontend.set_owner()?;
    let (mine, theirs) = UnixStream::pair()?;
    if backend_req != 0 {
        frontend.want_replies(true);
        frontend.set_backend_req_fd(theirs)?;
        frontend.want_replies(false);
    }
    let features = offered & Setup::default().features;
    let mut nic = Setup::default().nic(features)?;
    for queue in &nic.queues {
        frontend.set_vring_fd(request::SET_VRING_CALL, queue.vring, Some(&queue.call))?;
        frontend.set_vring_fd(request::SET_VRING_ERR, queue.vring, Some(&eventfd()?))?;
    }
    let status = frontend.tell_acked(request::SET_VRING_ENABLE, &words(&[0, 1]), &[])?;
    ensure!(status == 0, "the enable before SET_FEATURES is answered by {status}");
    for round in 0..2 {
        frontend.want_replies(false);
        frontend.set_features(features)?;
        frontend.want_replies(true);
        frontend.set_mem_table(&nic.mem)?;
        for queue in &nic.queues {
            frontend.set_vring_enable(queue.vring, true)?;
        }
        for queue in &nic.queues {
            offer_vring(&frontend, &nic.mem, queue, queue.ring.used_idx())?;
        }
        let session = running(bench, frontend, nic, true)?;
        (frontend, nic) = (session.frontend, session.nic);
        for vring in 0..2 {
            frontend.set_vring_enable(vring, false)?;
            let (base, used) = (frontend.get_vring_base(vring)?, nic.queues[vring as usize].ring.used_idx());
            ensure!(
                base == u32::from(used),
                "round {round}: vring {vring} stopped at {base}, used.idx {used}"
            );
        }
        nic = Setup::default().nic(features)?;
    }
    drop(mine);
    Ok(())
}

fn cloud_hypervisor(bench: &mut Bench) -> Result {
    let mut nic = None;
    for _ in 0..3 {
        let mut frontend = bench.connect()?;
        let want = protocol::MQ | protocol::REPLY_ACK | protocol::CONFIG;
        let (features, _) = negotiate(&mut frontend, Setup::default().features | feature::IN_ORDER, want)?;
        let fresh = nic.is_none();
        let mut card = match nic.take() {
            Some(card) => card,
            None => Setup::default().nic(features)?,
        };
        frontend.set_mem_table(&card.mem)?;
        for queue in &card.queues {
            let (vring, layout) = (queue.vring, queue.ring.layout());
            frontend.set_vring_num(vring, layout.size.into())?;
            frontend.set_vring_addr(vring, &card.mem, &layout)?;
            frontend.set_vring_base(vring, queue.ring.used_idx().into())?;
            frontend.set_vring_fd(request::SET_VRING_CALL, vring, Some(&queue.call))?;
            frontend.set_vring_fd(request::SET_VRING_KICK, vring, Some(&queue.kick))?;
        }
        if !fresh {
            let frame = bench.frame(100);
            card.tx(0).offer(&PLAIN, &frame, &[])?;
        }
        for queue in &mut card.queues {
            queue.kick_always()?;
        }
        for vring in 0..2 {
            frontend.set_vring_enable(vring, true)?;
        }
        let mut session = Session { frontend, nic: card, protocol: 0 };
        if !fresh {
            session.tx(0).used(LIMIT)?;
            while bench.sees_frames() && bench.leaves(&mut session, QUIET / 4)?.is_some() {}
        }
        nic = Some(running(bench, session.frontend, session.nic, fresh)?.nic);
    }
    Ok(())
}

fn uml(bench: &mut Bench) -> Result {
    let mut frontend = bench.connect()?;
    frontend.set_owner()?;
    let features = frontend.get_features()? & Setup::default().features;
    let wanted = protocol::REPLY_ACK | protocol::BACKEND_REQ | protocol::CONFIG;
    let both = frontend.get_protocol_features()? & wanted;
    frontend.want_replies(both & protocol::REPLY_ACK != 0);
    frontend.set_protocol_features(both)?;
    let (_requests, theirs) = UnixStream::pair()?;
    if both & protocol::BACKEND_REQ != 0 {
        frontend.set_backend_req_fd(theirs)?;
    }
    if both & protocol::CONFIG != 0 {
        // The preceding bytes are read too.
        for len in 1..=6 {
            frontend.get_config(0, len)?;
        }
    }
    frontend.set_features(features)?;
    let mut nic = Setup::default().nic(features)?;
    let mut body = mem_table(&nic.mem.specs());
    body.resize(8 + 2 * 32, 0);
    frontend.tell(request::SET_MEM_TABLE, &body, &nic.mem.fds())?;
    for queue in &mut nic.queues {
        let (mine, theirs) = UnixStream::pair()?;
        mine.set_nonblocking(true)?;
        queue.call = OwnedFd::from(mine);
        offer_vring(&frontend, &nic.mem, queue, 0)?;
        frontend.set_vring_fd(request::SET_VRING_CALL, queue.vring, Some(&theirs))?;
        frontend.set_vring_enable(queue.vring, true)?;
    }
    let session = running(bench, frontend, nic, true)?;
    for vring in 0..2 {
        session.frontend.set_vring_enable(vring, false)?;
    }
    Ok(session.frontend.sync()?)
}

fn dpdk(bench: &mut Bench) -> Result {
    let mut nic = None;
    for connection in 1..=3u16 {
        let mut frontend = bench.connect()?;
        frontend.set_owner()?;
        let features = frontend.get_features()? & Setup::default().features;
        let both = frontend.get_protocol_features()? & (protocol::MQ | protocol::REPLY_ACK);
        frontend.set_protocol_features(both)?;
        let fresh = nic.is_none();
        let card = match nic.take() {
            Some(card) => card,
            None => Setup::default().nic(features)?,
        };
        for vring in 0..2 {
            frontend.set_vring_enable(vring, true)?;
        }
        for queue in &card.queues {
            frontend.set_vring_fd(request::SET_VRING_CALL, queue.vring, Some(&queue.call))?;
        }
        frontend.set_features(features)?;
        // The only message that asks for an answer.
        frontend.want_replies(both & protocol::REPLY_ACK != 0);
        frontend.set_mem_table(&card.mem)?;
        frontend.want_replies(false);
        for queue in &card.queues {
            frontend.set_vring_num(queue.vring, queue.ring.layout().size.into())?;
            frontend.set_vring_base(queue.vring, 0)?;
            frontend.set_vring_addr(queue.vring, &card.mem, &queue.ring.layout())?;
            frontend.set_vring_fd(request::SET_VRING_KICK, queue.vring, Some(&queue.kick))?;
        }
        let before = card.queues[1].ring.used_idx();
        let mut session = running(bench, frontend, card, fresh)?;
        let used = session.tx(0).ring.used_idx();
        ensure!(used > before, "connection {connection}: used.idx went from {before} to {used}");
        nic = Some(session.nic);
    }
    Ok(())
}

/// With `used_event` inside the batch, or before and after it.
fn event_windows(bench: &mut Bench, inside: bool) -> Result {
    const BATCH: u16 = 5;
    for off in (-3i16..8).filter(|off| (0..BATCH as i16).contains(off) == inside) {
        let setup = Setup { start: 65_531, size: 16, ..Setup::default() };
        let mut session = bench.started(&setup)?;
        Bench::offered(&session, feature::EVENT_IDX, "VIRTIO_F_EVENT_IDX")?;
        settle(bench, &mut session)?;
        // The used index wraps within the batch.
        let queue = session.tx(0);
        let start = queue.ring.used_idx();
        let event = start.wrapping_add_signed(off);
        queue.ring.set_used_event(event);
        for _ in 0..BATCH {
            let frame = bench.frame(70);
            queue.offer(&PLAIN, &frame, &[])?;
        }
        queue.kick()?;
        wait_used(&mut session)?;
        let called = readable(&session.tx(0).call, if inside { LIMIT } else { QUIET / 4 })?;
        ensure!(called == inside, "used_event {event}, used.idx from {start} on by {BATCH}: called {called}");
    }
    Ok(())
}

/// Marked frames wait for receive buffers before the change: these are the frames that could keep their
/// marks.
fn not_stale(bench: &mut Bench) -> Result {
    let receive = feature::GUEST_CSUM | feature::GUEST_TSO4 | feature::GUEST_TSO6;
    let base = Setup::default();
    let features = base.features | feature::CSUM | feature::HOST_TSO4 | receive;
    let mut session = Session::start(bench.connect()?, &Setup { features, ..base.clone() })?;
    if session.nic.features & feature::GUEST_CSUM == 0 {
        return Err(Finding::NotOffered("VIRTIO_NET_F_GUEST_CSUM".to_owned()));
    }
    let unfinished = udp((1, 1111), (2, 2222), &[0x5a; 700]);
    let header = NetHeader { gso_type: gso::NONE, hdr_len: 0, gso_size: 0, ..uso_header(0) };
    bench.inject_with(&mut session, &header, &unfinished)?;
    if session.nic.features & feature::GUEST_TSO4 != 0 {
        let (frame, start) = tcp(false, false, &[0x5a; 4000]);
        let segments = NetHeader { gso_type: gso::TCPV4, hdr_len: start + 20, gso_size: 1000, ..header };
        let header = NetHeader { csum_start: start, csum_offset: 16, ..segments };
        bench.inject_with(&mut session, &header, &frame)?;
    }
    let features = session.nic.features & !receive;
    let frontend = session.frontend;
    for vring in 0..2 {
        frontend.get_vring_base(vring)?;
    }
    frontend.set_features(features)?;
    let nic = base.nic(features)?;
    frontend.set_mem_table(&nic.mem)?;
    for queue in &nic.queues {
        offer_vring(&frontend, &nic.mem, queue, 0)?;
        frontend.set_vring_enable(queue.vring, true)?;
    }
    let mut session = Session { frontend, nic, protocol: 0 };
    session.rx(0).fill(8, &[2048])?;
    for len in [60, 1000] {
        let frame = bench.frame(len);
        bench.inject(&mut session, &frame)?;
        loop {
            let got = session.rx(0).recv(LIMIT)?;
            let (header, whole) = (got.header, finished(&unfinished));
            let clean = (header.flags, header.gso_type) == (0, 0);
            ensure!(clean, "a driver without receive offloads gets {header:?}");
            let left = got.bytes.len() == whole.len() && got.bytes[..40] == whole[..40] && got.bytes != whole;
            ensure!(!left, "a driver without receive offloads gets a frame without its checksum");
            if got.bytes == frame {
                break;
            }
        }
    }
    Ok(())
}

/// Completes the checksum of a [`udp`] frame.
fn finished(frame: &[u8]) -> Vec<u8> {
    let mut whole = frame.to_vec();
    whole[40..42].copy_from_slice(&checksum(&frame[34..], 0).to_be_bytes());
    whole
}
