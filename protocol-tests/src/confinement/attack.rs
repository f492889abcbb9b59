//! System calls made from inside a running thread.

use std::io::ErrorKind;
use std::process::Command;
use std::time::Duration;

use rustix::process::Pid;

use super::Thread;
use crate::daemon::poll_until;
use crate::rig::LIMIT;
use crate::trace::{Made, Traced};

/// Makes each call that an attacker would make in a hijacked `thread`, against `victim` if there is one, and
/// checks that it is denied.
///
/// # Panics
/// If a call is not denied.
#[track_caller]
pub fn assert_denied(thread: &Thread, victim: u32) {
    for (what, number, arguments) in &attacks(victim) {
        let made = from_inside(thread.id, *number, *arguments);
        let denied = [libc::EACCES, libc::ENOSYS].map(|error| Made::Returned(-i64::from(error)));
        assert!(made == Made::Trapped || denied.contains(&made), "{}: {what}: {made:?}", thread.name);
    }
    // An allowed call shows that calls are really made.
    let allowed = from_inside(thread.id, libc::SYS_brk, [0; 6]);
    assert!(matches!(allowed, Made::Returned(end) if end > 0), "{}: brk: {allowed:?}", thread.name);
}

fn attacks(victim: u32) -> Vec<(&'static str, i64, [u64; 6])> {
    let victim = u64::from(victim);
    let (inet, stream) = (libc::AF_INET as u64, libc::SOCK_STREAM as u64);
    let all = 7;
    vec![
        ("openat for writing", libc::SYS_openat, [libc::AT_FDCWD as u64, 0, libc::O_WRONLY as u64, 0, 0, 0]),
        ("open", libc::SYS_open, [0, libc::O_RDWR as u64, 0, 0, 0, 0]),
        ("connect", libc::SYS_connect, [3, 0, 16, 0, 0, 0]),
        ("socket", libc::SYS_socket, [inet, stream, 0, 0, 0, 0]),
        ("kill of another process", libc::SYS_kill, [victim, 0, 0, 0, 0, 0]),
        ("tgkill of another process", libc::SYS_tgkill, [victim, victim, 0, 0, 0, 0]),
        ("tkill of another process", libc::SYS_tkill, [victim, libc::SIGABRT as u64, 0, 0, 0, 0]),
        (
            "datagrams to a path",
            libc::SYS_socket,
            [libc::AF_UNIX as u64, libc::SOCK_DGRAM as u64, 0, 0, 0, 0],
        ),
        ("a pidfd of another process", libc::SYS_pidfd_open, [victim, 0, 0, 0, 0, 0]),
        ("executable mmap", libc::SYS_mmap, [0, 4096, all, 0x22, u64::MAX, 0]),
        ("executable mprotect", libc::SYS_mprotect, [0, 4096, all, 0, 0, 0]),
        ("io_uring_setup", libc::SYS_io_uring_setup, [1, 0, 0, 0, 0, 0]),
        ("bpf", libc::SYS_bpf, [0; 6]),
        ("userfaultfd", libc::SYS_userfaultfd, [0; 6]),
        ("ptrace", libc::SYS_ptrace, [16, victim, 0, 0, 0, 0]),
        ("process_vm_writev", libc::SYS_process_vm_writev, [victim, 0, 0, 0, 0, 0]),
        ("execve", libc::SYS_execve, [0; 6]),
        ("fork", libc::SYS_fork, [0; 6]),
        ("clone of a process", libc::SYS_clone, [libc::SIGCHLD as u64, 0, 0, 0, 0, 0]),
        ("clone3", libc::SYS_clone3, [0; 6]),
        ("unshare", libc::SYS_unshare, [libc::CLONE_NEWUSER as u64, 0, 0, 0, 0, 0]),
        ("setns", libc::SYS_setns, [0; 6]),
        ("mount", libc::SYS_mount, [0; 6]),
        ("another interface", libc::SYS_ioctl, [3, libc::TUNSETIFF, 0, 0, 0, 0]),
    ]
}

/// Makes a call in a thread that waits in one, or is about to.
fn from_inside(thread: Pid, number: i64, arguments: [u64; 6]) -> Made {
    let made = poll_until(LIMIT, || {
        let traced = Traced::seize(thread).expect("it can be traced");
        let made = traced.make(number, arguments);
        traced.detach().expect("it stood still");
        match made {
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            made => Some(made.expect("it can be made")),
        }
    });
    made.expect("it waits in a call")
}

/// Makes a forbidden call in a thread, and ignores the trap.
///
/// # Panics
/// If it cannot be traced.
#[track_caller]
pub fn violate(thread: Pid) {
    std::thread::sleep(Duration::from_millis(50));
    let traced = Traced::seize(thread).expect("it can be traced");
    traced.call(libc::SYS_execve, [0; 6]).expect("it waits in a call");
    traced.detach().expect("it stood still");
}

/// Returns the address, in a running process, of its program's only function whose name ends in `name`.
///
/// # Panics
/// If there is no such function.
pub fn function(process: u32, name: &str) -> u64 {
    let path = format!("/proc/{process}/exe");
    let program = std::fs::read_link(&path).expect("its program");
    let symbols = Command::new("nm").arg("--defined-only").arg(&program).output().expect("nm of binutils");
    let symbols = String::from_utf8(symbols.stdout).expect("names");
    let line = symbols.lines().find(|line| line.ends_with(name)).expect(name);
    let offset = line.split(' ').next().and_then(|number| u64::from_str_radix(number, 16).ok());
    let maps = std::fs::read_to_string(format!("/proc/{process}/maps")).expect("its memory");
    let base = maps.split('-').next().and_then(|number| u64::from_str_radix(number, 16).ok());
    base.expect("an address") + offset.expect("an address")
}
