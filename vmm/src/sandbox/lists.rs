//! The sandbox tables of volt-vmm's threads, and of its opener process.

use volt_sandbox::allow::{Allow, Arg, Is, equal};
use volt_sandbox::parts::{
    self, ABORT, ASKING, BACKTRACE, BY_DESCRIPTOR, CONNECTED, LOG_CALLS, MEMORY, OWN, SHARED, THREADS,
    UNIX_STREAM,
};
use volt_sandbox::role::{Part, Role};
use volt_sandbox::table::Table;

/// All roles, for `--print-sandbox` and the filters. The build script reads this file, too.
pub const TABLE: Table =
    Table(&[&MAIN, &VCPU, &FRAMES, &WORKER, &BACK_END, &SERIAL, &SIGNALS, &LOG, &OPENER]);

/// A vCPU's thread, which a hostile guest would take over first.
pub static VCPU: Role = Role {
    name: "vcpu",
    what: "runs the guest and carries out its accesses to devices",
    parts: &[&PROCESSOR, &TELLING, &TERMINAL, &MEMORY, &ABORT, &BACKTRACE],
};

/// A queue pair's thread.
pub static FRAMES: Role = Role {
    name: "frames",
    what: "moves the frames of a queue pair",
    parts: &[&parts::FRAMES, &parts::SOCKET_FRAMES, &TERMINAL, &MEMORY, &ABORT, &BACKTRACE],
};

/// The thread of any other kind of virtqueue.
pub static WORKER: Role = Role {
    name: "worker",
    what: "serves requests of a disk, the entropy device or a control queue",
    parts: &[&REQUESTS, &IMAGE, &parts::FRAMES, &TERMINAL, &MEMORY, &ABORT, &BACKTRACE],
};

/// The thread between a device and its vhost-user back-end, and the thread of its timer.
pub static BACK_END: Role = Role {
    name: "back-end",
    what: "talks to a vhost-user back-end, and reconnects",
    parts: &[
        &parts::FRAMES,
        &CONNECTION,
        &ASKING,
        &DESCRIPTORS,
        &THREADS,
        &TERMINAL,
        &MEMORY,
        &ABORT,
        &BACKTRACE,
    ],
};

/// The thread that writes the output of the guest's serial port.
pub static SERIAL: Role = Role {
    name: "serial",
    what: "writes the output of the guest's serial port",
    parts: &[&OUTPUT, &TELLING, &parts::FRAMES, &TERMINAL, &MEMORY, &ABORT, &BACKTRACE],
};

/// The thread that takes signals.
pub static SIGNALS: Role = Role {
    name: "signals",
    what: "takes the signals that end or stop the process",
    parts: &[&SIGNAL, &TELLING, &TERMINAL, &MEMORY, &ABORT, &BACKTRACE],
};

/// The log's thread.
pub static LOG: Role = Role {
    name: "log",
    what: "writes the log",
    parts: &[&LOG_CALLS, &TERMINAL, &MEMORY, &ABORT, &BACKTRACE],
};

/// The main thread, and the threads that serve the API, start and reset devices, and watch interfaces. They
/// create each other and all other threads, and therefore have all system calls of those.
pub static MAIN: Role = Role {
    name: "main",
    what: "runs the console and the API, and starts, adds and removes devices",
    parts: &[
        &parts::FRAMES,
        &parts::SOCKET_FRAMES,
        &PROCESSOR,
        &SERVING,
        &CONNECTION,
        &ASKING,
        &REQUESTS,
        &IMAGE,
        &NEW_IMAGE,
        &INTERFACE,
        &COUNTERS,
        &PAIRS,
        &VHOST,
        &DESCRIPTORS,
        &SIGNAL,
        &TELLING,
        &LOG_CALLS,
        &TERMINAL,
        &THREADS,
        &MEMORY,
        &ABORT,
        &BACKTRACE,
    ],
};

/// The opener.
pub static OPENER: Role = Role {
    name: "opener",
    what: "opens disks, interfaces and the sockets of back-ends, removes the API's socket",
    parts: &[&parts::OPENER_REQUESTS, &parts::OPENER_INTERFACES, &OPENING, &MEMORY, &ABORT],
};

