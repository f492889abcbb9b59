//! A raw disk image: a regular file or a block device.
#![expect(unsafe_code, reason = "preadv and pwritev straight into guest memory")]

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use log::warn;
use rustix::fs::{FallocateFlags, OFlags, fallocate, fcntl_getfl};
use rustix::io::Errno;
use rustix::ioctl::{Getter, ioctl, opcode};
use thiserror::Error;
use vm_memory::VolatileSlice;

use crate::config::DiskConfig;
use crate::files::OpenError;
use crate::opener;
use crate::virtio::blk::lock::{LockError, lock};
use crate::virtio::blk::{SECTOR_SIZE, format};
use crate::virtio::chain::Buffers;

/// Length of a disk's identification (virtio 1.2, 5.2.6).
pub const ID_LEN: usize = 20;
/// Most pieces that the kernel accepts in one call (`UIO_MAXIOV`).
const IOV_MAX: usize = 1024;

/// Why an image cannot be used.
#[derive(Debug, Error)]
pub enum ImageError {
    /// The file is missing, there is no permission, or the like.
    #[error(
        "cannot open disk image {}{}",
        path.display(), if *read_only { "" } else { " for writing (append ',ro' for read-only)" }
    )]
    Open {
        /// The image.
        path: PathBuf,
        /// Whether it was to be opened for reading only.
        read_only: bool,
        /// The error of the system.
        #[source]
        source: io::Error,
    },
    /// It is a directory, a FIFO, a socket or a character device.
    #[error("{} is neither a file nor a block device", .0.display())]
    Kind(PathBuf),
    /// It is a block device that refuses writes, as after `blockdev --setro`.
    #[error(
        "block device {} is read-only: append ',ro', or make it writable (blockdev --setrw)",
        .0.display()
    )]
    ReadOnlyDevice(PathBuf),
    /// Another process has locked it.
    #[error(
        "disk image {} is in use by another process; two may share it only if both open it read-only \
         (',ro')",
        .0.display()
    )]
    InUse(PathBuf),
    /// This machine has it already.
    #[error(
        "disk image {} is the same as {}, which this machine has already; it may have it twice only if \
         both are read-only (',ro')", path.display(), other.display()
    )]
    Twice {
        /// The image.
        path: PathBuf,
        /// The path of the open image.
        other: PathBuf,
    },
    /// It is not raw: the guest would see the data of its format.
    #[error(
        "disk image {} looks like the format {format}, and volt-vmm supports only raw disks: append \
         ',format=raw' if it was a guest's raw disk before (the guest may have written that signature, so \
         never convert it); convert it (qemu-img convert -O raw) only if you created it in that format",
        path.display()
    )]
    Format {
        /// The image.
        path: PathBuf,
        /// The name of the format in `qemu-img`.
        format: &'static str,
    },
    /// It is shorter than a sector.
    #[error("disk image {} has {len} bytes, less than a sector of 512", path.display())]
    Empty {
        /// The image.
        path: PathBuf,
        /// Its length.
        len: u64,
    },
}

/// The images that this process has open: device and inode number, and path.
static OPEN: Mutex<Vec<((u64, u64), PathBuf)>> = Mutex::new(Vec::new());

fn open_images() -> MutexGuard<'static, Vec<((u64, u64), PathBuf)>> {
    OPEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Opens an image's file without further steps.
///
/// # Errors
///
/// See [`ImageError`].
pub fn open_file(config: &DiskConfig) -> Result<File, ImageError> {
    let DiskConfig { path, read_only, .. } = config.clone();
    opener::open_disk(&path, !read_only).map_err(|error| match error {
        OpenError::Kind => ImageError::Kind(path),
        OpenError::System(source) => ImageError::Open { path, read_only, source },
    })
}

/// An open, locked image.
pub struct DiskImage {
    file: File,
    inode: (u64, u64),
    path: PathBuf,
    len: u64,
    read_only: bool,
    id: [u8; ID_LEN],
}

