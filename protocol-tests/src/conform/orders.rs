//! The orders of messages that front-ends in use have, by their names; event windows; headers of what is received.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use super::bench::{Bench, LIMIT, PLAIN, QUIET};
use super::{Finding, checks, ensure};
use crate::frame::{NetHeader, checksum, gso, tcp, udp, uso_header};
use crate::frontend::{Frontend, mem_table};
use crate::nic::{Nic, eventfd};
use crate::session::{Session, Setup, negotiate, offer_vring};
use crate::wire::{feature, protocol, readable, request, words};

type Result = std::result::Result<(), Finding>;

checks! {
    "orders/qemu", Robust, Completion, "QEMU 7.2 to 11.1, measured",
        "Vring 0 is enabled before SET_FEATURES, rings before they are there; stopped by ENABLE 0 and GET_VRING_BASE, and again.",
        qemu;
    "orders/cloud-hypervisor", Robust, Completion, "Cloud Hypervisor's sources",
        "Kicks are written before ENABLE; a reconnect names the used index.", cloud_hypervisor;
    "orders/uml", Robust, Completion, "User-mode Linux 7.2, measured",
        "Calls go to a socket pair, the memory table has room for two regions, rings stop by ENABLE 0 alone.", uml;
    "orders/dpdk", Robust, Completion, "DPDK virtio-user's sources",
        "ENABLE comes before SET_FEATURES, base 0 before the addresses, also for rings that have run.", dpdk;
    "rings/event-windows", Must, Completion, "virtio 1.2, 2.7.7.2",
        "The driver is called when the used index passes used_event and not else, across 65,535.", event_windows;
    "rings/headers-not-stale", Must, Frames, "virtio 1.2, 5.1.6.4.1",
        "After a driver has acknowledged fewer receive offloads, no frame carries a mark of the others, nor lacks what it stood for.",
        not_stale;
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
    let both = frontend.get_protocol_features()? & (protocol::MQ | protocol::REPLY_ACK);
    if both & protocol::REPLY_ACK == 0 {
        return Err(Finding::NotOffered("REPLY_ACK".to_owned()));
    }
    frontend.set_protocol_features(both)?;
    frontend.set_owner()?;
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
        for queue in &mut card.queues {
            queue.kick_always()?;
        }
        for vring in 0..2 {
            frontend.set_vring_enable(vring, true)?;
        }
        nic = Some(running(bench, frontend, card, fresh)?.nic);
    }
    Ok(())
}

fn uml(bench: &mut Bench) -> Result {
    let mut frontend = bench.connect()?;
    let (features, _) = negotiate(&mut frontend, Setup::default().features, protocol::REPLY_ACK)?;
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
        let frontend = bench.connect()?;
        frontend.set_owner()?;
        let features = frontend.get_features()? & Setup::default().features;
        let both = frontend.get_protocol_features()? & protocol::MQ;
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
        frontend.set_mem_table(&card.mem)?;
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

fn event_windows(bench: &mut Bench) -> Result {
    const BATCH: u16 = 5;
    for off in -3i16..8 {
        // The used index wraps within the batch, and the event is before, in and behind it.
        let start = 65_533u16;
        let mut session = Session::start(bench.connect()?, &Setup { start, size: 16, ..Setup::default() })?;
        Bench::offered(&session, feature::EVENT_IDX, "VIRTIO_F_EVENT_IDX")?;
        let queue = session.tx(0);
        // A ring that starts may call once for nothing.
        std::thread::sleep(QUIET / 8);
        let event = start.wrapping_add_signed(off);
        queue.ring.set_used_event(event);
        queue.drain_call();
        for _ in 0..BATCH {
            let frame = bench.frame(70);
            queue.offer(&PLAIN, &frame, &[])?;
        }
        queue.kick()?;
        let end = start.wrapping_add(BATCH);
        let done = crate::daemon::poll_until(LIMIT, || (queue.ring.used_idx() == end).then_some(()));
        ensure!(done.is_some(), "used.idx is {}, not {end}", queue.ring.used_idx());
        let called = readable(&queue.call, QUIET / 4)?;
        let wanted = (0..BATCH as i16).contains(&off);
        ensure!(called == wanted, "used_event {event}, used.idx from {start} to {end}: called {called}");
    }
    Ok(())
}

/// Frames with marks are made to wait before the change, as the receive ring has no buffers: they are the ones that may come
/// with them.
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

/// A [`udp`] frame with its checksum.
fn finished(frame: &[u8]) -> Vec<u8> {
    let mut whole = frame.to_vec();
    whole[40..42].copy_from_slice(&checksum(&frame[34..], 0).to_be_bytes());
    whole
}
