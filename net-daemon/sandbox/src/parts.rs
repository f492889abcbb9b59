//! Parts that roles of both programs share: moving frames, memory and the end of a thread, the end of the
//! process, making threads.
//!
//! Nothing in the first three makes a descriptor, opens a path, or reaches another process.

use libc::{EACCES, ENOSYS};

use crate::allow::{Allow, Arg, Is, equal, masked};
use crate::role::Part;

/// Of `tgkill`: this process.
pub const OWN: Arg = Arg { index: 0, is: Is::OwnProcess };
/// Of `mmap` and `mprotect`: nothing that could be executed.
const NOT_EXECUTABLE: Arg = masked(2, libc::PROT_EXEC as u32, 0);
/// Of `mmap`: this process's alone, and no file's.
const PRIVATE: Arg = masked(
    3,
    (libc::MAP_SHARED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u32,
    (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u32,
);
/// Of `sendto`: by a connection, to whom that leads.
pub const CONNECTED: &[Arg] = &[Arg { index: 4, is: Is::Null }];
/// Of `socket` and `socketpair`: a Unix socket that sends nothing before it is connected.
pub const UNIX_STREAM: &[Arg] =
    &[equal(0, libc::AF_UNIX as u32), masked(1, !(libc::SOCK_CLOEXEC as u32), libc::SOCK_STREAM as u32)];
/// Of `mmap`: memory that is shared, and cannot be executed.
pub const SHARED: &[Arg] =
    &[NOT_EXECUTABLE, masked(3, (libc::MAP_SHARED | libc::MAP_PRIVATE) as u32, libc::MAP_SHARED as u32)];
/// Of `statx`: for a descriptor. A path may be given all the same: a filter cannot see whether it is empty.
pub const BY_DESCRIPTOR: &[Arg] = &[masked(2, libc::AT_EMPTY_PATH as u32, libc::AT_EMPTY_PATH as u32)];
/// Of `setsockopt`.
const SOCKET_LEVEL: Arg = equal(1, libc::SOL_SOCKET as u32);
/// `asm-generic/socket.h`; the libc crate has them for some targets only.
const SO_RCVTIMEO_NEW: u32 = 66;
/// Of `clone`: a thread of this process, in its namespaces.
const THREAD: Arg = masked(0, NAMESPACES | THREAD_FLAGS, THREAD_FLAGS);
const THREAD_FLAGS: u32 = (libc::CLONE_VM | libc::CLONE_THREAD | libc::CLONE_SIGHAND) as u32;
const NAMESPACES: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u32;

/// Frames between rings and descriptors. No call's arguments are looked at, so that the kernel decides on
/// each by a bit that it has kept.
pub const FRAMES: Part = Part {
    name: "frames",
    calls: &[
        Allow::seen("read", libc::SYS_read, "netd_rings", "a frame from the port, a kick"),
        Allow::seen("readv", libc::SYS_readv, "netd_rings", "a frame into several buffers"),
        Allow::seen("write", libc::SYS_write, "netd_rings", "a frame to the port, a call, a line of the log"),
        Allow::seen("writev", libc::SYS_writev, "netd_rings", "a frame from several buffers"),
        Allow::seen("epoll_pwait", libc::SYS_epoll_pwait, "netd_rings", "waiting for kicks and frames"),
        Allow::seen("epoll_ctl", libc::SYS_epoll_ctl, "netd_held", "a kick that has come to its end"),
        Allow::seen("futex", libc::SYS_futex, "netd_rings", "a lock of the log"),
        Allow::seen("rt_sigreturn", libc::SYS_rt_sigreturn, "netd_restart", "being interrupted"),
        Allow::seen("restart_syscall", libc::SYS_restart_syscall, "netd_log", "being stopped in a wait"),
        Allow::seen("clock_gettime", libc::SYS_clock_gettime, "lab_net", "a clock that has no vDSO"),
        Allow::seen("sched_yield", libc::SYS_sched_yield, "lab_net", "a channel that is soon free"),
        Allow::seen(
            "timerfd_settime",
            libc::SYS_timerfd_settime,
            "netd_supervise",
            "waiting for what a limit allows",
        ),
    ],
};

/// Memory of one's own, the start of a thread and its end.
pub const MEMORY: Part = Part {
    name: "memory and end of thread",
    calls: &[
        Allow::seen("mmap", libc::SYS_mmap, "netd_rings", "memory of the allocator's")
            .only(&[&[NOT_EXECUTABLE, PRIVATE]]),
        Allow::seen("mprotect", libc::SYS_mprotect, "netd_rings", "the same").only(&[&[NOT_EXECUTABLE]]),
        Allow::seen("munmap", libc::SYS_munmap, "netd_rings", "the same"),
        Allow::seen("mremap", libc::SYS_mremap, "netd_log", "a large block that grows"),
        Allow::seen("madvise", libc::SYS_madvise, "netd_rings", "the stack of a thread that ends"),
        Allow::seen("brk", libc::SYS_brk, "netd_rings", "memory of the allocator's"),
        Allow::seen("rt_sigprocmask", libc::SYS_rt_sigprocmask, "netd_rings", "the end of a thread"),
        Allow::seen("sigaltstack", libc::SYS_sigaltstack, "netd_rings", "the end of a thread"),
        Allow::seen("close", libc::SYS_close, "netd_rings", "what the thread waited by"),
        Allow::seen("fcntl", libc::SYS_fcntl, "netd_rings", "the standard library's check of what it closes")
            .only(&[&[equal(1, libc::F_GETFD as u32)]]),
        Allow::seen("exit", libc::SYS_exit, "netd_rings", "the end of a thread"),
        Allow::seen("gettid", libc::SYS_gettid, "netd_signals", "abort(), a thread that panics"),
    ],
};

/// The end of the process, by a panic or by the C library.
pub const ABORT: Part = Part {
    name: "panic and abort",
    calls: &[
        Allow::seen("getpid", libc::SYS_getpid, "netd_signals", "abort()"),
        Allow::seen("tgkill", libc::SYS_tgkill, "netd_signals", "abort()").only(&[&[OWN]]),
        Allow::seen("rt_sigaction", libc::SYS_rt_sigaction, "netd_signals", "dying of SIGSYS")
            .only(&[&[equal(0, libc::SIGSYS as u32)]]),
        Allow::kept("rt_sigaction", libc::SYS_rt_sigaction, "abort()")
            .only(&[&[equal(0, libc::SIGABRT as u32)]]),
        Allow::seen(
            "clock_gettime",
            libc::SYS_clock_gettime,
            "lab_net",
            "the time of a last line, without vDSO",
        ),
        Allow::kept("poll", libc::SYS_poll, "whether standard error takes the line after a violation"),
        Allow::seen("write", libc::SYS_write, "netd_log", "that line"),
        Allow::kept("writev", libc::SYS_writev, "last words of the C library's"),
        Allow::seen("exit_group", libc::SYS_exit_group, "netd_process", "the end"),
    ],
};

/// What a backtrace asks for, which goes without names then.
pub const BACKTRACE: Part = Part {
    name: "backtrace",
    calls: &[
        Allow::seen(
            "openat",
            libc::SYS_openat,
            "machine",
            "the program's file, and what a C library looks up",
        )
        .refused(EACCES),
        Allow::kept("readlink", libc::SYS_readlink, "the same").refused(EACCES),
        Allow::kept("getcwd", libc::SYS_getcwd, "the same").refused(EACCES),
    ],
};

/// Processes, which have at most what their maker has.
pub const FORK: Part = Part {
    name: "fork",
    calls: &[Allow::seen(
        "clone",
        libc::SYS_clone,
        "netd_supervise",
        "the next worker, in the same namespaces",
    )
    .only(&[&[masked(0, NAMESPACES | libc::CLONE_VM as u32, 0)]])],
};

/// Threads, which have at most what their maker has.
pub const THREADS: Part = Part {
    name: "threads",
    calls: &[
        Allow::seen(
            "clone3",
            libc::SYS_clone3,
            "netd_rings",
            "asks for what no filter sees: clone is tried next",
        )
        .refused(ENOSYS),
        Allow::seen("clone", libc::SYS_clone, "netd_rings", "a thread of this process").only(&[&[THREAD]]),
        Allow::seen("set_robust_list", libc::SYS_set_robust_list, "netd_rings", "the start of a thread"),
        Allow::seen("rseq", libc::SYS_rseq, "netd_rings", "the start of a thread"),
        Allow::seen("sched_getaffinity", libc::SYS_sched_getaffinity, "netd_rings", "the size of its stack"),
        Allow::seen("gettid", libc::SYS_gettid, "netd_rings", "the start of a thread"),
        Allow::seen("prctl", libc::SYS_prctl, "netd_rings", "its name; no way back to more rights")
            .only(&[&[equal(0, libc::PR_SET_NAME as u32)], &[equal(0, libc::PR_SET_NO_NEW_PRIVS as u32)]]),
        Allow::seen("seccomp", libc::SYS_seccomp, "netd_rings", "its own, shorter list")
            .only(&[&[equal(0, libc::SECCOMP_SET_MODE_FILTER), equal(1, 0)]]),
        Allow::seen("sched_yield", libc::SYS_sched_yield, "netd_rings", "waiting for a thread that ends"),
        Allow::seen("clock_nanosleep", libc::SYS_clock_nanosleep, "netd_handover", "the same, for longer"),
    ],
};

/// The log's.
pub const LOG_CALLS: Part = Part {
    name: "log",
    calls: &[
        Allow::seen("write", libc::SYS_write, "netd_log", "a line"),
        Allow::seen("futex", libc::SYS_futex, "netd_log", "waiting for lines"),
        Allow::seen("ppoll", libc::SYS_ppoll, "netd_log", "waiting for a reader, as poll"),
    ],
};

/// How a thread asks the process that opens things.
pub const ASKING: Part = Part {
    name: "asking the opener",
    calls: &[
        Allow::seen("socketpair", libc::SYS_socketpair, "netd_port", "what it answers by").only(&[&[
            equal(0, libc::AF_UNIX as u32),
            masked(1, !(libc::SOCK_CLOEXEC as u32), libc::SOCK_SEQPACKET as u32),
        ]]),
        Allow::seen("setsockopt", libc::SYS_setsockopt, "netd_port", "how long an answer may take")
            .only(&[&[SOCKET_LEVEL, equal(2, SO_RCVTIMEO_NEW)]]),
    ],
};

/// What the process that opens things opens interfaces by.
pub const OPENER_INTERFACES: Part = Part {
    name: "interfaces",
    calls: &[
        Allow::seen("openat", libc::SYS_openat, "netd_port", "/dev/net/tun, /dev/tapN, a disk"),
        Allow::seen("socket", libc::SYS_socket, "netd_port", "questions about an interface, a connection")
            .only(&[&[equal(0, libc::AF_UNIX as u32)]]),
        Allow::seen("ioctl", libc::SYS_ioctl, "netd_port", "the interface").only(&[
            &[equal(1, libc::TUNSETIFF as u32)],
            &[equal(1, libc::SIOCGIFINDEX as u32)],
            &[equal(1, libc::SIOCGIFFLAGS as u32)],
            &[equal(1, libc::SIOCSIFFLAGS as u32)],
            &[equal(1, libc::SIOCSIFMTU as u32)],
        ]),
        Allow::kept("ioctl", libc::SYS_ioctl, "whether something is a macvtap, and which").only(&[
            &[equal(1, libc::TUNGETIFF as u32)],
            &[equal(1, libc::SIOCETHTOOL as u32)],
            &[equal(1, libc::SIOCGIFHWADDR as u32)],
        ]),
        Allow::kept("read", libc::SYS_read, "the numbers of a macvtap's file, for an error's text"),
        Allow::kept("lseek", libc::SYS_lseek, "the same"),
        Allow::kept("futex", libc::SYS_futex, "a lock of the allocator's"),
        Allow::kept("rt_sigreturn", libc::SYS_rt_sigreturn, "dying of SIGSYS"),
    ],
};

/// What the process that opens things is asked by.
pub const OPENER_REQUESTS: Part = Part {
    name: "requests",
    calls: &[
        Allow::seen("recvmsg", libc::SYS_recvmsg, "netd_port", "a request"),
        Allow::seen("ppoll", libc::SYS_ppoll, "netd_supervise", "whether nobody is left"),
        Allow::seen("sendmsg", libc::SYS_sendmsg, "netd_port", "an answer"),
        Allow::seen("sendto", libc::SYS_sendto, "netd_port", "that it is there").only(&[CONNECTED]),
    ],
};
