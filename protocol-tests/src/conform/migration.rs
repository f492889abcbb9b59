//! Live migration: the messages that begin, change and end the log of written pages, invalid logs, the end of
//! a migration, announcements. [`super::marks`] checks what is marked.

use super::bench::{Bench, PLAIN, QUIET};
use super::logged::{
    arrival, covering, log_off, log_on, log_rings, marked, none_marked, not_offered, ready, send, usual,
};
use super::{Finding, checks, ensure};
use crate::dirty_log::DirtyLog;
use crate::frontend::Frontend;
use crate::memory::{GuestMemory, RegionSpec};
use crate::nic::Queue;
use crate::session::{Session, Setup, negotiate, offer_vring};
use crate::wire::{Message, WireError, feature, flags, longs, protocol, request};

type Result = std::result::Result<(), Finding>;

checks! {
    "migration/log-offered-together", Robust, Control, "QEMU migrates with both of them only",
        "VHOST_F_LOG_ALL and VHOST_USER_PROTOCOL_F_LOG_SHMFD are offered together.", together;
    "migration/log-base-replies", Must, Control, "vhost-user, Communication",
        "SET_LOG_BASE is answered without NEED_REPLY.", |b| log_base(b, |_, _| Ok(()));
    "migration/log-base-echo", Robust, Control, "the crate vhost reads a log description",
        "The reply to SET_LOG_BASE repeats its size and offset.", |b| log_base(b, echoed);
    "migration/log-base-one-reply", Must, Control, "vhost-user, VHOST_USER_PROTOCOL_F_REPLY_ACK",
        "SET_LOG_BASE with NEED_REPLY is answered once.", one_reply;
    "migration/log-base-reply-flags", Robust, Control,
        "vhost-user, Header; Cloud Hypervisor's destination does not send GET_PROTOCOL_FEATURES",
        "The reply to SET_LOG_BASE has version 1 and the reply flag, also if the front-end did not ask for \
         protocol features before it set them.", reply_flags;
    "migration/too-small", Robust, Control, "vhost-user, Migration (the log covers all guest addresses)",
        "A log too small for the memory table is refused.", too_small;
    "migration/no-descriptor", Robust, Control, "vhost-user, Communication (descriptor of SET_LOG_BASE)",
        "A log without a descriptor is refused.", |b| {
            let log = DirtyLog::covering(END)?;
            refused(b, |frontend| frontend.ask(request::SET_LOG_BASE, &log.body(), &[]))
        };
    "migration/log-beyond-file", Robust, Control, "robustness (SIGBUS)",
        "A log that exceeds its file, or the address space, is refused.", beyond_file;
    "migration/log-replaced", Must, Completion, "vhost-user, SET_LOG_BASE; QEMU sends a larger one",
        "A second SET_LOG_BASE replaces the log.", replaced;
    "migration/log-late", Must, Completion, "vhost-user, SET_LOG_BASE; QEMU starts so during a migration",
        "LOG_ALL is accepted before the log comes, and writes are marked once it has come.", late;
    "migration/off-again", Must, Frames, "vhost-user, Migration (to start/stop logging)",
        "When logging stops, nothing is marked, and the rings run on.", off_again;
    "migration/on-again", Must, Completion, "vhost-user, Migration (to start/stop logging)",
        "Logging can start again, in another log.", on_again;
    "migration/base-quiet", Must, Completion, "vhost-user, Migration (no further update) and GET_VRING_BASE",
        "After GET_VRING_BASE nothing is written, marked or called.", base_quiet;
    "migration/rarp", Must, Frames, "vhost-user, SEND_RARP",
        "SEND_RARP succeeds, and a broadcast RARP frame of that MAC leaves.", rarp;
    "migration/gpa-addresses", Must, Completion,
        "vhost-user, A vring address description (GPA_ADDRESSES) and Memory region description",
        "With VHOST_USER_PROTOCOL_F_GPA_ADDRESSES rings at guest addresses run, also at address 0.", gpa;
}

/// End of the memory of the checks that have no rings.
const END: u64 = 0x20_1000;

/// Sends a frame, whose used index must be marked.
fn send_marked(bench: &mut Bench, session: &mut Session, log: &DirtyLog) -> Result {
    send(bench, session)?;
    marked(log, &[(session.tx(0).ring.layout().used, 4)], "a used ring")
}

fn together(bench: &mut Bench) -> Result {
    let frontend = bench.negotiated(0)?;
    let features = frontend.get_features()?;
    let protocol = match features & feature::PROTOCOL_FEATURES {
        0 => 0,
        _ => frontend.get_protocol_features()?,
    };
    match (features & feature::LOG_ALL != 0, protocol & protocol::LOG_SHMFD != 0) {
        (true, true) => Ok(()),
        (false, false) => Err(not_offered()),
        _ => Err(Finding::Fail(format!("features {features:#x}, protocol features {protocol:#x}"))),
    }
}