impl DiskImage {
    /// Opens the image. Locks it against writers, and against readers, too, if it is writable.
    ///
    /// # Errors
    ///
    /// See [`ImageError`].
    pub fn open(config: &DiskConfig) -> Result<DiskImage, ImageError> {
        DiskImage::over(open_file(config)?, config)
    }

    /// Like [`DiskImage::open`], but for an open file. `config` has its name.
    ///
    /// # Errors
    ///
    /// See [`ImageError`].
    pub fn over(mut file: File, config: &DiskConfig) -> Result<DiskImage, ImageError> {
        let DiskConfig { path, read_only, raw } = config.clone();
        let failed = |source| ImageError::Open { path: path.clone(), read_only, source };
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() && !metadata.file_type().is_block_device() {
            return Err(ImageError::Kind(path));
        }
        let inode = (metadata.dev(), metadata.ino());
        let opened = fcntl_getfl(&file).map_err(|errno| failed(errno.into()))?;
        if !read_only && !opened.contains(OFlags::RDWR) {
            return Err(failed(Errno::ACCESS.into()));
        }
        if !read_only && metadata.file_type().is_block_device() && refuses_writes(&file) {
            return Err(ImageError::ReadOnlyDevice(path));
        }
        match lock(&file, !read_only) {
            Ok(()) => {}
            Err(LockError::Taken) => return Err(taken(path, inode)),
            // Some network file systems have no locks. That is no reason to refuse the image.
            Err(LockError::Unsupported(error)) => {
                warn!(
                    event = "disk_not_locked", path:% = path.display();
                    "disk {}: cannot be locked against use by another process: {error}", path.display()
                );
            }
        }
        // The metadata of a block device has no length, but its end has a position.
        let len = file.seek(SeekFrom::End(0)).map_err(failed)?;
        if len < SECTOR_SIZE {
            return Err(ImageError::Empty { path, len });
        }
        if let Some(format) = format::of(&file, len).map_err(failed)?.filter(|_| !raw) {
            return Err(ImageError::Format { path, format });
        }
        // Device and inode number, NUL-padded: different for each image, and constant for one.
        let text = format!("{:x}-{:x}", metadata.dev(), metadata.ino());
        let mut id = [0; ID_LEN];
        for (to, from) in id.iter_mut().zip(text.bytes()) {
            *to = from;
        }
        open_images().push((inode, path.clone()));
        Ok(DiskImage { file, inode, path, len, read_only, id })
    }

    /// Returns the number of whole sectors in the image.
    pub fn sectors(&self) -> u64 {
        self.len / SECTOR_SIZE
    }

    /// Returns the number of bytes after the last whole sector.
    pub fn surplus(&self) -> u64 {
        self.len % SECTOR_SIZE
    }

    /// Returns whether the image was opened for reading only.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Returns the identification of the disk for the guest.
    pub fn id(&self) -> [u8; ID_LEN] {
        self.id
    }

    /// Fills `data` from byte `offset` on.
    ///
    /// # Errors
    ///
    /// `UnexpectedEof` if the image was shortened, or the error of the system.
    pub fn read_at(&self, data: &Buffers<'_>, offset: u64) -> io::Result<()> {
        let fd = self.file.as_raw_fd();
        transfer(data.slices(), offset, io::ErrorKind::UnexpectedEof, |iovecs, offset| {
            // SAFETY: each iovec is a piece of mapped guest memory (see `transfer`), to which the guest, and
            // therefore the kernel, may write at any time. No reference to it exists.
            unsafe { libc::preadv(fd, iovecs.as_ptr(), iovecs.len() as libc::c_int, offset) }
        })
    }

    /// Writes `data` from byte `offset` on.
    ///
    /// # Errors
    ///
    /// An error of the system, such as ENOSPC. A part may be written.
    pub fn write_at(&self, data: &Buffers<'_>, offset: u64) -> io::Result<()> {
        let fd = self.file.as_raw_fd();
        transfer(data.slices(), offset, io::ErrorKind::WriteZero, |iovecs, offset| {
            // SAFETY: each iovec is a piece of mapped guest memory (see `transfer`), which is only read.
            unsafe { libc::pwritev(fd, iovecs.as_ptr(), iovecs.len() as libc::c_int, offset) }
        })
    }

