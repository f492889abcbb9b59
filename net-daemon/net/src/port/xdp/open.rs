//! Opens what AF_XDP needs of an interface: sockets with their memory, and the attached program.

use std::io;
use std::os::fd::OwnedFd;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::sockopt::{
    set_xdp_rx_ring_size, set_xdp_tx_ring_size, set_xdp_umem_completion_ring_size,
    set_xdp_umem_fill_ring_size, set_xdp_umem_reg,
};
use rustix::net::xdp::{SocketAddrXdp, SocketAddrXdpFlags, XdpUmemReg, XdpUmemRegFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with};
use volt_virtio::part::IoPart;

use super::program::{Place, SocketMap};
use super::queue::XdpQueue;
use super::umem::{RX, TX, Umem};
use super::{XdpError, XdpMode, XdpOptions};
use crate::port::{ETHERNET_LEN, link};
use crate::state::{FdId, Numbered};

/// How long a queue may be busy after its last socket was closed.
const FREED: Duration = Duration::from_secs(1);
/// Two VLAN tags, which do not count for the MTU.
const TAGS: u32 = 8;

/// The descriptors of an interface.
#[derive(Debug)]
pub struct XdpFds {
    /// For each queue pair, the socket and its memory.
    pub queues: Vec<(OwnedFd, OwnedFd)>,
    /// The attachment of the program.
    pub link: OwnedFd,
}

impl XdpFds {
    /// Returns them in one list.
    pub fn into_vec(self) -> Vec<OwnedFd> {
        let queues = self.queues.into_iter().flat_map(|(socket, memory)| [socket, memory]);
        queues.chain([self.link]).collect()
    }

    /// The inverse of [`XdpFds::into_vec`]. `None` for another number of descriptors.
    pub fn from_vec(mut fds: Vec<OwnedFd>) -> Option<XdpFds> {
        let link = fds.pop()?;
        let mut queues = Vec::new();
        let mut fds = fds.into_iter();
        while let Some(socket) = fds.next() {
            queues.push((socket, fds.next()?));
        }
        (!queues.is_empty()).then_some(XdpFds { queues, link })
    }
}

/// Opens sockets on the interface's queues, and attaches the program. From then on frames of these queues
/// wait for the guest.
///
/// # Errors
///
/// See [`XdpError`].
pub fn open_fds(options: &XdpOptions) -> Result<XdpFds, XdpError> {
    let name = &options.name;
    let index = link::index(name).map_err(|_| XdpError::Missing(name.clone()))?;
    let index = u32::try_from(index).map_err(|_| XdpError::Missing(name.clone()))?;
    let system = |doing| move |source| XdpError::System { name: name.clone(), doing, source };
    let end = options.queue.saturating_add(options.pairs as u32);
    if let Some(queues) = link::queues(name)
        && end > queues
    {
        return Err(XdpError::Queue { name: name.clone(), queues, queue: end - 1 });
    }
    let asks = link::socket().map_err(system("creating a socket"))?;
    let mtu = link::mtu(&asks, name).map_err(system("querying the MTU"))?.unsigned_abs();
    let most = Umem::longest_possible() - ETHERNET_LEN as u32 - TAGS;
    if mtu > most {
        return Err(XdpError::Mtu { name: name.clone(), mtu, most });
    }
    let longest = mtu + ETHERNET_LEN as u32 + TAGS;
    let map = SocketMap::new(end).map_err(|error| refused(name, "creating a map", error))?;
    // The place first: a card cannot do without copies for a program in the stack.
    let mut queues = Vec::new();
    let place = place(options.mode);
    for queue in options.queue..end {
        queues.push(open_socket(options, index, queue, longest, place)?);
    }
    for (queue, (socket, _)) in (options.queue..).zip(&queues) {
        map.set(queue, socket).map_err(|error| refused(name, "adding a socket to the map", error))?;
    }
    match attach(options, &map, index, mtu) {
        // The sockets may be without copies, which needs a program in the driver.
        Err(XdpError::Driver { .. }) if options.mode == XdpMode::Auto => {
            drop((map, queues));
            open_fds(&XdpOptions { mode: XdpMode::Generic, ..options.clone() })
        }
        link => Ok(XdpFds { queues, link: link? }),
    }
}

fn place(mode: XdpMode) -> Place {
    match mode {
        XdpMode::Generic => Place::Stack,
        _ => Place::Driver,
    }
}

