//! A front-end on `vhost`'s `Frontend`, with the scripted front-end's guest.
#![expect(unsafe_code, reason = "vhost takes eventfds in a type that is only made of raw descriptors")]

use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures as Protocol};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserDirtyLogRegion, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::EventFd;

use super::{ANSWER, RETRY, Scripted};
use crate::dirty_log::DirtyLog;
use crate::frontend::{Frontend as ScriptedFrontend, VRING_F_LOG};
use crate::nic::{Nic, Queue};
use crate::session::{SessionError, Setup};
use crate::wire::{WireError, feature};

/// Echoes, and reconnects to its back-end at `path` for ever.
///
/// # Errors
///
/// Returns an error if the system provides no memory or descriptor.
pub fn serve(path: &Path) -> Result<(), SessionError> {
    let mut nic: Option<(Nic, u64)> = None;
    loop {
        if let Ok(socket) = UnixStream::connect(path) {
            let end = socket.try_clone().map_err(WireError::from)?;
            // The crate sets no time limits.
            end.set_read_timeout(Some(ANSWER)).map_err(WireError::from)?;
            if let Err(error) = meet(&mut nic, socket, end) {
                eprintln!("{error}");
            }
        }
        std::thread::sleep(RETRY);
    }
}

fn meet(
    card: &mut Option<(Nic, u64)>,
    socket: UnixStream,
    end: UnixStream,
) -> Result<(), Box<dyn std::error::Error>> {
    let mut frontend = Frontend::from_stream(socket, 2);
    frontend.set_owner()?;
    let offered = frontend.get_features()?;
    let wanted = feature::VERSION_1 | feature::PROTOCOL_FEATURES | feature::EVENT_IDX;
    let acked = card.as_ref().map_or(offered & wanted, |(_, acked)| *acked);
    if acked & !offered != 0 {
        return Err("features are missing".into());
    }
    if acked & feature::PROTOCOL_FEATURES != 0 {
        let both = frontend.get_protocol_features()? & (Protocol::REPLY_ACK | Protocol::MQ);
        frontend.set_protocol_features(both)?;
        if both.contains(Protocol::REPLY_ACK) {
            frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
    }
    frontend.set_features(acked)?;
    let nic = match card {
        Some((nic, _)) => nic,
        None => {
            let mut nic = Setup { size: 16, ..Setup::default() }.nic(acked)?;
            nic.rx(0).fill(16, &[2048])?;
            &mut card.insert((nic, acked)).0
        }
    };
    describe(&mut frontend, nic)?;
    nic.queues.iter_mut().try_for_each(Queue::kick_always)?;
    let mut scripted = Scripted { nic: card.take().expect("set above").0, acked };
    let result = scripted.echo(&mut ScriptedFrontend::new(end.try_clone()?), None, None);
    *card = Some((scripted.nic, acked));
    Ok(result?)
}

/// A card whose pages a back-end logs.
pub struct Logged {
    /// The connection, which ends with it.
    pub frontend: Frontend,
    /// The card, with receive buffers.
    pub nic: Nic,
    /// The log.
    pub log: DirtyLog,
}

/// Connects to a back-end, and switches logging on as a migration does, by the crate's requests.
///
/// # Errors
///
/// Returns an error if the back-end refuses one of the messages, or does not answer.
pub fn logged(path: &Path) -> Result<Logged, Box<dyn std::error::Error>> {
    let socket = UnixStream::connect(path)?;
    // The crate sets no time limits.
    socket.set_read_timeout(Some(ANSWER))?;
    let mut frontend = Frontend::from_stream(socket, 2);
    frontend.set_owner()?;
    let features = frontend.get_features()? & (Setup::default().features & !feature::MRG_RXBUF);
    let both = frontend.get_protocol_features()? & (Protocol::MQ | Protocol::REPLY_ACK | Protocol::LOG_SHMFD);
    frontend.set_protocol_features(both)?;
    frontend.set_features(features)?;
    let mut nic = Setup { size: 16, ..Setup::default() }.nic(features)?;
    nic.rx(0).fill(8, &[2048])?;
    describe(&mut frontend, &nic)?;
    let log = DirtyLog::new(1 << 12, 0)?;
    let mmap_handle = log.file().as_raw_fd();
    let region = VhostUserDirtyLogRegion { mmap_size: log.size(), mmap_offset: 0, mmap_handle };
    frontend.set_log_base(0, Some(region))?;
    frontend.set_features(features | feature::LOG_ALL)?;
    for queue in &nic.queues {
        frontend.set_vring_addr(queue.vring as usize, &addresses(&nic, queue, true))?;
    }
    Ok(Logged { frontend, nic, log })
}

/// Describes a scripted card to `frontend`: its memory, and its rings from their current indices.
///
/// # Errors
///
/// Returns an error if the back-end refuses one of the messages.
pub fn describe(frontend: &mut Frontend, nic: &Nic) -> Result<(), Box<dyn std::error::Error>> {
    let fds = nic.mem.fds();
    let regions: Vec<VhostUserMemoryRegionInfo> = nic
        .mem
        .specs()
        .iter()
        .zip(&fds)
        .map(|(spec, fd)| VhostUserMemoryRegionInfo {
            guest_phys_addr: spec.guest,
            memory_size: spec.size,
            userspace_addr: spec.user,
            mmap_offset: spec.offset,
            mmap_handle: fd.as_raw_fd(),
        })
        .collect();
    frontend.set_mem_table(&regions)?;
    // SAFETY: into_raw_fd gives the clone away, so that the EventFd is its only owner.
    let eventfd = |fd: &OwnedFd| fd.try_clone().map(|fd| unsafe { EventFd::from_raw_fd(fd.into_raw_fd()) });
    for queue in &nic.queues {
        let (index, layout) = (queue.vring as usize, queue.ring.layout());
        frontend.set_vring_num(index, layout.size)?;
        frontend.set_vring_base(index, queue.ring.used_idx())?;
        frontend.set_vring_addr(index, &addresses(nic, queue, false))?;
        frontend.set_vring_call(index, &eventfd(&queue.call)?)?;
        frontend.set_vring_kick(index, &eventfd(&queue.kick)?)?;
        if nic.features & feature::PROTOCOL_FEATURES != 0 {
            frontend.set_vring_enable(index, true)?;
        }
    }
    Ok(())
}

/// Returns the addresses of a queue, whose used ring is logged at its own address or not.
fn addresses(nic: &Nic, queue: &Queue, logged: bool) -> VringConfigData {
    let layout = queue.ring.layout();
    VringConfigData {
        queue_max_size: layout.size,
        queue_size: layout.size,
        flags: if logged { VRING_F_LOG } else { 0 },
        desc_table_addr: nic.mem.user(layout.desc),
        used_ring_addr: nic.mem.user(layout.used),
        avail_ring_addr: nic.mem.user(layout.avail),
        log_addr: logged.then_some(layout.used),
    }
}
