//! The sandbox tables of volt-netd's threads.

use volt_sandbox::allow::{Allow, Arg, Is, equal, masked};
use volt_sandbox::parts::{
    self, ABORT, ASKING, BACKTRACE, BY_DESCRIPTOR, CONNECTED, LOG_CALLS, MEMORY, OWN, SHARED, THREADS,
};
use volt_sandbox::role::{Part, Role};

/// A queue pair's thread.
pub(crate) static FRAMES: Role = Role {
    name: "frames",
    what: "moves the frames of a queue pair",
    parts: &[&parts::FRAMES, &parts::SOCKET_FRAMES, &MEMORY, &ABORT, &BACKTRACE],
};

/// The thread of the control queue's descriptors.
pub(crate) static CONTROL: Role = Role {
    name: "control",
    what: "reads and writes the descriptors of the control queue",
    parts: &[&parts::FRAMES, &MEMORY, &ABORT, &BACKTRACE],
};

/// The thread that inspects a front-end's descriptors.
pub(crate) static DESCRIPTORS: Role = Role {
    name: "descriptors",
    what: "inspects a front-end's descriptors, which can block it",
    parts: &[&QUESTIONS, &LOG_CALLS, &MEMORY, &ABORT, &BACKTRACE],
};

/// The metrics server's threads.
pub(crate) static METRICS: Role = Role {
    name: "metrics",
    what: "serves metrics, queries the status of the main thread or a worker",
    parts: &[&MESSAGES, &LOG_CALLS, &THREADS, &MEMORY, &ABORT, &BACKTRACE],
};

/// The log's thread.
pub(crate) static LOG: Role =
    Role { name: "log", what: "writes the log", parts: &[&LOG_CALLS, &MEMORY, &ABORT, &BACKTRACE] };

/// The main thread. It creates the others, so its list includes theirs.
pub(crate) static MAIN: Role = Role {
    name: "main",
    what: "front-end, control socket, supervisor, guest memory, the interface's settings",
    parts: &[
        &parts::FRAMES,
        &parts::SOCKET_FRAMES,
        &MESSAGES,
        &ASKING,
        &QUESTIONS,
        &GUEST_MEMORY,
        &INTERFACE,
        &DESCRIPTORS_OF_OWN,
        &SHARED_WORDS,
        &LOG_CALLS,
        &THREADS,
        &MEMORY,
        &ABORT,
        &BACKTRACE,
    ],
};

pub(super) static MESSAGES: Part = Part {
    name: "messages",
    calls: &[
        Allow::seen("recvmsg", libc::SYS_recvmsg, "netd_orders", "a message with descriptors"),
        Allow::seen("sendmsg", libc::SYS_sendmsg, "netd_handover", "an answer with descriptors"),
        Allow::seen("recvfrom", libc::SYS_recvfrom, "netd_orders", "check for messages"),
        Allow::seen("sendto", libc::SYS_sendto, "netd_orders", "an answer on a connection")
            .only(&[CONNECTED]),
        Allow::seen(
            "accept4",
            libc::SYS_accept4,
            "netd_orders",
            "accept a front-end or a client of the control socket",
        ),
        Allow::seen(
            "shutdown",
            libc::SYS_shutdown,
            "netd_metrics",
            "the end of an answer, or of a late hand-over",
        ),
        Allow::seen("setsockopt", libc::SYS_setsockopt, "netd_handover", "a client's time limit").only(&[
            &[equal(1, libc::SOL_SOCKET as u32), equal(2, libc::SO_RCVTIMEO as u32)],
            &[equal(1, libc::SOL_SOCKET as u32), equal(2, libc::SO_SNDTIMEO as u32)],
        ]),
        Allow::seen("ppoll", libc::SYS_ppoll, "netd_process", "wait for one descriptor"),
        Allow::seen("geteuid", libc::SYS_geteuid, "netd_handover", "check a client's user"),
        Allow::seen("getpid", libc::SYS_getpid, "netd_process", "the process ID in the status"),
    ],
};

