//! Locks that keep two programs from using one image at a time, if one of them writes.
//!
//! There are two kinds, which know nothing of each other. `flock` is what `systemd` and `udev` respect on
//! block devices. QEMU has locks of open file descriptions on single bytes, whatever the image contains
//! there: byte 100 + N is locked by who has permission N, byte 200 + N by who does not let others have it.
//! All are read locks, so that they go together with each other; who has locked its own then looks at the
//! others' bytes, and gives up when somebody does not share what it has, or has what it does not share.
#![expect(unsafe_code, reason = "locks of open file descriptions exist in libc only")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use libc::{c_int, c_short, off_t};
use rustix::fs::{FlockOperation, flock, fstatfs};
use rustix::io::Errno;

/// QEMU's permissions, of those that it has.
const CONSISTENT_READ: off_t = 0;
const WRITE: off_t = 1;
const RESIZE: off_t = 3;
/// What others may not have, whether we write or not: the guest is told that nobody else writes, and the
/// length once.
const NOT_SHARED: [off_t; 2] = [WRITE, RESIZE];
/// Where the bytes of permissions had and of those not shared begin.
const HAD: off_t = 100;
const UNSHARED: off_t = 200;

/// Why there is no lock.
#[derive(Debug)]
pub enum LockError {
    /// Somebody else has the image.
    Taken,
    /// This file system has no locks of one kind or the other.
    Unsupported(io::Error),
}

/// Locks `file` for a writer or a reader until it is closed.
///
/// # Errors
///
/// See [`LockError`].
pub fn lock(file: &File, write: bool) -> Result<(), LockError> {
    let bytes = match lock_bytes(file, write) {
        Err(LockError::Taken) => return Err(LockError::Taken),
        result => result,
    };
    if has_one_kind_only(file) {
        return bytes;
    }
    let operation = match write {
        true => FlockOperation::NonBlockingLockExclusive,
        false => FlockOperation::NonBlockingLockShared,
    };
    flock(file, operation).map_err(|errno| match errno {
        Errno::WOULDBLOCK => LockError::Taken,
        errno => LockError::Unsupported(errno.into()),
    })?;
    bytes
}

/// Locks and looks as QEMU does.
fn lock_bytes(file: &File, write: bool) -> Result<(), LockError> {
    let had: &[off_t] = if write { &[CONSISTENT_READ, WRITE] } else { &[CONSISTENT_READ] };
    for byte in had.iter().map(|had| HAD + had).chain(NOT_SHARED.map(|not| UNSHARED + not)) {
        // There are no write locks but somebody's who knows nothing of this.
        ofd(file, libc::F_OFD_SETLK, libc::F_RDLCK, byte)?;
    }
    for byte in had.iter().map(|had| UNSHARED + had).chain(NOT_SHARED.map(|not| HAD + not)) {
        if ofd(file, libc::F_OFD_GETLK, libc::F_WRLCK, byte)? != libc::F_UNLCK {
            return Err(LockError::Taken);
        }
    }
    Ok(())
}

/// Network file systems make a lock of all the file's bytes out of `flock`, QEMU's bytes too: readers would
/// be in each other's way.
fn has_one_kind_only(file: &File) -> bool {
    const NFS: u32 = 0x6969;
    const CIFS: u32 = 0xff53_4d42;
    const SMB2: u32 = 0xfe53_4d42;
    const PLAN9: u32 = 0x0102_1997;
    fstatfs(file).is_ok_and(|system| [NFS, CIFS, SMB2, PLAN9].contains(&(system.f_type as u32)))
}

/// Sets or looks for a lock of one byte; answers with the kind of lock that is in the way.
fn ofd(file: &File, command: c_int, kind: c_int, byte: off_t) -> Result<c_int, LockError> {
    let mut lock = libc::flock {
        l_type: kind as c_short,
        l_whence: libc::SEEK_SET as c_short,
        l_start: byte,
        l_len: 1,
        // It has to be 0: the lock is no process's.
        l_pid: 0,
    };
    // SAFETY: `lock` is a flock that lives until the call returns.
    if unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut lock) } == 0 {
        return Ok(lock.l_type.into());
    }
    Err(match io::Error::last_os_error() {
        error if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => LockError::Taken,
        error => LockError::Unsupported(error),
    })
}