    /// Makes all previous writes stable.
    ///
    /// # Errors
    ///
    /// An error of the system. Acknowledged writes may then be lost.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Frees a range. Its contents are undefined afterwards.
    ///
    /// # Errors
    ///
    /// An error of the system. An image that cannot free ranges causes no error, because a discard is a hint.
    pub fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.deallocate(offset, len).or_else(|errno| match errno {
            Errno::OPNOTSUPP | Errno::INVAL => Ok(()),
            errno => Err(errno.into()),
        })
    }

    /// Makes a range read as zeroes. With `unmap`, frees it if possible.
    ///
    /// # Errors
    ///
    /// An error of the system. A part may be zeroes.
    pub fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        let result = if unmap {
            self.deallocate(offset, len)
        } else {
            let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
            retry(|| fallocate(&self.file, flags, offset, len))
        };
        match result {
            Err(Errno::OPNOTSUPP | Errno::INVAL) => self.copy_zeroes(offset, len),
            result => Ok(result?),
        }
    }

    fn deallocate(&self, offset: u64, len: u64) -> Result<(), Errno> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        retry(|| fallocate(&self.file, flags, offset, len))
    }

    fn copy_zeroes(&self, mut offset: u64, mut len: u64) -> io::Result<()> {
        let zeroes = [0; 1 << 16];
        while len > 0 {
            let step = len.min(zeroes.len() as u64);
            self.file.write_all_at(&zeroes[..step as usize], offset)?;
            offset += step;
            len -= step;
        }
        Ok(())
    }
}

fn retry(call: impl Fn() -> Result<(), Errno>) -> Result<(), Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

/// Returns whether the kernel refuses writes to a block device that it has opened for writing.
fn refuses_writes(device: &File) -> bool {
    // `BLKROGET`. Its number includes no size.
    type ReadOnly = Getter<{ opcode::none(0x12, 94) }, libc::c_int>;
    // SAFETY: it writes an int.
    unsafe { ioctl(device, ReadOnly::new()) }.is_ok_and(|read_only| read_only != 0)
}

impl Drop for DiskImage {
    fn drop(&mut self) {
        let mut open = open_images();
        if let Some(at) = open.iter().position(|(inode, path)| *inode == self.inode && *path == self.path) {
            open.swap_remove(at);
        }
    }
}

/// Finds the user of the image: this process, under the same path or another one, or another process.
fn taken(path: PathBuf, inode: (u64, u64)) -> ImageError {
    let open = open_images();
    match open.iter().find(|(of, _)| *of == inode) {
        Some((_, other)) => ImageError::Twice { path, other: other.clone() },
        None => ImageError::InUse(path),
    }
}

/// Transfers all of `slices` by vectored calls, however little each call does. `ended` is the error for a
/// call that does nothing.
///
/// The iovecs for `call` cover pieces of guest memory that stays mapped as long as `slices` live.
fn transfer(
    slices: &[VolatileSlice<'_>],
    mut offset: u64,
    ended: io::ErrorKind,
    call: impl Fn(&[libc::iovec], libc::off_t) -> isize,
) -> io::Result<()> {
    let iovec = |slice: &VolatileSlice<'_>| libc::iovec {
        iov_base: slice.ptr_guard_mut().as_ptr().cast(),
        iov_len: slice.len(),
    };
    let mut iovecs: Vec<_> = slices.iter().map(iovec).collect();
    let mut first = 0;
    while first < iovecs.len() {
        let last = iovecs.len().min(first + IOV_MAX);
        let mut done = match call(&iovecs[first..last], offset as libc::off_t) {
            0 => return Err(ended.into()),
            done if done > 0 => done as usize,
            _ => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => continue,
                error => return Err(error),
            },
        };
        offset += done as u64;
        while done > 0 {
            let iovec = &mut iovecs[first];
            let step = done.min(iovec.iov_len);
            iovec.iov_base = iovec.iov_base.wrapping_byte_add(step);
            iovec.iov_len -= step;
            done -= step;
            first += usize::from(iovec.iov_len == 0);
        }
    }
    Ok(())
}