/// ioctls of KVM (`linux/kvm.h`).
const KVM_RUN: u32 = 0xae80;
const KVM_GET_REGS: u32 = 0x8090_ae81;
const KVM_KVMCLOCK_CTRL: u32 = 0xaead;
const KVM_IRQ_LINE: u32 = 0x4008_ae61;
const KVM_SET_GSI_ROUTING: u32 = 0x4008_ae6a;
const KVM_IRQFD: u32 = 0x4020_ae76;
const KVM_IOEVENTFD: u32 = 0x4040_ae79;
/// ioctls of vhost (`linux/vhost.h`).
const VHOST_SET_OWNER: u32 = 0xaf01;
const VHOST_GET_FEATURES: u32 = 0x8008_af00;
const VHOST_SET_FEATURES: u32 = 0x4008_af00;
const VHOST_SET_MEM_TABLE: u32 = 0x4008_af03;
const VHOST_SET_VRING_NUM: u32 = 0x4008_af10;
const VHOST_SET_VRING_ADDR: u32 = 0x4028_af11;
const VHOST_SET_VRING_BASE: u32 = 0x4008_af12;
const VHOST_SET_VRING_KICK: u32 = 0x4008_af20;
const VHOST_SET_VRING_CALL: u32 = 0x4008_af21;
const VHOST_NET_SET_BACKEND: u32 = 0x4008_af30;
/// `TCSETS2` and similar ioctls of rustix.
const TCGETS2: u32 = 0x802c_542a;
const TCSETS2: u32 = 0x402c_542b;
const BLKROGET: u32 = 0x125e;

static PROCESSOR: Part = Part {
    name: "the guest",
    calls: &[
        Allow::seen(
            "ioctl",
            libc::SYS_ioctl,
            "machine",
            "running it, its interrupts, its state at a failure",
        )
        .only(&[
            &[equal(1, KVM_RUN)],
            &[equal(1, KVM_GET_REGS)],
            &[equal(1, KVM_KVMCLOCK_CTRL)],
            &[equal(1, KVM_IRQ_LINE)],
            &[equal(1, KVM_IOEVENTFD)],
        ]),
        Allow::seen("ioctl", libc::SYS_ioctl, "lab_net", "interrupts of its devices")
            .only(&[&[equal(1, KVM_SET_GSI_ROUTING)], &[equal(1, KVM_IRQFD)]]),
        Allow::seen("getrusage", libc::SYS_getrusage, "machine", "whether it makes progress"),
        Allow::seen("rt_sigreturn", libc::SYS_rt_sigreturn, "machine", "the end of a signal handler"),
    ],
};

static TELLING: Part = Part {
    name: "telling other threads",
    calls: &[
        Allow::seen("futex", libc::SYS_futex, "machine", "locks, and waiting for another thread"),
        Allow::seen("write", libc::SYS_write, "machine", "an eventfd"),
        Allow::seen("read", libc::SYS_read, "machine", "an eventfd"),
        Allow::seen("getpid", libc::SYS_getpid, "machine", "the number of this process"),
        Allow::seen("tgkill", libc::SYS_tgkill, "machine", "a thread of this process").only(&[&[OWN]]),
        Allow::kept("restart_syscall", libc::SYS_restart_syscall, "a stop and continuation during a wait"),
        Allow::kept("sched_yield", libc::SYS_sched_yield, "waiting for a lock"),
    ],
};

static TERMINAL: Part = Part {
    name: "restoring the terminal",
    calls: &[
        Allow::seen("ioctl", libc::SYS_ioctl, "machine", "its settings, and its foreground process").only(&[
            &[equal(1, libc::TCGETS as u32)],
            &[equal(1, TCGETS2)],
            &[equal(1, TCSETS2)],
            &[equal(1, libc::TIOCGPGRP as u32)],
        ]),
        Allow::kept("ioctl", libc::SYS_ioctl, "its settings, for a kernel without TCSETS2")
            .only(&[&[equal(1, libc::TCSETS as u32)]]),
        Allow::seen("getpgrp", libc::SYS_getpgrp, "machine", "its foreground process"),
    ],
};

static OUTPUT: Part = Part {
    name: "standard output",
    // A trace cannot tell this wait from one that the end interrupts.
    calls: &[Allow::kept("ppoll", libc::SYS_ppoll, "waiting for a slow reader")],
};

