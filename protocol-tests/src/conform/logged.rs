//! The tools of the checks of live migration: a session whose back-end logs the pages it writes, and its log.
//! [`super::migration`] and [`super::marks`] use them.

use super::bench::{Bench, LIMIT, QUIET};
use super::{Finding, ensure};
use crate::daemon::poll_until;
use crate::dirty_log::{DirtyLog, PAGE, pages};
use crate::frame::{NET_HEADER_LEN, NetHeader};
use crate::memory::GuestMemory;
use crate::ring::Layout;
use crate::session::{Session, Setup};
use crate::wire::{feature, protocol};

type Result = std::result::Result<(), Finding>;

/// Pages beyond the memory that each log covers too.
const SPARE: u64 = 64;

/// A range of guest memory: address and length.
pub(super) type Range = (u64, u64);

/// The setup of a front-end that can log.
pub(super) fn usual() -> Setup {
    let base = Setup::default();
    Setup { protocol: base.protocol | protocol::LOG_SHMFD, ..base }
}

/// Like `usual`, with used rings of three pages: index on the first, the next elements on the second,
/// avail_event on the third.
pub(super) fn sized() -> Setup {
    Setup { size: 1024, start: 300, ..usual() }
}

pub(super) fn not_offered() -> Finding {
    Finding::NotOffered("VHOST_F_LOG_ALL and VHOST_USER_PROTOCOL_F_LOG_SHMFD".to_owned())
}

/// Returns an error unless the back-end can log.
pub(super) fn logs(session: &Session) -> Result {
    let offered = session.frontend.get_features()? & feature::LOG_ALL != 0;
    if offered && session.protocol & protocol::LOG_SHMFD != 0 { Ok(()) } else { Err(not_offered()) }
}

/// Starts a session with a back-end that can log, without receive buffers.
pub(super) fn ready(bench: &Bench, setup: &Setup) -> std::result::Result<Session, Finding> {
    let session = bench.started(setup)?;
    logs(&session)?;
    Ok(session)
}

/// Returns an empty log for all memory, and for some pages more.
pub(super) fn covering(session: &Session) -> std::io::Result<DirtyLog> {
    DirtyLog::covering(session.nic.mem.end() + SPARE * PAGE)
}

/// Starts logging with the messages and in the order of QEMU.
pub(super) fn log_on(session: &Session, log: &DirtyLog) -> Result {
    session.frontend.set_log_base(log)?;
    session.frontend.set_features(session.nic.features | feature::LOG_ALL)?;
    log_rings(session, |ring| Some(ring.used))
}

/// Stops logging.
pub(super) fn log_off(session: &Session) -> Result {
    session.frontend.set_features(session.nic.features)?;
    log_rings(session, |_| None)
}

/// Sets where the used rings are logged.
pub(super) fn log_rings(session: &Session, place: impl Fn(&Layout) -> Option<u64>) -> Result {
    for queue in &session.nic.queues {
        let ring = queue.ring.layout();
        session.frontend.set_vring_addr_logged(queue.vring, &session.nic.mem, &ring, place(&ring))?;
    }
    Ok(session.frontend.sync()?)
}

/// Sends a frame.
pub(super) fn send(bench: &mut Bench, session: &mut Session) -> Result {
    let frame = bench.frame(200);
    session.tx(0).send(&frame, LIMIT)?;
    Ok(())
}

/// Checks that all pages of these ranges become marked: a back-end may mark shortly after it publishes.
pub(super) fn marked(log: &DirtyLog, ranges: &[Range], what: &str) -> Result {
    for page in ranges.iter().flat_map(|(at, len)| pages(*at, *len)) {
        let there = poll_until(LIMIT, || log.has(page).then_some(()));
        ensure!(there.is_some(), "page {page:#x} of {what} is not marked, but {:x?}", log.marked());
    }
    Ok(())
}

/// Checks that no page becomes marked.
pub(super) fn none_marked(log: &DirtyLog, when: &str) -> Result {
    std::thread::sleep(QUIET);
    let marked = log.marked();
    ensure!(marked.is_empty(), "{when} the pages {marked:x?} were marked");
    Ok(())
}

/// Returns the next received frame, and for each of its buffers the written ranges.
fn next_frame(
    session: &mut Session,
    mem: &GuestMemory,
) -> std::result::Result<(Vec<u8>, Vec<Vec<Range>>), Finding> {
    let queue = session.rx(0);
    let (mut bytes, mut buffers) = (Vec::new(), Vec::new());
    let mut used = queue.used(LIMIT)?;
    loop {
        let (mut left, mut ranges) = (u64::from(used.len), Vec::new());
        for part in queue.parts(used) {
            let len = left.min(u64::from(part.len));
            bytes.extend(mem.read(part.addr, len as usize));
            ranges.push((part.addr, len));
            left -= len;
        }
        buffers.push(ranges);
        let header = bytes.first_chunk::<NET_HEADER_LEN>().map(NetHeader::decode);
        let header = header.ok_or_else(|| Finding::Fail(format!("{} bytes arrived", bytes.len())))?;
        if buffers.len() >= usize::from(header.num_buffers) {
            return Ok((bytes.split_off(NET_HEADER_LEN), buffers));
        }
        let next = queue.try_used()?;
        used = next.ok_or_else(|| Finding::Fail("merged buffers were not published together".to_owned()))?;
    }
}

/// Makes a frame of `len` bytes arrive and returns the written ranges of each of its buffers.
pub(super) fn arrival(
    bench: &mut Bench,
    session: &mut Session,
    mem: &GuestMemory,
    len: usize,
) -> std::result::Result<Vec<Vec<Range>>, Finding> {
    let frame = bench.frame(len);
    bench.inject(session, &frame)?;
    loop {
        // The host may have sent others; there are only so many buffers.
        let (bytes, buffers) = next_frame(session, mem)?;
        if bytes == frame {
            return Ok(buffers);
        }
    }
}
