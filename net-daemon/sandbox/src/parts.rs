//! Parts that roles of both programs share: moving frames, memory and the end of a thread, the end of the
//! process, making threads.
//!
//! Nothing in the first three makes a descriptor, takes a path, or reaches another process.

use libc::{EACCES, ENOSYS};

use crate::allow::{Allow, Arg, Is, equal, masked};
use crate::role::Part;

/// What [`Arg`] the number of a process is.
const OWN: Arg = Arg { index: 0, is: Is::OwnProcess };
/// Of `mmap` and `mprotect`: nothing that could be executed.
const NOT_EXECUTABLE: Arg = masked(2, libc::PROT_EXEC as u32, 0);
/// Of `mmap`: this process's alone, and no file's.
const PRIVATE: Arg = masked(
    3,
    (libc::MAP_SHARED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u32,
    (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u32,
);
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
        Allow::seen("rt_sigreturn", libc::SYS_rt_sigreturn, "netd_held", "being interrupted"),
        Allow::kept("restart_syscall", libc::SYS_restart_syscall, "being stopped and continued in a wait"),
        Allow::kept("clock_gettime", libc::SYS_clock_gettime, "a clock that has no vDSO"),
        Allow::seen(
            "timerfd_settime",
            libc::SYS_timerfd_settime,
            "netd_supervise",
            "waiting for what a limit allows",
        ),
        Allow::seen("poll", libc::SYS_poll, "netd_log", "whether standard error takes a line"),
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
        Allow::kept("mremap", libc::SYS_mremap, "a large block that grows"),
        Allow::seen("madvise", libc::SYS_madvise, "netd_rings", "the stack of a thread that ends"),
        Allow::seen("brk", libc::SYS_brk, "netd_rings", "memory of the allocator's"),
        Allow::seen("rt_sigprocmask", libc::SYS_rt_sigprocmask, "netd_rings", "the end of a thread"),
        Allow::seen("sigaltstack", libc::SYS_sigaltstack, "netd_rings", "the end of a thread"),
        Allow::seen("close", libc::SYS_close, "netd_rings", "what the thread waited by"),
        Allow::seen("fcntl", libc::SYS_fcntl, "netd_rings", "the standard library's check of what it closes")
            .only(&[&[equal(1, libc::F_GETFD as u32)]]),
        Allow::seen("exit", libc::SYS_exit, "netd_rings", "the end of a thread"),
        Allow::kept("gettid", libc::SYS_gettid, "a name for a thread that panics"),
    ],
};

/// The end of the process, by a panic or by the C library.
pub const ABORT: Part = Part {
    name: "panic and abort",
    calls: &[
        Allow::kept("getpid", libc::SYS_getpid, "abort() of an older C library"),
        Allow::kept("tgkill", libc::SYS_tgkill, "abort()").only(&[&[OWN]]),
        Allow::kept("tkill", libc::SYS_tkill, "abort() of another C library")
            .only(&[&[equal(1, libc::SIGABRT as u32)]]),
        Allow::seen("rt_sigaction", libc::SYS_rt_sigaction, "netd_signals", "abort(), and dying of SIGSYS")
            .only(&[&[equal(0, libc::SIGABRT as u32)], &[equal(0, libc::SIGSYS as u32)]]),
        Allow::seen("exit_group", libc::SYS_exit_group, "sandbox", "the end after a violation"),
    ],
};

/// What a backtrace asks for, which goes without names then.
pub const BACKTRACE: Part = Part {
    name: "backtrace",
    calls: &[
        Allow::seen("openat", libc::SYS_openat, "sandbox", "the program's file").refused(EACCES),
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
        Allow::seen("clock_nanosleep", libc::SYS_clock_nanosleep, "netd_held", "the same, for longer"),
    ],
};
