//! Why an interface cannot be used by AF_XDP, with the remedy.

use std::io;

use thiserror::Error;

use crate::shared_words::WordsError;

/// The reason why an interface cannot be used by AF_XDP, with the remedy.
#[derive(Debug, Error)]
pub enum XdpError {
    /// No such interface.
    #[error("there is no interface {0} in this network namespace")]
    Missing(String),
    /// This process may not do it.
    #[error(
        "{0}: AF_XDP needs CAP_NET_RAW, CAP_NET_ADMIN and CAP_BPF, outside of any container: run as root, or \
         let 'volt-netd xdp-helper {0}' open the interface and start volt-netd as another user"
    )]
    Permission(String),
    /// The kernel does not know AF_XDP.
    #[error(
        "this kernel has no AF_XDP sockets that another process can take over: it needs CONFIG_XDP_SOCKETS, \
         and Linux 6.4 or later"
    )]
    Kernel(#[source] io::Error),
    /// The memory would exceed the limit for locked memory.
    #[error(
        "{name}: the limit for locked memory is too low for {kib} KiB: raise it with 'ulimit -l', or with \
         LimitMEMLOCK= in a unit"
    )]
    LockedMemory {
        /// The interface.
        name: String,
        /// Memory of one queue.
        kib: u64,
    },
    /// The interface has fewer queues.
    #[error("{name} has no queue {queue}, but {queues} from 0: choose another, or see 'ethtool -L {name}'")]
    Queue {
        /// The interface.
        name: String,
        /// Its queues.
        queues: u32,
        /// The queue that was asked for.
        queue: u32,
    },
    /// Another socket has the queue.
    #[error("queue {queue} of {name} is busy: another program, perhaps another volt-netd, has it")]
    Busy {
        /// The interface.
        name: String,
        /// The queue.
        queue: u32,
    },
    /// The interface has a program already.
    #[error(
        "{0} has an XDP program already: end the process that attached it, or, if none has, 'ip link set dev \
         {0} xdp off'"
    )]
    Occupied(String),
    /// The interface's driver cannot do it.
    #[error("the driver of {name} does not support {what}: use mode={other}")]
    Driver {
        /// The interface.
        name: String,
        /// What it does not support.
        what: &'static str,
        /// The mode that needs less of it.
        other: &'static str,
        /// The reason.
        source: io::Error,
    },
    /// The interface's MTU is too large.
    #[error("{name} has an MTU of {mtu}: AF_XDP needs {most} or less: 'ip link set {name} mtu {most}'")]
    Mtu {
        /// The interface.
        name: String,
        /// Its MTU.
        mtu: u32,
        /// The largest MTU.
        most: u32,
    },
    /// Its driver refuses the program because of its settings.
    #[error(
        "the driver of {0} refuses an XDP program: a veth needs a peer with an MTU of at most 3498 and no \
         more transmit queues than {0} has receive queues; other drivers have limits of their own"
    )]
    Settings(String, #[source] io::Error),
    /// A descriptor that is something else.
    #[error("descriptor {0} is not the link of an XDP program: pass what 'volt-netd xdp-helper' opened")]
    NotLink(i32),
    /// The interface of the descriptors is in another namespace.
    #[error("interface number {0} is not in this network namespace")]
    Elsewhere(u32),
    /// A descriptor that is something else.
    #[error("the memory of an AF_XDP socket: pass what 'volt-netd xdp-helper' opened")]
    Memory(#[source] WordsError),
    /// The system refused something else.
    #[error("{name}: {doing} failed")]
    System {
        /// The interface.
        name: String,
        /// The operation.
        doing: &'static str,
        /// The reason.
        source: io::Error,
    },
}