static REQUESTS: Part = Part {
    name: "a driver's requests",
    calls: &[
        Allow::seen("getrandom", libc::SYS_getrandom, "lab_vmm", "the entropy device"),
        Allow::seen("ppoll", libc::SYS_ppoll, "machine", "waiting for a notification"),
    ],
};

static IMAGE: Part = Part {
    name: "a disk",
    calls: &[
        Allow::seen("preadv", libc::SYS_preadv, "lab_vmm", "reading sectors"),
        Allow::seen("pwritev", libc::SYS_pwritev, "machine", "writing sectors"),
        Allow::kept("pwrite64", libc::SYS_pwrite64, "zeroes, if the file system makes no holes"),
        Allow::seen("fdatasync", libc::SYS_fdatasync, "machine", "a flush"),
        Allow::seen("fallocate", libc::SYS_fallocate, "lab_vmm", "discarded sectors"),
    ],
};

static NEW_IMAGE: Part = Part {
    name: "adding a disk",
    calls: &[
        Allow::seen("statx", libc::SYS_statx, "machine", "its kind of file").only(&[BY_DESCRIPTOR]),
        Allow::seen(
            "fstatfs",
            libc::SYS_fstatfs,
            "machine",
            "whether its file system has both kinds of locks",
        ),
        Allow::seen("flock", libc::SYS_flock, "machine", "a lock"),
        Allow::seen("lseek", libc::SYS_lseek, "machine", "its length"),
        Allow::seen("pread64", libc::SYS_pread64, "machine", "its format"),
        Allow::seen("fcntl", libc::SYS_fcntl, "machine", "locks, and whether it is writable").only(&[
            &[equal(1, libc::F_OFD_SETLK as u32)],
            &[equal(1, libc::F_OFD_GETLK as u32)],
            &[equal(1, libc::F_GETFL as u32)],
        ]),
        Allow::kept("ioctl", libc::SYS_ioctl, "whether a block device is writable")
            .only(&[&[equal(1, BLKROGET)]]),
    ],
};

static INTERFACE: Part = Part {
    name: "adding an interface",
    calls: &[
        Allow::seen("socket", libc::SYS_socket, "lab_hotplug", "a socket for ioctls about it")
            .only(&[UNIX_STREAM]),
        Allow::seen("ioctl", libc::SYS_ioctl, "lab_hotplug", "its frame header, index and MTU").only(&[
            &[equal(1, libc::TUNSETVNETHDRSZ as u32)],
            &[equal(1, libc::TUNSETVNETLE as u32)],
            &[equal(1, libc::SIOCGIFINDEX as u32)],
            &[equal(1, libc::SIOCGIFMTU as u32)],
            &[equal(1, libc::FIONBIO as u32)],
        ]),
        Allow::kept("ioctl", libc::SYS_ioctl, "whether a macvtap is up, and its address")
            .only(&[&[equal(1, libc::SIOCGIFFLAGS as u32)], &[equal(1, libc::SIOCGIFHWADDR as u32)]]),
        Allow::kept("getrandom", libc::SYS_getrandom, "a random MAC address"),
    ],
};

static COUNTERS: Part = Part {
    name: "memory of a device's counters",
    calls: &[
        Allow::seen("prlimit64", libc::SYS_prlimit64, "lab_hotplug", "the limit of file sizes")
            .only(&[&[Arg { index: 2, is: Is::Null }]]),
        Allow::seen("memfd_create", libc::SYS_memfd_create, "lab_hotplug", "a file in memory"),
        Allow::seen("ftruncate", libc::SYS_ftruncate, "lab_hotplug", "its length"),
        Allow::seen("fcntl", libc::SYS_fcntl, "lab_hotplug", "its seals")
            .only(&[&[equal(1, libc::F_ADD_SEALS as u32)]]),
        Allow::seen("mmap", libc::SYS_mmap, "lab_hotplug", "the memory").only(&[SHARED]),
    ],
};

static PAIRS: Part = Part {
    name: "an interface in use",
    calls: &[Allow::seen("ioctl", libc::SYS_ioctl, "lab_net", "its offloads and queues")
        .only(&[&[equal(1, libc::TUNSETOFFLOAD as u32)], &[equal(1, libc::TUNSETQUEUE as u32)]])],
};

