//! Shared mappings of a front-end's files: guest memory, and the log of written pages.

use std::fs::File;
use std::io;
use std::sync::Arc;

use rustix::fs::{FileType, fstat, fstatfs};
use vm_memory::mmap::MmapRegionError;
use vm_memory::{FileOffset, MmapRegion};

const PAGE: u64 = 4096;
const HUGETLBFS_MAGIC: i64 = 0x9584_58f6;

/// The reason why a piece of a file cannot be mapped.
#[derive(Debug)]
pub(crate) enum MapFault {
    /// It is empty, or ends beyond the largest offset.
    Size,
    /// The file cannot be examined.
    File(io::Error),
    /// The system cannot map it.
    Map(MmapRegionError),
}

/// A mapping, and the place of the requested piece in it.
pub(crate) struct Piece {
    pub(crate) mapping: Arc<MmapRegion>,
    pub(crate) offset: usize,
}

/// Maps `size` bytes at `offset` of the file, to read and write. They may begin and end anywhere; a mapping
/// begins and ends at a page of its file.
pub(crate) fn map(file: File, offset: u64, size: u64) -> Result<Piece, MapFault> {
    let page = page_size(&file).map_err(MapFault::File)?;
    let before = offset % page;
    let len = before.checked_add(size).and_then(|len| len.checked_next_multiple_of(page));
    let len = len.and_then(|len| usize::try_from(len).ok()).filter(|_| size > 0).ok_or(MapFault::Size)?;
    let mapping = MmapRegion::build(
        Some(FileOffset::new(file, offset - before)),
        len,
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_SHARED | libc::MAP_NORESERVE,
    )
    .map_err(MapFault::Map)?;
    Ok(Piece { mapping: Arc::new(mapping), offset: before as usize })
}

/// Returns the length of a regular file that does not contain `size` bytes at `offset`; `None` if it does, or
/// if it is another kind of file.
pub(crate) fn short_file(file: &File, offset: u64, size: u64) -> io::Result<Option<u64>> {
    let stat = fstat(file)?;
    let (length, end) = (stat.st_size as u64, offset.checked_add(size));
    let is_regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    Ok((is_regular && end.is_none_or(|end| end > length)).then_some(length))
}

fn page_size(file: &File) -> io::Result<u64> {
    let fs = fstatfs(file)?;
    Ok(if fs.f_type == HUGETLBFS_MAGIC { fs.f_bsize as u64 } else { PAGE })
}