/// Opens, prepares and binds a socket.
fn open_socket(
    options: &XdpOptions,
    index: u32,
    queue: u32,
    longest: u32,
    place: Place,
) -> Result<(OwnedFd, OwnedFd), XdpError> {
    let name = &options.name;
    let system = |doing| move |source| XdpError::System { name: name.clone(), doing, source };
    let socket = socket_with(AddressFamily::XDP, SocketType::RAW, SocketFlags::CLOEXEC, None);
    let socket = socket.map_err(|errno| match errno {
        Errno::PERM | Errno::ACCESS => XdpError::Permission(name.clone()),
        Errno::AFNOSUPPORT | Errno::PROTONOSUPPORT | Errno::INVAL => XdpError::Kernel(errno.into()),
        _ => system("creating a socket")(errno.into()),
    })?;
    let umem = Umem::new(queue, longest).map_err(XdpError::Memory)?;
    register(&socket, &umem).map_err(|errno| match errno {
        Errno::NOBUFS => XdpError::LockedMemory { name: name.clone(), kib: (umem.all().len() / 1024) as u64 },
        _ => system("registering the memory of frames")(errno.into()),
    })?;
    let sizes = set_xdp_umem_fill_ring_size(&socket, RX)
        .and_then(|()| set_xdp_umem_completion_ring_size(&socket, TX))
        .and_then(|()| set_xdp_rx_ring_size(&socket, RX))
        .and_then(|()| set_xdp_tx_ring_size(&socket, TX));
    sizes.map_err(|errno| system("creating rings")(errno.into()))?;
    let memory = umem.file().and_then(|file| file.try_clone().ok());
    let memory = memory.ok_or_else(|| system("duplicating a descriptor")(io::ErrorKind::Other.into()))?;
    let rings = XdpQueue::over(Numbered::fresh(socket), umem, FdId::fresh());
    let rings = rings.map_err(system("mapping the rings of a socket"))?;
    rings.fill_up();
    let copies = match (options.mode, place) {
        (XdpMode::Auto, Place::Driver) => SocketAddrXdpFlags::empty(),
        (XdpMode::ZeroCopy, _) => SocketAddrXdpFlags::XDP_ZEROCOPY,
        _ => SocketAddrXdpFlags::XDP_COPY,
    };
    let flags = SocketAddrXdpFlags::XDP_USE_NEED_WAKEUP | copies;
    bound(&rings, &SocketAddrXdp::new(flags, index, queue)).map_err(|errno| match errno {
        Errno::BUSY => XdpError::Busy { name: name.clone(), queue },
        Errno::OPNOTSUPP if options.mode == XdpMode::ZeroCopy => {
            let (what, other) = ("sockets without copies", "copy");
            XdpError::Driver { name: name.clone(), what, other, source: errno.into() }
        }
        _ => system("binding a socket")(errno.into()),
    })?;
    Ok((rings.into_socket(), memory.into()))
}

/// Binds a socket. Waits for a queue whose last socket was just closed: the kernel frees it later.
fn bound(socket: &XdpQueue, address: &SocketAddrXdp) -> Result<(), Errno> {
    let end = Instant::now() + FREED;
    loop {
        match bind(socket, address) {
            Err(Errno::BUSY) if Instant::now() < end => sleep(FREED / 50),
            bound => return bound,
        }
    }
}

fn register(socket: &OwnedFd, umem: &Umem) -> Result<(), Errno> {
    let all = umem.all();
    let [all] = IoPart::as_iovecs(std::slice::from_ref(&all)) else { unreachable!("one part") };
    let memory = XdpUmemReg {
        addr: all.iov_base as u64,
        len: all.iov_len as u64,
        chunk_size: umem.chunk(),
        headroom: 0,
        flags: XdpUmemRegFlags::empty(),
        tx_metadata_len: 0,
    };
    set_xdp_umem_reg(socket, memory)
}

/// Attaches the program.
fn attach(options: &XdpOptions, map: &SocketMap, index: u32, mtu: u32) -> Result<OwnedFd, XdpError> {
    let name = &options.name;
    map.attach(index, place(options.mode)).map_err(|error| match Errno::from_io_error(&error) {
        Some(Errno::BUSY | Errno::EXIST) => XdpError::Occupied(name.clone()),
        Some(Errno::OPNOTSUPP) if options.mode != XdpMode::Generic => {
            XdpError::Driver { name: name.clone(), what: "XDP", other: "generic", source: error }
        }
        Some(Errno::RANGE) if mtu > 1500 => XdpError::Mtu { name: name.clone(), mtu, most: 1500 },
        Some(Errno::RANGE | Errno::INVAL | Errno::NOSPC) => XdpError::Settings(name.clone(), error),
        _ => refused(name, "attaching the program", error),
    })
}

fn refused(name: &str, doing: &'static str, error: io::Error) -> XdpError {
    match error.kind() {
        io::ErrorKind::PermissionDenied => XdpError::Permission(name.to_owned()),
        _ => XdpError::System { name: name.to_owned(), doing, source: error },
    }
}
