//! Parts that roles of both programs share: moving frames, memory and the end of a thread, the end of the
//! process, creating threads.
//!
//! No call in the first three creates a descriptor, opens a path, or reaches another process.

use libc::{EACCES, ENOSYS};

use crate::allow::{Allow, Arg, Is, equal, masked};
use crate::role::Part;

/// For `tgkill`: this process.
pub const OWN: Arg = Arg { index: 0, is: Is::OwnProcess };
/// For `mmap` and `mprotect`: memory that cannot be executed.
const NOT_EXECUTABLE: Arg = masked(2, libc::PROT_EXEC as u32, 0);
/// For `mmap`: private memory, without a file.
const PRIVATE: Arg = masked(
    3,
    (libc::MAP_SHARED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u32,
    (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u32,
);
/// For `sendto`: no address, so only the connection's peer.
pub const CONNECTED: &[Arg] = &[Arg { index: 4, is: Is::Null }];
/// For `socket` and `socketpair`: a Unix stream socket, which cannot send before it is connected.
pub const UNIX_STREAM: &[Arg] =
    &[equal(0, libc::AF_UNIX as u32), masked(1, !(libc::SOCK_CLOEXEC as u32), libc::SOCK_STREAM as u32)];
/// For `mmap`: shared memory that cannot be executed.
pub const SHARED: &[Arg] =
    &[NOT_EXECUTABLE, masked(3, (libc::MAP_SHARED | libc::MAP_PRIVATE) as u32, libc::MAP_SHARED as u32)];
/// For `statx`: a descriptor. A path is also possible, because a filter cannot check whether it is empty.
pub const BY_DESCRIPTOR: &[Arg] = &[masked(2, libc::AT_EMPTY_PATH as u32, libc::AT_EMPTY_PATH as u32)];
/// For `setsockopt`: the socket level.
const SOCKET_LEVEL: Arg = equal(1, libc::SOL_SOCKET as u32);
/// From `asm-generic/socket.h`; the libc crate has it for some targets only.
const SO_RCVTIMEO_NEW: u32 = 66;
/// For `clone`: a thread of this process, in its namespaces.
const THREAD: Arg = masked(0, NAMESPACES | THREAD_FLAGS, THREAD_FLAGS);
const THREAD_FLAGS: u32 = (libc::CLONE_VM | libc::CLONE_THREAD | libc::CLONE_SIGHAND) as u32;
const NAMESPACES: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u32;

/// Frames between rings and descriptors. No arguments are checked, so that the kernel can decide each call
/// with its cached bit.
pub const FRAMES: Part = Part {
    name: "frames",
    calls: &[
        Allow::seen("read", libc::SYS_read, "netd_rings", "a frame from the port, a kick"),
        Allow::seen("readv", libc::SYS_readv, "netd_rings", "a frame into several buffers"),
        Allow::seen("write", libc::SYS_write, "netd_rings", "a frame to the port, a call, a line of the log"),
        Allow::seen("writev", libc::SYS_writev, "netd_rings", "a frame from several buffers"),
        Allow::seen("epoll_pwait", libc::SYS_epoll_pwait, "netd_rings", "wait for kicks and frames"),
        Allow::seen("epoll_ctl", libc::SYS_epoll_ctl, "netd_held", "stop watching a closed kick descriptor"),
        Allow::seen("futex", libc::SYS_futex, "netd_rings", "a lock of the log"),
        Allow::seen("rt_sigreturn", libc::SYS_rt_sigreturn, "netd_restart", "return from a signal handler"),
        Allow::seen(
            "restart_syscall",
            libc::SYS_restart_syscall,
            "netd_log",
            "continue a wait after SIGSTOP",
        ),
        Allow::seen("clock_gettime", libc::SYS_clock_gettime, "lab_net", "a clock without vDSO"),
        Allow::seen("sched_yield", libc::SYS_sched_yield, "lab_net", "wait for a busy channel"),
        Allow::seen("timerfd_settime", libc::SYS_timerfd_settime, "netd_supervise", "wait for a rate limit"),
    ],
};

/// Batches of frames by sockets. A filter cannot check to whom `sendmmsg` sends.
pub const SOCKET_FRAMES: Part = Part {
    name: "frames by sockets",
    calls: &[
        Allow::seen("sendmmsg", libc::SYS_sendmmsg, "netd_peer", "frames to a peer, in datagrams"),
        Allow::seen("shutdown", libc::SYS_shutdown, "netd_peer", "end a peer's stream that is not one"),
        Allow::seen("sendto", libc::SYS_sendto, "netd_xdp", "tell the kernel of frames in its rings")
            .only(&[CONNECTED]),
        Allow::kept("recvfrom", libc::SYS_recvfrom, "tell a card of room in its rings"),
    ],
};

/// Private memory, and the start and end of a thread.
pub const MEMORY: Part = Part {
    name: "memory and end of thread",
    calls: &[
        Allow::seen("mmap", libc::SYS_mmap, "netd_rings", "the allocator's memory")
            .only(&[&[NOT_EXECUTABLE, PRIVATE]]),
        Allow::seen("mprotect", libc::SYS_mprotect, "netd_rings", "the allocator's memory")
            .only(&[&[NOT_EXECUTABLE]]),
        Allow::seen("munmap", libc::SYS_munmap, "netd_rings", "the allocator's memory"),
        Allow::seen("mremap", libc::SYS_mremap, "netd_log", "a large block that grows"),
        Allow::seen("madvise", libc::SYS_madvise, "netd_rings", "the stack of an ending thread"),
        Allow::seen("brk", libc::SYS_brk, "netd_rings", "the allocator's memory"),
        Allow::seen("rt_sigprocmask", libc::SYS_rt_sigprocmask, "netd_rings", "the end of a thread"),
        Allow::seen("sigaltstack", libc::SYS_sigaltstack, "netd_rings", "the end of a thread"),
        Allow::seen("close", libc::SYS_close, "netd_rings", "the thread's descriptors"),
        Allow::seen("fcntl", libc::SYS_fcntl, "netd_rings", "the standard library's check before close")
            .only(&[&[equal(1, libc::F_GETFD as u32)]]),
        Allow::seen("exit", libc::SYS_exit, "netd_rings", "the end of a thread"),
        Allow::seen("gettid", libc::SYS_gettid, "netd_signals", "abort(), a panic"),
    ],
};

/// The end of the process by a panic or the C library.
pub const ABORT: Part = Part {
    name: "panic and abort",
    calls: &[
        Allow::seen("getpid", libc::SYS_getpid, "netd_signals", "abort()"),
        Allow::seen("tgkill", libc::SYS_tgkill, "netd_signals", "abort()").only(&[&[OWN]]),
        Allow::seen("rt_sigaction", libc::SYS_rt_sigaction, "netd_signals", "die of SIGSYS")
            .only(&[&[equal(0, libc::SIGSYS as u32)]]),
        Allow::kept("rt_sigaction", libc::SYS_rt_sigaction, "abort()")
            .only(&[&[equal(0, libc::SIGABRT as u32)]]),
        Allow::seen(
            "clock_gettime",
            libc::SYS_clock_gettime,
            "lab_net",
            "the time in a last log line, without vDSO",
        ),
        Allow::kept("poll", libc::SYS_poll, "check that standard error is writable after a violation"),
        Allow::seen("write", libc::SYS_write, "netd_log", "the line after a violation"),
        Allow::kept("writev", libc::SYS_writev, "the C library's last message"),
        Allow::seen("exit_group", libc::SYS_exit_group, "netd_process", "the end of the process"),
    ],
};

/// The calls of a backtrace. They fail, so it has no names.
pub const BACKTRACE: Part = Part {
    name: "backtrace",
    calls: &[
        Allow::seen("openat", libc::SYS_openat, "machine", "the program's file, and files of the C library")
            .refused(EACCES),
        Allow::kept("readlink", libc::SYS_readlink, "the program's file").refused(EACCES),
        Allow::kept("getcwd", libc::SYS_getcwd, "the program's file").refused(EACCES),
    ],
};

/// Processes, which have at most the rights of their creator.
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

/// Threads, which have at most the rights of their creator.
pub const THREADS: Part = Part {
    name: "threads",
    calls: &[
        Allow::seen(
            "clone3",
            libc::SYS_clone3,
            "netd_rings",
            "a filter cannot check its arguments; the C library then uses clone",
        )
        .refused(ENOSYS),
        Allow::seen("clone", libc::SYS_clone, "netd_rings", "a thread of this process").only(&[&[THREAD]]),
        Allow::seen("set_robust_list", libc::SYS_set_robust_list, "netd_rings", "the start of a thread"),
        Allow::seen("rseq", libc::SYS_rseq, "netd_rings", "the start of a thread"),
        Allow::seen("sched_getaffinity", libc::SYS_sched_getaffinity, "netd_rings", "the size of a stack"),
        Allow::seen("gettid", libc::SYS_gettid, "netd_rings", "the start of a thread"),
        Allow::seen("prctl", libc::SYS_prctl, "netd_rings", "a thread's name; no_new_privs")
            .only(&[&[equal(0, libc::PR_SET_NAME as u32)], &[equal(0, libc::PR_SET_NO_NEW_PRIVS as u32)]]),
        Allow::seen("seccomp", libc::SYS_seccomp, "netd_rings", "a thread's own, shorter list")
            .only(&[&[equal(0, libc::SECCOMP_SET_MODE_FILTER), equal(1, 0)]]),
        Allow::seen("sched_yield", libc::SYS_sched_yield, "netd_rings", "wait for an ending thread"),
        Allow::seen(
            "clock_nanosleep",
            libc::SYS_clock_nanosleep,
            "netd_handover",
            "wait longer for an ending thread",
        ),
    ],
};

/// The log's calls.
pub const LOG_CALLS: Part = Part {
    name: "log",
    calls: &[
        Allow::seen("write", libc::SYS_write, "netd_log", "a line"),
        Allow::seen("futex", libc::SYS_futex, "netd_log", "wait for lines"),
        Allow::seen("ppoll", libc::SYS_ppoll, "netd_log", "wait for the reader; instead of poll"),
    ],
};

/// Requests to the opener.
pub const ASKING: Part = Part {
    name: "requests to the opener",
    calls: &[
        Allow::seen("socketpair", libc::SYS_socketpair, "netd_port", "the line for the answer").only(&[&[
            equal(0, libc::AF_UNIX as u32),
            masked(1, !(libc::SOCK_CLOEXEC as u32), libc::SOCK_SEQPACKET as u32),
        ]]),
        Allow::seen("setsockopt", libc::SYS_setsockopt, "netd_port", "the time limit of an answer")
            .only(&[&[SOCKET_LEVEL, equal(2, SO_RCVTIMEO_NEW)]]),
    ],
};

/// The opener's calls to open interfaces.
pub const OPENER_INTERFACES: Part = Part {
    name: "interfaces",
    calls: &[
        Allow::seen("openat", libc::SYS_openat, "netd_port", "/dev/net/tun, /dev/tapN, a disk"),
        Allow::seen("socket", libc::SYS_socket, "netd_port", "queries of an interface, a connection")
            .only(&[&[equal(0, libc::AF_UNIX as u32)]]),
        Allow::seen("ioctl", libc::SYS_ioctl, "netd_port", "open and set up an interface").only(&[
            &[equal(1, libc::TUNSETIFF as u32)],
            &[equal(1, libc::SIOCGIFINDEX as u32)],
            &[equal(1, libc::SIOCGIFFLAGS as u32)],
            &[equal(1, libc::SIOCSIFFLAGS as u32)],
            &[equal(1, libc::SIOCSIFMTU as u32)],
        ]),
        Allow::seen("ioctl", libc::SYS_ioctl, "netd_xdp", "the queues or the driver of an interface")
            .only(&[&[equal(1, libc::SIOCETHTOOL as u32)]]),
        Allow::kept("ioctl", libc::SYS_ioctl, "identify a macvtap interface")
            .only(&[&[equal(1, libc::TUNGETIFF as u32)], &[equal(1, libc::SIOCGIFHWADDR as u32)]]),
        Allow::kept("read", libc::SYS_read, "device numbers of a macvtap, for an error message"),
        Allow::kept("lseek", libc::SYS_lseek, "device numbers of a macvtap, for an error message"),
        Allow::kept("futex", libc::SYS_futex, "a lock of the allocator"),
        Allow::kept("rt_sigreturn", libc::SYS_rt_sigreturn, "die of SIGSYS"),
    ],
};

/// The opener's calls to receive and answer requests.
pub const OPENER_REQUESTS: Part = Part {
    name: "requests",
    calls: &[
        Allow::seen("recvmsg", libc::SYS_recvmsg, "netd_port", "a request"),
        Allow::seen("ppoll", libc::SYS_ppoll, "netd_supervise", "check whether a client is left"),
        Allow::seen("sendmsg", libc::SYS_sendmsg, "netd_port", "an answer"),
        Allow::seen("sendto", libc::SYS_sendto, "netd_port", "report that it is ready").only(&[CONNECTED]),
    ],
};
