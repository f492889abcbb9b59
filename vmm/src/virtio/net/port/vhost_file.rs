//! One `/dev/vhost-net` file. It serves one queue pair, again and again.
//!
//! It is opened with its device, because neither a vCPU nor a confined thread may open it later. [`opener`]
//! opens it, so the crate's own type is not used, which opens its file itself.
#![expect(unsafe_code, reason = "an ioctl that the crate has for its own file only")]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use rustix::ioctl::{Setter, ioctl, opcode};
use vhost::VhostBackend;
use vhost::vhost_kern::VhostKernBackend;
use vhost::vhost_kern::vhost_binding::vhost_vring_file;
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};
use volt_virtio::features::Features;

use crate::opener;
use crate::virtio::net::port::error::VhostNetError;

/// `VHOST_NET_SET_BACKEND` of `linux/vhost.h`.
const SET_BACKEND: rustix::ioctl::Opcode = opcode::write::<vhost_vring_file>(0xaf, 0x30);
/// The descriptor that stands for no queue.
const NONE: RawFd = -1;

/// Adds the name of a request to its result.
pub(super) fn named<T>(request: &'static str, result: vhost::Result<T>) -> Result<T, VhostNetError> {
    result.map_err(|source| VhostNetError::Request { request, source })
}

/// An open file. This process is its owner.
pub(super) struct VhostFile {
    file: File,
    /// The guest's memory, once it is known.
    memory: GuestMemoryAtomic<GuestMemoryMmap>,
}

impl VhostFile {
    pub(super) fn open() -> Result<VhostFile, VhostNetError> {
        let file = opener::open_vhost_net().map_err(VhostNetError::Open)?;
        let opened = VhostFile { file: file.into(), memory: GuestMemoryAtomic::new(GuestMemoryMmap::new()) };
        named("SET_OWNER", opened.set_owner())?;
        Ok(opened)
    }

    /// Returns the features of the kernel's ring implementation.
    pub(super) fn ring_features(&self) -> Result<Features, VhostNetError> {
        named("GET_FEATURES", self.get_features()).map(Features::from_bits_retain)
    }

    /// Sets the memory of the rings.
    pub(super) fn set_memory(&self, memory: &GuestMemoryMmap) {
        let lock = self.memory.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        lock.replace(memory.clone());
    }

    /// Starts serving vring `at` (0 or 1) with `queue`, or stops it without one.
    pub(super) fn set_queue(&self, at: u32, queue: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let fd = queue.map_or(NONE, |queue| queue.as_raw_fd());
        // SAFETY: the request reads a `vhost_vring_file` and keeps nothing of it. The kernel checks the
        // descriptor, and holds its own reference to it.
        let set = unsafe { Setter::<SET_BACKEND, _>::new(vhost_vring_file { index: at, fd }) };
        // SAFETY: as above.
        Ok(unsafe { ioctl(self.file.as_fd(), set) }?)
    }
}

impl AsRawFd for VhostFile {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

impl VhostKernBackend for VhostFile {
    type AS = GuestMemoryAtomic<GuestMemoryMmap>;

    fn mem(&self) -> &Self::AS {
        &self.memory
    }
}
