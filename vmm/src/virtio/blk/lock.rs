//! Locks that prevent two programs from using one image at a time, if one of them writes.
//!
//! There are two kinds, which are independent. `systemd` and `udev` respect `flock` on block devices. QEMU
//! locks single bytes by open file description, whatever the image contains there. A lock of byte 100 + N
//! means that its owner has permission N. A lock of byte 200 + N means that its owner does not let others
//! have it. All are read locks, so that they do not exclude each other. A program that has locked its own
//! bytes then looks at the others' bytes. It gives up if another program refuses to share a permission that
//! it has, or has one that it refuses to share.
#![expect(unsafe_code, reason = "locks of open file descriptions exist in libc only")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use libc::{c_int, c_short, off_t};
use rustix::fs::{FlockOperation, flock, fstatfs};
use rustix::io::Errno;

/// Those of QEMU's permissions that are used here.
const CONSISTENT_READ: off_t = 0;
const WRITE: off_t = 1;
const RESIZE: off_t = 3;
/// Permissions that others may not have, even if this process only reads: the guest relies on the fact that
/// nobody else writes, and reads the length once.
const NOT_SHARED: [off_t; 2] = [WRITE, RESIZE];
/// First bytes of the permissions in use, and of those not shared.
const HAD: off_t = 100;
const UNSHARED: off_t = 200;

/// Why there is no lock.
#[derive(Debug)]
pub enum LockError {
    /// Another program has locked the image.
    Taken,
    /// This file system lacks one kind of locks.
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

/// Locks bytes and checks the others' bytes, like QEMU.
fn lock_bytes(file: &File, write: bool) -> Result<(), LockError> {
    let had: &[off_t] = if write { &[CONSISTENT_READ, WRITE] } else { &[CONSISTENT_READ] };
    for byte in had.iter().map(|had| HAD + had).chain(NOT_SHARED.map(|not| UNSHARED + not)) {
        // Write locks exist only from programs that do not follow this protocol.
        ofd(file, libc::F_OFD_SETLK, libc::F_RDLCK, byte)?;
    }
    for byte in had.iter().map(|had| UNSHARED + had).chain(NOT_SHARED.map(|not| HAD + not)) {
        if ofd(file, libc::F_OFD_GETLK, libc::F_WRLCK, byte)? != libc::F_UNLCK {
            return Err(LockError::Taken);
        }
    }
    Ok(())
}

/// Network file systems turn `flock` into a lock of all the file's bytes, QEMU's bytes included. Readers
/// would exclude each other.
fn has_one_kind_only(file: &File) -> bool {
    const NFS: u32 = 0x6969;
    const CIFS: u32 = 0xff53_4d42;
    const SMB2: u32 = 0xfe53_4d42;
    const PLAN9: u32 = 0x0102_1997;
    fstatfs(file).is_ok_and(|system| [NFS, CIFS, SMB2, PLAN9].contains(&(system.f_type as u32)))
}

/// Sets or queries a lock of one byte. Returns the kind of the conflicting lock.
fn ofd(file: &File, command: c_int, kind: c_int, byte: off_t) -> Result<c_int, LockError> {
    let mut lock = libc::flock {
        l_type: kind as c_short,
        l_whence: libc::SEEK_SET as c_short,
        l_start: byte,
        l_len: 1,
        // Must be 0: the lock belongs to no process.
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