static VHOST: Part = Part {
    name: "vhost-net",
    calls: &[Allow::seen("ioctl", libc::SYS_ioctl, "lab_hotplug", "its rings, memory and interface").only(
        &[
            &[equal(1, VHOST_SET_OWNER)],
            &[equal(1, VHOST_GET_FEATURES)],
            &[equal(1, VHOST_SET_FEATURES)],
            &[equal(1, VHOST_SET_MEM_TABLE)],
            &[equal(1, VHOST_SET_VRING_NUM)],
            &[equal(1, VHOST_SET_VRING_ADDR)],
            &[equal(1, VHOST_SET_VRING_BASE)],
            &[equal(1, VHOST_SET_VRING_KICK)],
            &[equal(1, VHOST_SET_VRING_CALL)],
            &[equal(1, VHOST_NET_SET_BACKEND)],
        ],
    )],
};

static SERVING: Part = Part {
    name: "the API",
    calls: &[
        Allow::seen("accept4", libc::SYS_accept4, "machine", "a client"),
        Allow::seen("getsockopt", libc::SYS_getsockopt, "machine", "the client's user"),
        Allow::kept("geteuid", libc::SYS_geteuid, "the allowed user, for the answer to another one"),
    ],
};

static CONNECTION: Part = Part {
    name: "a connection",
    calls: &[
        Allow::seen("recvmsg", libc::SYS_recvmsg, "machine", "a message with descriptors"),
        Allow::seen("sendmsg", libc::SYS_sendmsg, "machine", "a message with descriptors"),
        Allow::seen("recvfrom", libc::SYS_recvfrom, "conform", "a request of the back-end"),
        Allow::kept("sendto", libc::SYS_sendto, "an answer to it, with another C library").only(&[CONNECTED]),
        Allow::seen("shutdown", libc::SYS_shutdown, "machine", "the end of a connection"),
        Allow::seen(
            "socketpair",
            libc::SYS_socketpair,
            "lab_hotplug",
            "the channel for a back-end's requests",
        )
        .only(&[UNIX_STREAM]),
        Allow::seen("ppoll", libc::SYS_ppoll, "machine", "waiting for either side"),
        Allow::seen("ioctl", libc::SYS_ioctl, "machine", "whether a connection blocks")
            .only(&[&[equal(1, libc::FIONBIO as u32)]]),
    ],
};

static DESCRIPTORS: Part = Part {
    name: "own descriptors",
    calls: &[
        Allow::seen("epoll_create1", libc::SYS_epoll_create1, "machine", "the wait of a thread"),
        Allow::seen("timerfd_create", libc::SYS_timerfd_create, "lab_net", "the timer of a rate limit"),
        Allow::seen("eventfd2", libc::SYS_eventfd2, "machine", "notifications of a thread"),
        Allow::seen("fstat", libc::SYS_fstat, "machine", "the kind of a descriptor"),
        Allow::seen("fcntl", libc::SYS_fcntl, "machine", "copies, and whether a descriptor blocks").only(&[
            &[equal(1, libc::F_DUPFD_CLOEXEC as u32)],
            &[equal(1, libc::F_GETFL as u32)],
            &[equal(1, libc::F_SETFL as u32)],
        ]),
    ],
};

static SIGNAL: Part = Part {
    name: "signals",
    calls: &[
        Allow::seen("rt_sigtimedwait", libc::SYS_rt_sigtimedwait, "machine", "waiting for a signal"),
        Allow::kept("nanosleep", libc::SYS_nanosleep, "a pause, with another C library"),
    ],
};

static OPENING: Part = Part {
    name: "other files, and the API's socket",
    calls: &[
        Allow::seen("openat2", libc::SYS_openat2, "machine", "a file below an allowed directory"),
        Allow::seen("statx", libc::SYS_statx, "machine", "the kind of a file"),
        Allow::kept("getcwd", libc::SYS_getcwd, "the working directory, for relative paths"),
        Allow::seen("unlink", libc::SYS_unlink, "machine", "the API's socket"),
        Allow::seen("connect", libc::SYS_connect, "lab_hotplug", "a back-end"),
        Allow::seen("fcntl", libc::SYS_fcntl, "machine", "whether a descriptor blocks")
            .only(&[&[equal(1, libc::F_SETFL as u32)]]),
    ],
};