/// Shares memory that ends at `END`, and returns it: the back-end may map it later.
fn share(frontend: &Frontend) -> std::result::Result<GuestMemory, Finding> {
    let mem = GuestMemory::flat(0, END)?;
    frontend.set_mem_table(&mem)?;
    Ok(mem)
}

fn log_base(bench: &mut Bench, judge: fn(&Message, &DirtyLog) -> Result) -> Result {
    let frontend = bench.negotiated(protocol::LOG_SHMFD)?;
    let (_mem, log) = (share(&frontend)?, DirtyLog::covering(END)?);
    judge(&frontend.set_log_base(&log)?, &log)
}

fn echoed(reply: &Message, log: &DirtyLog) -> Result {
    ensure!(reply.body == log.body(), "the reply's body is {:02x?}, not {:02x?}", reply.body, log.body());
    Ok(())
}

fn one_reply(bench: &mut Bench) -> Result {
    let mut frontend = bench.negotiated(protocol::LOG_SHMFD | protocol::REPLY_ACK)?;
    let (_mem, log) = (share(&frontend)?, DirtyLog::covering(END)?);
    frontend.channel().send(request::SET_LOG_BASE, flags::NEED_REPLY, &log.body(), &[log.file()])?;
    frontend.channel().recv_reply(request::SET_LOG_BASE)?;
    // Another reply would come before this one.
    Ok(frontend.sync()?)
}

fn reply_flags(bench: &mut Bench) -> Result {
    let wanted = protocol::LOG_SHMFD | protocol::REPLY_ACK;
    drop(bench.negotiated(wanted)?);
    let mut frontend = bench.connect()?;
    frontend.set_owner()?;
    let features = frontend.get_features()? & (Setup::default().features | feature::LOG_ALL);
    frontend.set_protocol_features(wanted)?;
    frontend.set_features(features)?;
    let (_mem, log) = (share(&frontend)?, DirtyLog::covering(END)?);
    frontend.channel().send(request::SET_LOG_BASE, 0, &log.body(), &[log.file()])?;
    let reply = frontend.channel().recv()?;
    let right = reply.request == request::SET_LOG_BASE && reply.flags == flags::VERSION | flags::REPLY;
    if right { Ok(()) } else { Err(reply.unexpected("the reply to SET_LOG_BASE, with flags 0x5").into()) }
}

/// Sends a SET_LOG_BASE that must be refused: by a status other than 0, or by the end of the connection.
fn refused(bench: &mut Bench, ask: impl Fn(&Frontend) -> std::result::Result<Message, WireError>) -> Result {
    let frontend = bench.negotiated(protocol::LOG_SHMFD)?;
    let _mem = share(&frontend)?;
    match ask(&frontend) {
        Err(WireError::Closed(_)) => {}
        Err(error) => return Err(error.into()),
        Ok(reply) if reply.u64().is_ok_and(|status| status != 0) => {}
        Ok(reply) => return Err(reply.unexpected("a refusal of the log").into()),
    }
    drop(frontend);
    bench.serves()
}

/// A log for almost nothing, and one that lacks a single page.
fn too_small(bench: &mut Bench) -> Result {
    for size in [8, 64] {
        let log = DirtyLog::new(size, 0)?;
        refused(bench, |frontend| frontend.set_log_base(&log))?;
    }
    Ok(())
}

fn beyond_file(bench: &mut Bench) -> Result {
    let log = DirtyLog::covering(END)?;
    let size = log.size();
    for body in [[2 * size, 0], [size, 8], [size, 1 << 40], [size, u64::MAX - 7], [u64::MAX, size]] {
        let ask = |frontend: &Frontend| frontend.ask(request::SET_LOG_BASE, &longs(&body), &[log.file()]);
        refused(bench, ask)?;
    }
    Ok(())
}

fn replaced(bench: &mut Bench) -> Result {
    let mut session = ready(bench, &usual())?;
    let [first, second] = [covering(&session)?, covering(&session)?];
    log_on(&session, &first)?;
    send_marked(bench, &mut session, &first)?;
    session.frontend.set_log_base(&second)?;
    first.take();
    send_marked(bench, &mut session, &second)?;
    none_marked(&first, "in a replaced log")
}

fn late(bench: &mut Bench) -> Result {
    let base = usual();
    let setup = Setup { features: base.features | feature::LOG_ALL, ..base };
    let mut frontend = bench.connect()?;
    let (features, protocol) = negotiate(&mut frontend, setup.features, setup.protocol)?;
    if features & feature::LOG_ALL == 0 || protocol & protocol::LOG_SHMFD == 0 {
        return Err(not_offered());
    }
    let nic = setup.nic(features).map_err(Finding::from)?;
    frontend.set_mem_table(&nic.mem)?;
    for queue in &nic.queues {
        offer_vring(&frontend, &nic.mem, queue, 0)?;
    }
    let mut session = Session { frontend, nic, protocol };
    log_rings(&session, |ring| Some(ring.used))?;
    for vring in 0..2 {
        session.frontend.set_vring_enable(vring, true)?;
    }
    // A back-end may leave the rings alone until then.
    session.nic.queues.iter_mut().try_for_each(Queue::kick_always)?;
    let log = covering(&session)?;
    session.frontend.set_log_base(&log)?;
    send_marked(bench, &mut session, &log)
}

