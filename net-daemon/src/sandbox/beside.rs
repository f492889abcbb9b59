//! The sandbox tables of supervisor and opener. Neither process maps guest memory.

use volt_sandbox::allow::{Allow, Arg, Is, equal};
use volt_sandbox::parts::{
    ABORT, ASKING, BACKTRACE, FORK, LOG_CALLS, MEMORY, OPENER_INTERFACES, OPENER_REQUESTS, SHARED, THREADS,
    UNIX_STREAM,
};
use volt_sandbox::role::{Part, Role};

use super::lists::{DESCRIPTORS_OF_OWN, GUEST_MEMORY, INTERFACE, MESSAGES, QUESTIONS, SHARED_WORDS};

/// The supervisor. Its workers inherit its list, so it includes theirs, and the calls to import a state.
pub(crate) static SUPERVISOR: Role = Role {
    name: "supervisor",
    what: "starts workers, holds their state, stores it with systemd",
    parts: &[
        &volt_sandbox::parts::FRAMES,
        &volt_sandbox::parts::SOCKET_FRAMES,
        &FORK,
        &IMPORT,
        &SYSTEMD,
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

/// The opener.
pub(crate) static OPENER: Role = Role {
    name: "opener",
    what: "reopens the interface, connects to a front-end, removes socket files, kills the supervisor",
    parts: &[&OPENER_REQUESTS, &OPENER_INTERFACES, &OPENING, &AF_XDP, &SUPERVISOR_END, &MEMORY, &ABORT],
};

static IMPORT: Part = Part {
    name: "the start of a worker",
    calls: &[
        Allow::seen(
            "socket",
            libc::SYS_socket,
            "netd_supervise",
            "link state changes, queries of link state",
        )
        .only(&[&[equal(0, libc::AF_NETLINK as u32)], UNIX_STREAM]),
        Allow::seen("bind", libc::SYS_bind, "netd_supervise", "link state changes"),
        Allow::seen("socketpair", libc::SYS_socketpair, "netd_supervise", "lines for signals and supervisor")
            .only(&[UNIX_STREAM]),
        Allow::seen("pread64", libc::SYS_pread64, "netd_supervise", "the last worker's counters"),
        Allow::seen("fcntl", libc::SYS_fcntl, "netd_supervise", "close-on-exec of a descriptor")
            .only(&[&[equal(1, libc::F_SETFD as u32)]]),
        Allow::seen("rt_sigaction", libc::SYS_rt_sigaction, "netd_supervise", "termination signals"),
        Allow::seen("prctl", libc::SYS_prctl, "netd_supervise", "the worker's own sandbox")
            .only(&[&[equal(0, libc::PR_CAPBSET_DROP as u32)], &[equal(0, libc::PR_CAP_AMBIENT as u32)]]),
        Allow::seen("prctl", libc::SYS_prctl, "netd_watchdog", "under systemd: die with the supervisor")
            .only(&[&[equal(0, libc::PR_SET_PDEATHSIG as u32)]]),
        Allow::seen("getppid", libc::SYS_getppid, "netd_watchdog", "the supervisor's process ID"),
        Allow::seen("capget", libc::SYS_capget, "netd_supervise", "the worker's own sandbox"),
        Allow::seen("capset", libc::SYS_capset, "netd_supervise", "the worker's own sandbox"),
        Allow::seen(
            "landlock_create_ruleset",
            libc::SYS_landlock_create_ruleset,
            "netd_supervise",
            "the worker's own sandbox",
        ),
        Allow::seen(
            "landlock_restrict_self",
            libc::SYS_landlock_restrict_self,
            "netd_supervise",
            "the worker's own sandbox",
        ),
    ],
};

static SYSTEMD: Part = Part {
    name: "systemd and the end of a worker",
    calls: &[
        Allow::seen("sendto", libc::SYS_sendto, "netd_systemd", "messages to systemd"),
        Allow::seen("pipe2", libc::SYS_pipe2, "netd_systemd", "wait until systemd has read them"),
        Allow::seen(
            "pwrite64",
            libc::SYS_pwrite64,
            "netd_systemd",
            "write the state to the memfd that systemd keeps",
        ),
        Allow::seen("wait4", libc::SYS_wait4, "netd_supervise", "a worker's exit status"),
        Allow::seen("kill", libc::SYS_kill, "netd_supervise", "tell a worker to end"),
        Allow::seen(
            "tgkill",
            libc::SYS_tgkill,
            "netd_signals",
            "interrupt a worker's thread that a descriptor blocks",
        ),
    ],
};

static SUPERVISOR_END: Part = Part {
    name: "the supervisor",
    calls: &[
        Allow::seen(
            "getppid",
            libc::SYS_getppid,
            "netd_supervise",
            "check that the parent is the supervisor",
        ),
        Allow::seen("kill", libc::SYS_kill, "netd_supervise", "kill a supervisor that does not answer")
            .only(&[&[equal(1, libc::SIGKILL as u32)]]),
    ],
};

static OPENING: Part = Part {
    name: "sockets, and options of a recreated interface",
    calls: &[
        Allow::seen("connect", libc::SYS_connect, "netd_process", "connect to a front-end"),
        Allow::kept("ioctl", libc::SYS_ioctl, "a recreated interface: --persist, --user")
            .only(&[&[equal(1, libc::TUNSETPERSIST as u32)], &[equal(1, libc::TUNSETOWNER as u32)]]),
        Allow::seen("statx", libc::SYS_statx, "netd_port", "whether a socket file is the daemon's own"),
        Allow::seen("unlink", libc::SYS_unlink, "netd_sockets", "remove a socket file"),
    ],
};

/// For `setsockopt`: the level of AF_XDP sockets.
const XDP_LEVEL: &[Arg] = &[equal(1, libc::SOL_XDP as u32)];

static AF_XDP: Part = Part {
    name: "AF_XDP",
    calls: &[
        Allow::seen("socket", libc::SYS_socket, "netd_xdp", "the sockets of a recreated interface")
            .only(&[&[equal(0, libc::AF_XDP as u32)]]),
        Allow::seen("setsockopt", libc::SYS_setsockopt, "netd_xdp", "its rings and memory")
            .only(&[XDP_LEVEL]),
        Allow::seen("getsockopt", libc::SYS_getsockopt, "netd_xdp", "where its rings are").only(&[XDP_LEVEL]),
        Allow::seen("bind", libc::SYS_bind, "netd_xdp", "a socket to its queue"),
        Allow::seen("memfd_create", libc::SYS_memfd_create, "netd_xdp", "the memory of frames")
            .only(&[&[equal(1, libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING)]]),
        Allow::seen("prlimit64", libc::SYS_prlimit64, "netd_xdp", "the limit of file sizes")
            .only(&[&[Arg { index: 2, is: Is::Null }]]),
        Allow::seen("ftruncate", libc::SYS_ftruncate, "netd_xdp", "the size of that memory"),
        Allow::seen("fcntl", libc::SYS_fcntl, "netd_xdp", "seal the size, duplicate a descriptor")
            .only(&[&[equal(1, libc::F_ADD_SEALS as u32)], &[equal(1, libc::F_DUPFD_CLOEXEC as u32)]]),
        Allow::seen("mmap", libc::SYS_mmap, "netd_xdp", "rings and memory").only(&[SHARED]),
        Allow::seen("timerfd_create", libc::SYS_timerfd_create, "netd_xdp", "the timer of a queue"),
        Allow::seen("bpf", libc::SYS_bpf, "netd_xdp", "the map, the program and its attachment").only(&[
            &[equal(0, MAP_CREATE)],
            &[equal(0, MAP_UPDATE)],
            &[equal(0, PROG_LOAD)],
            &[equal(0, LINK_CREATE)],
        ]),
        Allow::kept("clock_nanosleep", libc::SYS_clock_nanosleep, "wait for a busy queue"),
        Allow::kept("nanosleep", libc::SYS_nanosleep, "the same, with another C library"),
        Allow::seen("capget", libc::SYS_capget, "netd_process", "leave its capabilities without AF_XDP"),
        Allow::seen("capset", libc::SYS_capset, "netd_process", "leave its capabilities without AF_XDP"),
        Allow::seen("ioctl", libc::SYS_ioctl, "netd_xdp", "its MTU")
            .only(&[&[equal(1, libc::SIOCGIFMTU as u32)]]),
    ],
};

/// Commands of `bpf(2)`, from `linux/bpf.h`.
const MAP_CREATE: u32 = 0;
const MAP_UPDATE: u32 = 2;
const PROG_LOAD: u32 = 5;
const LINK_CREATE: u32 = 28;

#[cfg(test)]
mod tests {
    use volt_sandbox::allow::Is;
    use volt_sandbox::role::Verdict;

    use super::*;
    use crate::sandbox::lists::MAIN;

    /// Everything that a worker may do, its supervisor may do.
    #[test]
    fn a_supervisor_has_what_its_workers_have() {
        for allow in MAIN.calls() {
            let same = |own: &Allow| own.number == allow.number && own.only == allow.only;
            assert!(SUPERVISOR.calls().any(same), "{}", allow.name);
            let of_itself = allow.only.iter().flat_map(|all| all.iter()).any(|arg| arg.is == Is::OwnProcess);
            let judged = SUPERVISOR.judge(allow.number, &[2; 6], 1);
            assert!(!of_itself || judged == Verdict::Allowed, "{} of another process", allow.name);
        }
    }
}
