//! Examination of a front-end's descriptors before their use.
//!
//! A file on a file system that the front-end itself serves (FUSE) can block a process that touches it: in
//! fstat() and fstatfs(), at each access to mapped memory, even in close(). So a disposable thread examines
//! each descriptor that could be such a file, and closes it if so. Usual descriptors need no question to a
//! file system: eventfds, pipes, local sockets, memfds, and files on tmpfs and hugetlbfs.
//!
//! A file on any other file system is accepted: QEMU's memory-backend-file may be one. The front-end does not
//! serve that file system.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, sync_channel};
use std::thread;
use std::time::Duration;

use log::warn;
use rustix::fs::{AtFlags, FileType, OFlags, StatxFlags, fcntl_get_seals, fcntl_getfl, fstatfs, statx};
use rustix::net::AddressFamily;
use rustix::net::sockopt::socket_domain;
use rustix::pipe::fcntl_getpipe_size;
use volt_net::thread::{ThreadKind, started};

/// Time limit for an answer of a file system.
const LIMIT: Duration = Duration::from_secs(2);
/// Maximum number of threads that do not end. Descriptors beyond these stay open, unexamined.
const MOST_LEFT: usize = 16;
const FUSE_MAGIC: i64 = 0x6573_5546;
const OVERLAYFS_MAGIC: i64 = 0x794c_7630;

static LEFT: AtomicUsize = AtomicUsize::new(0);

/// Accepts descriptors that cannot block their user.
///
/// # Errors
///
/// Returns `EOPNOTSUPP` for a descriptor that can. It is logged, and all descriptors are closed sooner or
/// later.
pub(super) fn admit(fds: Vec<OwnedFd>) -> io::Result<Vec<OwnedFd>> {
    if fds.iter().all(is_harmless) {
        return Ok(fds);
    }
    let refused = |why: &str| {
        warn!(
            event = "descriptor_refused";
            "refused a descriptor of the front-end that could block this daemon: {why}"
        );
        Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP))
    };
    if LEFT.fetch_add(1, Ordering::Relaxed) >= MOST_LEFT {
        LEFT.fetch_sub(1, Ordering::Relaxed);
        // Closing them could block.
        std::mem::forget(fds);
        return refused("too many earlier ones are still being examined");
    }
    let (thread, result) = examine(fds);
    match result.recv_timeout(LIMIT) {
        Ok(Ok(fds)) => {
            // It has nothing more to do. A supervisor may fork soon, and must not while a thread ends.
            let _ = thread.map(thread::JoinHandle::join);
            Ok(fds)
        }
        Ok(Err(why)) => refused(why),
        Err(_) => refused("its file system does not answer"),
    }
}

/// The result of an examination.
type Examined = Result<Vec<OwnedFd>, &'static str>;

/// Starts a thread that examines descriptors. It keeps and closes refused ones.
fn examine(fds: Vec<OwnedFd>) -> (Option<thread::JoinHandle<()>>, mpsc::Receiver<Examined>) {
    let (verdict, result) = sync_channel(1);
    // Passed through a channel, so that nothing is closed here if no thread starts.
    let (send, receive) = sync_channel::<Vec<OwnedFd>>(1);
    let spawned = thread::Builder::new().name("descriptors".to_owned()).spawn(move || {
        started(ThreadKind::Descriptors);
        let Ok(fds) = receive.recv() else { return };
        match fds.iter().find_map(could_hold) {
            Some(why) => {
                let _ = verdict.send(Err(why));
                drop(fds);
            }
            // Closed here if nobody waits any more.
            None => drop(verdict.send(Ok(fds))),
        }
        LEFT.fetch_sub(1, Ordering::Relaxed);
    });
    let thread = match spawned {
        Ok(thread) => {
            send.send(fds).expect("the thread waits for it");
            Some(thread)
        }
        Err(_) => {
            LEFT.fetch_sub(1, Ordering::Relaxed);
            std::mem::forget(fds);
            None
        }
    };
    (thread, result)
}

/// Whether a descriptor can be accepted without a question to a file system.
fn is_harmless(fd: &OwnedFd) -> bool {
    let is_anonymous = || {
        // Cached attributes: even FUSE answers without its server whether this is a file or a directory.
        let known = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        let stat = statx(fd, c"", known, StatxFlags::TYPE);
        stat.is_ok_and(|stat| FileType::from_raw_mode(stat.stx_mode.into()) == FileType::Unknown)
    };
    // Only tmpfs and hugetlbfs support seals, and memfds are on these.
    fcntl_getpipe_size(fd).is_ok()
        || socket_domain(fd).is_ok_and(|domain| domain == AddressFamily::UNIX)
        || fcntl_get_seals(fd).is_ok()
        || is_anonymous()
}

/// Returns the reason why a descriptor could block its user. May never return.
fn could_hold(fd: &OwnedFd) -> Option<&'static str> {
    if socket_domain(fd).is_ok_and(|domain| domain != AddressFamily::UNIX) {
        // SO_LINGER makes close() wait for the peer.
        return Some("it is a network socket");
    }
    match fstatfs(fd).map(|fs| fs.f_type) {
        Ok(FUSE_MAGIC) => Some("it is on a FUSE file system"),
        // A file opened for writing is in the upper layer, which is never FUSE. Others may be on FUSE.
        Ok(OVERLAYFS_MAGIC) if !fcntl_getfl(fd).is_ok_and(|flags| flags.contains(OFlags::RDWR)) => {
            Some("it is on an overlay file system, and cannot be written")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use rustix::event::{EventfdFlags, eventfd};
    use rustix::fs::{MemfdFlags, memfd_create};
    use rustix::net::{SocketType, socket};

    use super::*;

    #[test]
    fn what_front_ends_send_passes_without_a_question() {
        let (read, write) = rustix::pipe::pipe().unwrap();
        let fds = vec![
            eventfd(0, EventfdFlags::CLOEXEC).unwrap(),
            memfd_create("memory", MemfdFlags::CLOEXEC).unwrap(),
            socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap(),
            read,
            write,
        ];
        assert!(fds.iter().all(is_harmless));
        assert_eq!(admit(fds).unwrap().len(), 5);
    }

    #[test]
    fn files_pass_after_one_and_network_sockets_do_not() {
        let file: OwnedFd = tempfile::tempfile_in("/var/tmp").unwrap().into();
        let device: OwnedFd = File::open("/dev/null").unwrap().into();
        let directory: OwnedFd = File::open("/proc").unwrap().into();
        assert!(!is_harmless(&device) && !is_harmless(&directory));
        assert_eq!(admit(vec![file, device, directory]).unwrap().len(), 3);
        let distant = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        assert_eq!(admit(vec![distant]).unwrap_err().raw_os_error(), Some(libc::EOPNOTSUPP));
    }
}