fn off_again(bench: &mut Bench) -> Result {
    let mut session = ready(bench, &usual())?;
    session.rx(0).fill(32, &[2048])?;
    let (log, mem) = (covering(&session)?, session.nic.mem.clone());
    log_on(&session, &log)?;
    let buffers = arrival(bench, &mut session, &mem, 200)?;
    marked(&log, &buffers.concat(), "a received frame")?;
    marked(&log, &[(session.rx(0).ring.layout().used, 4)], "its used ring")?;
    send_marked(bench, &mut session, &log)?;
    log_off(&session)?;
    log.take();
    arrival(bench, &mut session, &mem, 200)?;
    send(bench, &mut session)?;
    none_marked(&log, "without LOG_ALL")
}

fn on_again(bench: &mut Bench) -> Result {
    let mut session = ready(bench, &usual())?;
    for _ in 0..3 {
        let log = covering(&session)?;
        log_on(&session, &log)?;
        send_marked(bench, &mut session, &log)?;
        log_off(&session)?;
        send(bench, &mut session)?;
    }
    Ok(())
}

/// Returns what a back-end may write: the used rings, and the first receive buffers.
fn writable(session: &Session) -> Vec<Vec<u8>> {
    let place = |queue: &Queue| {
        let ring = queue.ring.layout();
        let buffers = if queue.vring == 0 { 128 << 10 } else { 0 };
        session.nic.mem.read(ring.used, (ring.end() - ring.used + buffers) as usize)
    };
    session.nic.queues.iter().map(place).collect()
}

fn base_quiet(bench: &mut Bench) -> Result {
    let mut session = ready(bench, &usual())?;
    session.rx(0).fill(32, &[2048])?;
    let log = covering(&session)?;
    log_on(&session, &log)?;
    send(bench, &mut session)?;
    for vring in 0..2 {
        session.frontend.get_vring_base(vring)?;
    }
    log.take();
    let before = writable(&session);
    for queue in &mut session.nic.queues {
        queue.drain_call();
    }
    let frame = bench.frame(200);
    session.tx(0).offer(&PLAIN, &frame, &[])?;
    session.nic.queues.iter_mut().try_for_each(Queue::kick_always)?;
    if bench.has_wire() {
        bench.inject(&mut session, &frame)?;
    }
    std::thread::sleep(QUIET);
    ensure!(writable(&session) == before, "a stopped ring or its buffers were written");
    let calls: u64 = session.nic.queues.iter_mut().map(Queue::drain_call).sum();
    ensure!(calls == 0, "{calls} calls of stopped rings");
    none_marked(&log, "stopped,")
}

fn rarp(bench: &mut Bench) -> Result {
    const MAC: [u8; 6] = [0x02, 0xaa, 0xbb, 0xcc, 0xdd, 0xee];
    let base = Setup::default();
    let mut session = bench.session(&Setup { protocol: base.protocol | protocol::RARP, ..base })?;
    if session.protocol & protocol::RARP == 0 {
        return Err(Finding::NotOffered("VHOST_USER_PROTOCOL_F_RARP".to_owned()));
    }
    session.frontend.send_rarp(MAC)?;
    let is_rarp = |frame: &[u8]| frame.get(12..14) == Some(&[0x80, 0x35]);
    let frame = bench.leaves_such(&mut session, is_rarp)?;
    let frame = frame.ok_or_else(|| Finding::Fail("no RARP frame left".to_owned()))?;
    ensure!(frame[..6] == [0xff; 6], "the RARP frame is not for all: {frame:02x?}");
    ensure!(frame[6..12] == MAC, "the RARP frame is not from {MAC:02x?}: {frame:02x?}");
    bench.both_ways(&mut session, 2)
}

/// User addresses are guest addresses too, as QEMU sends them. Memory, and the first ring, begin at 0.
fn gpa(bench: &mut Bench) -> Result {
    let base = Setup::default();
    let setup = Setup {
        protocol: base.protocol | protocol::GPA_ADDRESSES,
        regions: vec![RegionSpec { guest: 0, size: 64 << 20, user: 0, offset: 0 }],
        ..base
    };
    drop(bench.negotiated(protocol::GPA_ADDRESSES)?);
    let mut session = bench.session(&setup)?;
    bench.both_ways(&mut session, 3)
}