pub(super) static QUESTIONS: Part = Part {
    name: "inspection of descriptors",
    calls: &[
        Allow::seen("statx", libc::SYS_statx, "netd_orders", "the type of a file").only(&[BY_DESCRIPTOR]),
        Allow::kept("newfstatat", libc::SYS_newfstatat, "the size of a file, with another C library")
            .only(&[&[masked(3, libc::AT_EMPTY_PATH as u32, libc::AT_EMPTY_PATH as u32)]]),
        Allow::seen("fstat", libc::SYS_fstat, "netd_orders", "the size of a file"),
        Allow::seen("fstatfs", libc::SYS_fstatfs, "netd_orders", "the type of a file's file system"),
        Allow::seen("getsockopt", libc::SYS_getsockopt, "netd_orders", "the type of a socket"),
        Allow::seen("fcntl", libc::SYS_fcntl, "netd_orders", "seals, size of a pipe, non-blocking mode")
            .only(&[
                &[equal(1, libc::F_GET_SEALS as u32)],
                &[equal(1, libc::F_GETPIPE_SZ as u32)],
                &[equal(1, libc::F_GETFL as u32)],
            ]),
    ],
};

pub(super) static GUEST_MEMORY: Part = Part {
    name: "guest memory",
    calls: &[
        Allow::seen("mmap", libc::SYS_mmap, "netd_orders", "map a region of the front-end's").only(&[SHARED])
    ],
};

pub(super) static INTERFACE: Part = Part {
    name: "the interface",
    calls: &[
        Allow::seen("ioctl", libc::SYS_ioctl, "netd_queues", "offloads, queues, link state, MTU").only(&[
            &[equal(1, libc::TUNSETOFFLOAD as u32)],
            &[equal(1, libc::TUNSETQUEUE as u32)],
            &[equal(1, libc::SIOCGIFFLAGS as u32)],
            &[equal(1, libc::SIOCGIFMTU as u32)],
            &[equal(1, libc::FIONBIO as u32)],
        ]),
        Allow::seen("ioctl", libc::SYS_ioctl, "netd_port", "the frame header of a reopened interface")
            .only(&[&[equal(1, libc::TUNSETVNETHDRSZ as u32)], &[equal(1, libc::TUNSETVNETLE as u32)]]),
        Allow::seen("pread64", libc::SYS_pread64, "netd_xdp", "the memory of a reopened interface"),
        Allow::seen("ioctl", libc::SYS_ioctl, "netd_filter", "the address of a macvtap, or by AF_XDP")
            .only(&[&[equal(1, libc::SIOCGIFHWADDR as u32)]]),
    ],
};

pub(super) static DESCRIPTORS_OF_OWN: Part = Part {
    name: "the daemon's own descriptors",
    calls: &[
        Allow::seen("epoll_create1", libc::SYS_epoll_create1, "netd_rings", "a queue pair's event loop"),
        Allow::seen(
            "timerfd_create",
            libc::SYS_timerfd_create,
            "netd_supervise",
            "the timer of a rate-limited pair",
        ),
        Allow::seen("eventfd2", libc::SYS_eventfd2, "netd_rings", "stop a queue pair"),
        Allow::seen("fcntl", libc::SYS_fcntl, "netd_rings", "non-blocking mode of a descriptor")
            .only(&[&[equal(1, libc::F_SETFL as u32)]]),
        Allow::seen("fcntl", libc::SYS_fcntl, "netd_handover", "duplicate a descriptor")
            .only(&[&[equal(1, libc::F_DUPFD_CLOEXEC as u32)]]),
        Allow::seen("tgkill", libc::SYS_tgkill, "netd_hostile_wire", "interrupt a blocked thread")
            .only(&[&[OWN]]),
        Allow::kept("nanosleep", libc::SYS_nanosleep, "a pause, with another C library"),
        Allow::seen("getrandom", libc::SYS_getrandom, "netd_filter", "a key of a flow table, a hash table's"),
    ],
};

pub(super) static SHARED_WORDS: Part = Part {
    name: "memory for other processes",
    calls: &[
        Allow::seen("memfd_create", libc::SYS_memfd_create, "netd_capture", "captured frames, counters")
            .only(&[&[equal(1, libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING)]]),
        Allow::seen(
            "prlimit64",
            libc::SYS_prlimit64,
            "netd_capture",
            "the limit of file sizes, before a memfd is created",
        )
        .only(&[&[Arg { index: 2, is: Is::Null }]]),
        Allow::seen("ftruncate", libc::SYS_ftruncate, "netd_capture", "the size of a memfd"),
        Allow::seen("fcntl", libc::SYS_fcntl, "netd_capture", "seal the size")
            .only(&[&[equal(1, libc::F_ADD_SEALS as u32)]]),
    ],
};
