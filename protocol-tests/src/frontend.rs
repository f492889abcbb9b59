//! A scripted front-end: each vhost-user request as a method, in any order, valid or not.
//!
//! [`Frontend`] keeps only one choice as state: whether requests carry NEED_REPLY
//! ([`Frontend::want_replies`]). The script decides what to send, and when; [`crate::session`] has the usual
//! script. Bodies are those of the specification's "Message types".

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::dirty_log::DirtyLog;
use crate::memory::{GuestMemory, RegionSpec};
use crate::ring::Layout;
use crate::wire::{Channel, Message, WireError, flags, longs, request, request_name, words};

/// Bit 8 of the `u64` of SET_VRING_KICK, CALL and ERR: no descriptor follows.
pub const NO_FD: u64 = 1 << 8;

/// Flag of SET_VRING_ADDR: writes to the used ring are logged.
pub const VRING_F_LOG: u32 = 1;

/// A connection to a back-end.
#[derive(Debug)]
pub struct Frontend {
    channel: Channel,
    need_reply: bool,
}

impl Frontend {
    /// Takes a connected socket.
    pub fn new(socket: UnixStream) -> Frontend {
        Frontend { channel: Channel::new(socket), need_reply: false }
    }

    /// Connects to a back-end that listens, or that will within `patience`.
    pub fn connect(path: &Path, patience: Duration) -> Result<Frontend, WireError> {
        let deadline = Instant::now() + patience;
        loop {
            match UnixStream::connect(path) {
                Ok(socket) => return Ok(Frontend::new(socket)),
                Err(error) if Instant::now() > deadline => return Err(error.into()),
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) =>
                {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Returns the channel, for raw bytes and time-outs.
    pub fn channel(&mut self) -> &mut Channel {
        &mut self.channel
    }

    /// Sets whether requests without a reply of their own carry NEED_REPLY and wait for status 0.
    pub fn want_replies(&mut self, want: bool) {
        self.need_reply = want;
    }

    /// Sends a request without a reply of its own; with NEED_REPLY if replies are wanted.
    pub fn tell(&self, request: u32, body: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), WireError> {
        if !self.need_reply {
            return self.channel.send(request, 0, body, fds);
        }
        match self.tell_acked(request, body, fds)? {
            0 => Ok(()),
            status => Err(WireError::Refused { request: request_name(request), status }),
        }
    }

    /// Sends a request with NEED_REPLY and returns the status.
    pub fn tell_acked(&self, request: u32, body: &[u8], fds: &[BorrowedFd<'_>]) -> Result<u64, WireError> {
        self.channel.send(request, flags::NEED_REPLY, body, fds)?;
        self.channel.recv_reply(request)?.u64()
    }

    /// Sends a request with a reply of its own and returns the reply.
    pub fn ask(&self, request: u32, body: &[u8], fds: &[BorrowedFd<'_>]) -> Result<Message, WireError> {
        self.channel.send(request, 0, body, fds)?;
        self.channel.recv_reply(request)
    }

    /// Sends a harmless request, to know that all previous messages were processed.
    pub fn sync(&self) -> Result<(), WireError> {
        self.get_features().map(drop)
    }

    /// GET_FEATURES.
    pub fn get_features(&self) -> Result<u64, WireError> {
        self.ask(request::GET_FEATURES, &[], &[])?.u64()
    }

    /// SET_FEATURES.
    pub fn set_features(&self, features: u64) -> Result<(), WireError> {
        self.tell(request::SET_FEATURES, &longs(&[features]), &[])
    }

    /// GET_PROTOCOL_FEATURES.
    pub fn get_protocol_features(&self) -> Result<u64, WireError> {
        self.ask(request::GET_PROTOCOL_FEATURES, &[], &[])?.u64()
    }

    /// SET_PROTOCOL_FEATURES.
    pub fn set_protocol_features(&self, features: u64) -> Result<(), WireError> {
        self.tell(request::SET_PROTOCOL_FEATURES, &longs(&[features]), &[])
    }

    /// SET_OWNER.
    pub fn set_owner(&self) -> Result<(), WireError> {
        self.tell(request::SET_OWNER, &[], &[])
    }

    /// RESET_OWNER.
    pub fn reset_owner(&self) -> Result<(), WireError> {
        self.tell(request::RESET_OWNER, &[], &[])
    }

    /// RESET_DEVICE.
    pub fn reset_device(&self) -> Result<(), WireError> {
        self.tell(request::RESET_DEVICE, &[], &[])
    }

    /// GET_QUEUE_NUM.
    pub fn get_queue_num(&self) -> Result<u64, WireError> {
        self.ask(request::GET_QUEUE_NUM, &[], &[])?.u64()
    }

    /// GET_MAX_MEM_SLOTS.
    pub fn get_max_mem_slots(&self) -> Result<u64, WireError> {
        self.ask(request::GET_MAX_MEM_SLOTS, &[], &[])?.u64()
    }

    /// SET_MEM_TABLE with all regions of `mem`.
    pub fn set_mem_table(&self, mem: &GuestMemory) -> Result<(), WireError> {
        self.tell(request::SET_MEM_TABLE, &mem_table(&mem.specs()), &mem.fds())
    }

    /// ADD_MEM_REG.
    pub fn add_mem_reg(&self, spec: &RegionSpec, file: BorrowedFd<'_>) -> Result<(), WireError> {
        self.tell(request::ADD_MEM_REG, &single_region(spec), &[file])
    }

    /// REM_MEM_REG.
    pub fn rem_mem_reg(&self, spec: &RegionSpec) -> Result<(), WireError> {
        self.tell(request::REM_MEM_REG, &single_region(spec), &[])
    }

    /// SET_VRING_NUM.
    pub fn set_vring_num(&self, vring: u32, size: u32) -> Result<(), WireError> {
        self.tell(request::SET_VRING_NUM, &words(&[vring, size]), &[])
    }

    /// SET_VRING_BASE.
    pub fn set_vring_base(&self, vring: u32, base: u32) -> Result<(), WireError> {
        self.tell(request::SET_VRING_BASE, &words(&[vring, base]), &[])
    }

    /// GET_VRING_BASE, which stops the vring.
    pub fn get_vring_base(&self, vring: u32) -> Result<u32, WireError> {
        let [index, base] = self.ask(request::GET_VRING_BASE, &words(&[vring, 0]), &[])?.words()?;
        if index != vring {
            return Err(WireError::Unexpected(format!(
                "GET_VRING_BASE of vring {vring} answered for {index}"
            )));
        }
        Ok(base)
    }

    /// SET_VRING_ADDR for a ring at `layout`, with the front-end's own addresses.
    pub fn set_vring_addr(&self, vring: u32, mem: &GuestMemory, layout: &Layout) -> Result<(), WireError> {
        self.set_vring_addr_raw(
            vring,
            0,
            mem.user(layout.desc),
            mem.user(layout.used),
            mem.user(layout.avail),
        )
    }

    /// SET_VRING_ADDR with the fields of the message unchanged.
    pub fn set_vring_addr_raw(
        &self,
        vring: u32,
        ring_flags: u32,
        desc: u64,
        used: u64,
        avail: u64,
    ) -> Result<(), WireError> {
        let body = [words(&[vring, ring_flags]), longs(&[desc, used, avail, 0])].concat();
        self.tell(request::SET_VRING_ADDR, &body, &[])
    }

    /// SET_VRING_ADDR for a ring at `layout` whose used ring is logged at guest address `log`. `None`: it is
    /// not logged.
    pub fn set_vring_addr_logged(
        &self,
        vring: u32,
        mem: &GuestMemory,
        layout: &Layout,
        log: Option<u64>,
    ) -> Result<(), WireError> {
        let addresses = [mem.user(layout.desc), mem.user(layout.used), mem.user(layout.avail)];
        let head = words(&[vring, if log.is_some() { VRING_F_LOG } else { 0 }]);
        let body = [head, longs(&addresses), longs(&[log.unwrap_or(0)])].concat();
        self.tell(request::SET_VRING_ADDR, &body, &[])
    }

    /// SET_LOG_BASE, whose reply comes without NEED_REPLY. Returns the reply.
    pub fn set_log_base(&self, log: &DirtyLog) -> Result<Message, WireError> {
        self.ask(request::SET_LOG_BASE, &log.body(), &[log.file()])
    }

    /// SEND_RARP: announces `mac`.
    pub fn send_rarp(&self, mac: [u8; 6]) -> Result<(), WireError> {
        let [a, b, c, d, e, f] = mac;
        self.tell(request::SEND_RARP, &[a, b, c, d, e, f, 0, 0], &[])
    }

    /// SET_VRING_ENABLE.
    pub fn set_vring_enable(&self, vring: u32, enable: bool) -> Result<(), WireError> {
        self.tell(request::SET_VRING_ENABLE, &words(&[vring, u32::from(enable)]), &[])
    }

    /// SET_VRING_KICK, CALL or ERR (`which`), with a descriptor or [`NO_FD`].
    pub fn set_vring_fd(&self, which: u32, vring: u32, fd: Option<impl AsFd>) -> Result<(), WireError> {
        match fd {
            Some(fd) => self.tell(which, &longs(&[u64::from(vring)]), &[fd.as_fd()]),
            None => self.tell(which, &longs(&[u64::from(vring) | NO_FD]), &[]),
        }
    }

    /// SET_BACKEND_REQ_FD, which has no body.
    pub fn set_backend_req_fd(&self, channel: impl AsFd) -> Result<(), WireError> {
        self.tell(request::SET_BACKEND_REQ_FD, &[], &[channel.as_fd()])
    }

    /// GET_CONFIG: `size` bytes from `offset`.
    pub fn get_config(&self, offset: u32, size: u32) -> Result<Vec<u8>, WireError> {
        let body = [words(&[offset, size, 0]), vec![0; size as usize]].concat();
        let reply = self.ask(request::GET_CONFIG, &body, &[])?;
        match reply.body.get(12..).filter(|bytes| bytes.len() == size as usize) {
            Some(bytes) => Ok(bytes.to_vec()),
            None => Err(reply.unexpected("a configuration of the requested size")),
        }
    }
}

/// Body of SET_MEM_TABLE ("Memory regions description").
pub fn mem_table(specs: &[RegionSpec]) -> Vec<u8> {
    let mut body = words(&[specs.len() as u32, 0]);
    body.extend(specs.iter().flat_map(region));
    body
}

/// Returns the four fields of one region.
pub fn region(spec: &RegionSpec) -> Vec<u8> {
    longs(&[spec.guest, spec.size, spec.user, spec.offset])
}

/// Body of ADD_MEM_REG and REM_MEM_REG ("Single memory region description").
pub fn single_region(spec: &RegionSpec) -> Vec<u8> {
    [longs(&[0]), region(spec)].concat()
}
