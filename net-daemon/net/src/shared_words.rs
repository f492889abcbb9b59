//! Words in memory that outlives this process: a sealed memfd, which another process can map.
//!
//! Data that changes with each frame (counters, notes on served chains) is stored only there, so that it
//! survives the process's death at any instruction. The first two words identify the memory: a magic number,
//! then version and length.
#![expect(unsafe_code, reason = "memory that processes share")]

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use log::warn;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, ftruncate, memfd_create};
use rustix::io::pread;
use rustix::process::{Resource, getrlimit};
use thiserror::Error;
use vm_memory::mmap::MmapRegionError;
use vm_memory::{FileOffset, MmapRegion};
use volt_virtio::part::IoPart;

/// Number of words before the data.
const HEADER: usize = 2;

/// The kind of data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// Eight characters that identify the kind.
    pub magic: [u8; 8],
    /// Changes when the meaning of the words changes.
    pub version: u32,
}

/// The reason why there is no such memory.
#[derive(Debug, Error)]
pub enum WordsError {
    /// The system refused the file.
    #[error("cannot create memory for several processes")]
    File(#[from] io::Error),
    /// The system refused the mapping.
    #[error("shared memory cannot be mapped")]
    Map(#[from] MmapRegionError),
    /// The memory contains something else.
    #[error("shared memory does not match the state: {0}")]
    Other(&'static str),
}

impl From<rustix::io::Errno> for WordsError {
    fn from(errno: rustix::io::Errno) -> WordsError {
        WordsError::File(errno.into())
    }
}

/// An array of words, initially zero.
#[derive(Debug)]
pub struct SharedWords {
    mapping: MmapRegion,
    len: usize,
}

/// A structure that consists of words only.
///
/// # Safety
///
/// The type must be `repr(C)` or `repr(transparent)`, and every field an [`AtomicU64`] or a structure of
/// such.
pub(crate) unsafe trait AllWords {}

impl SharedWords {
    /// Creates `len` words in a memfd called `name`. If that fails, for example because of a limit of file
    /// sizes, the words are in memory that only forked processes share, and a warning is logged.
    ///
    /// # Errors
    ///
    /// See [`WordsError`].
    pub fn create(name: &str, kind: Kind, len: usize) -> Result<SharedWords, WordsError> {
        match SharedWords::create_file(name, kind, len) {
            Err(WordsError::File(error)) => {
                warn!(event = "counters_not_shared"; "{name} will not outlive this process: {error}");
                let (protection, flags) =
                    (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
                let mapping = MmapRegion::build(None, bytes(len), protection, flags)?;
                Ok(SharedWords { mapping, len }.of(kind))
            }
            created => created,
        }
    }

    /// Like [`SharedWords::create`], but fails if there can be no memfd.
    ///
    /// # Errors
    ///
    /// See [`WordsError`].
    pub fn create_file(name: &str, kind: Kind, len: usize) -> Result<SharedWords, WordsError> {
        Ok(SharedWords::map(sealed(name, bytes(len))?, len)?.of(kind))
    }

    fn of(self, kind: Kind) -> SharedWords {
        self.at(0).store(u64::from_le_bytes(kind.magic), Relaxed);
        self.at(1).store(u64::from(kind.version) << 32 | self.len as u64, Relaxed);
        self
    }

    /// Opens the words of another process, of any number.
    ///
    /// # Errors
    ///
    /// Fails if the memory contains something else, or if its file could be truncated.
    pub fn open(memory: OwnedFd, kind: Kind) -> Result<SharedWords, WordsError> {
        if !fcntl_get_seals(&memory).is_ok_and(|seals| seals.contains(SealFlags::SHRINK)) {
            return Err(WordsError::Other("it is not sealed"));
        }
        let mut header = [0; HEADER * size_of::<u64>()];
        if pread(&memory, &mut header, 0)? < header.len() {
            return Err(WordsError::Other("it is too short"));
        }
        let ([magic, rest], _) = header.as_chunks() else { unreachable!("two words") };
        let rest = u64::from_ne_bytes(*rest);
        if *magic != kind.magic {
            return Err(WordsError::Other("its magic number"));
        }
        if rest >> 32 != u64::from(kind.version) {
            return Err(WordsError::Other("its version"));
        }
        let len = (rest & u64::from(u32::MAX)) as usize;
        if fstat(&memory)?.st_size < bytes(len) as i64 {
            return Err(WordsError::Other("it is too short"));
        }
        SharedWords::map(memory, len)
    }

    /// Returns the number of words.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no words.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn map(memory: OwnedFd, len: usize) -> Result<SharedWords, WordsError> {
        let file = FileOffset::new(File::from(memory), 0);
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let mapping = MmapRegion::build(Some(file), bytes(len), protection, libc::MAP_SHARED)?;
        Ok(SharedWords { mapping, len })
    }

    /// Returns the memory, for another process; `None` if only forked processes share it.
    pub fn file(&self) -> Option<&File> {
        self.mapping.file_offset().map(FileOffset::file)
    }

    /// Returns word number `index`.
    ///
    /// # Panics
    ///
    /// Panics if it does not exist.
    #[inline]
    pub fn word(&self, index: usize) -> &AtomicU64 {
        assert!(index < self.len, "word {index} of {}", self.len);
        self.at(HEADER + index)
    }

    /// Returns all words.
    #[inline]
    pub fn as_slice(&self) -> &[AtomicU64] {
        // SAFETY: all of them exist, are aligned and stay mapped as long as `self` lives (`at`). All
        // references to them are to atomics.
        unsafe { std::slice::from_raw_parts(self.at(HEADER), self.len) }
    }

    /// Returns the words from number `first` on, as a `T`.
    ///
    /// # Panics
    ///
    /// Panics if they do not all exist.
    #[inline]
    pub(crate) fn view<T: AllWords>(&self, first: usize) -> &T {
        let words = size_of::<T>() / size_of::<u64>();
        assert!(first <= self.len && words <= self.len - first, "{words} words from {first} of {}", self.len);
        // SAFETY: a `T` consists of words (AllWords), all of them exist (checked), and any bits are valid in
        // a word.
        unsafe { &*std::ptr::from_ref(self.at(HEADER + first)).cast::<T>() }
    }

    /// Returns `bytes` bytes from word number `first` on, to copy to.
    ///
    /// # Panics
    ///
    /// Panics if they do not all exist.
    #[inline]
    pub(crate) fn part(&self, first: usize, bytes: usize) -> IoPart<'_> {
        let words = bytes.div_ceil(size_of::<u64>());
        assert!(first <= self.len && words <= self.len - first, "{words} words from {first} of {}", self.len);
        // SAFETY: all of them exist (checked) and stay mapped as long as `self` lives. All references to them
        // are to atomics, and other processes change them as well.
        unsafe { IoPart::new(self.at(HEADER + first).as_ptr().cast(), bytes) }
    }

    #[inline]
    fn at(&self, index: usize) -> &AtomicU64 {
        debug_assert!(index < HEADER + self.len);
        // SAFETY: callers stay within header and words, for which the mapping has room. The mapping begins at
        // a page boundary, so that words are aligned. It lives as long as `self`, and its file cannot shrink
        // (sealed). All accesses are atomic.
        unsafe { AtomicU64::from_ptr(self.mapping.as_ptr().cast::<u64>().add(index)) }
    }
}

impl AsRef<[AtomicU64]> for SharedWords {
    #[inline]
    fn as_ref(&self) -> &[AtomicU64] {
        self.as_slice()
    }
}

/// Creates a memfd of `bytes` bytes with a fixed size.
fn sealed(name: &str, bytes: usize) -> io::Result<OwnedFd> {
    // A file beyond the limit would raise a signal that ends the process by default.
    if getrlimit(Resource::Fsize).current.is_some_and(|limit| limit < bytes as u64) {
        return Err(rustix::io::Errno::FBIG.into());
    }
    let memory = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    ftruncate(&memory, bytes as u64)?;
    fcntl_add_seals(&memory, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(memory)
}

/// Returns the size in bytes of a file with `len` words: whole pages.
fn bytes(len: usize) -> usize {
    ((HEADER + len) * size_of::<u64>()).next_multiple_of(4096)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIND: Kind = Kind { magic: *b"voltTEST", version: 3 };

    #[test]
    fn words_are_the_same_ones_for_whoever_maps_them() {
        let words = SharedWords::create("test", KIND, 1000).unwrap();
        words.word(999).store(7, Relaxed);
        let again = words.file().unwrap().try_clone().unwrap();
        let again = SharedWords::open(again.into(), KIND).unwrap();
        assert_eq!(again.len(), 1000);
        assert_eq!(again.word(999).load(Relaxed), 7);
        again.word(0).store(8, Relaxed);
        assert_eq!(words.word(0).load(Relaxed), 8);
        let seen: Vec<_> = words.as_slice().iter().map(|word| word.load(Relaxed)).collect();
        assert_eq!((seen.len(), seen[0], seen[999]), (1000, 8, 7));
    }

    #[test]
    fn other_memory_is_refused_by_name() {
        let words = SharedWords::create("test", KIND, 10).unwrap();
        let refusal = |kind| {
            let again = words.file().unwrap().try_clone().unwrap().into();
            SharedWords::open(again, kind).unwrap_err().to_string()
        };
        assert!(refusal(Kind { magic: *b"voltTSET", ..KIND }).ends_with("its magic number"));
        assert!(refusal(Kind { version: 4, ..KIND }).ends_with("its version"));
        words.at(1).store(3 << 32 | 100_000, Relaxed);
        assert!(refusal(KIND).ends_with("it is too short"));
        let plain = memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&plain, 4096).unwrap();
        assert!(SharedWords::open(plain, KIND).unwrap_err().to_string().ends_with("it is not sealed"));
        let empty = sealed("test", 0).unwrap();
        assert!(SharedWords::open(empty, KIND).unwrap_err().to_string().ends_with("it is too short"));
    }
}
