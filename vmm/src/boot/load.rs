//! Loads kernel, initramfs and command line into guest memory.

use std::io;
use std::path::Path;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, ReadVolatile};

use crate::board::layout::{CMDLINE, CMDLINE_ROOM, HOLE_START};
use crate::board::memory::low_end;
use crate::boot::data::{Entry, Initramfs, put};
use crate::boot::error::BootError;
use crate::boot::kernel::{KernelImage, Loaded, Protocol};
use crate::boot::{linux, pvh};
use crate::files::{self, OpenError};

/// Loads kernel, initramfs and command line into memory, with the tables of the kernel's boot protocol.
///
/// # Errors
///
/// Fails if one of them cannot be read, is invalid or does not fit.
pub fn load(
    memory: &GuestMemoryMmap,
    image: KernelImage,
    initramfs: Option<&Path>,
    cmdline: &str,
) -> Result<Entry, BootError> {
    let path = image.path().to_owned();
    let loaded = image.load(memory).map_err(|source| BootError::Kernel { path, source })?;
    let initramfs = initramfs.map(|path| load_initramfs(memory, path, &loaded)).transpose()?;
    write_cmdline(memory, cmdline, loaded.cmdline_max)?;
    match loaded.protocol {
        Protocol::Linux64(header) => {
            linux::write_zero_page(memory, *header, initramfs, cmdline.len())?;
            Ok(Entry::Linux64 { rip: loaded.entry })
        }
        Protocol::Pvh => {
            pvh::write_start_info(memory, initramfs)?;
            Ok(Entry::Pvh { rip: loaded.entry })
        }
    }
}

/// Reads the initramfs to the highest place that kernel and RAM allow, outside of the memory in which the
/// kernel unpacks itself.
fn load_initramfs(memory: &GuestMemoryMmap, path: &Path, kernel: &Loaded) -> Result<Initramfs, BootError> {
    const PAGE: u64 = 4096;
    let unreadable = |source| BootError::Initramfs { path: path.to_owned(), source };
    let mut file = files::open_regular(path).map_err(|error| match error {
        OpenError::Kind => {
            unreadable(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"))
        }
        OpenError::System(error) => unreadable(error),
    })?;
    let size = file.metadata().map_err(unreadable)?.len();
    if size == 0 {
        return Err(BootError::InitramfsEmpty(path.to_owned()));
    }
    let limit = low_end(memory).min(kernel.initramfs_max.saturating_add(1));
    let address =
        limit.checked_sub(size).map(|start| start & !(PAGE - 1)).filter(|&start| start >= kernel.end);
    let Some(address) = address else {
        let free = limit.saturating_sub(kernel.end);
        let more = limit == low_end(memory) && limit < HOLE_START;
        return Err(BootError::InitramfsSize { path: path.to_owned(), size, free, limit, more });
    };
    read(memory, address, &mut file, size).map_err(unreadable)?;
    Ok(Initramfs { address, size })
}

/// Fills `size` bytes of memory at `address` from `file`, with several calls, because one call transfers less
/// than 2 GiB.
fn read(memory: &GuestMemoryMmap, address: u64, file: &mut impl ReadVolatile, size: u64) -> io::Result<()> {
    const STEP: u64 = 64 << 20;
    let mut done = 0;
    while done < size {
        // STEP fits into any usize.
        let step = STEP.min(size - done) as usize;
        match memory.read_volatile_from(GuestAddress(address + done), file, step) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => done += read as u64,
            Err(error) => return Err(io::Error::other(error)),
        }
    }
    Ok(())
}

fn write_cmdline(memory: &GuestMemoryMmap, cmdline: &str, max: u64) -> Result<(), BootError> {
    let max = max.min(CMDLINE_ROOM - 1);
    if let Some(at) = cmdline.bytes().position(|byte| byte.is_ascii_control()) {
        return Err(BootError::CmdlineCharacter(at));
    }
    if cmdline.len() as u64 > max {
        return Err(BootError::CmdlineLength { len: cmdline.len(), max });
    }
    put(memory, CMDLINE, cmdline.as_bytes())?;
    put(memory, CMDLINE + cmdline.len() as u64, &[0])
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use vm_memory::bitmap::BitmapSlice;
    use vm_memory::{VolatileMemoryError, VolatileSlice};

    use super::*;
    use crate::board::memory::allocate;

    const MIB: u64 = 1 << 20;

    fn kernel(end: u64) -> Loaded {
        Loaded {
            entry: 0,
            end,
            initramfs_max: u64::from(u32::MAX),
            cmdline_max: 2047,
            protocol: Protocol::Pvh,
        }
    }

    fn file(len: usize) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&vec![0x5a; len]).unwrap();
        file
    }

    #[test]
    fn the_initramfs_lies_at_the_top_of_ram() {
        let memory = allocate(16 * MIB, false).unwrap();
        let file = file(5000);
        let at = load_initramfs(&memory, file.path(), &kernel(4 * MIB)).unwrap();
        assert_eq!(at, Initramfs { address: 16 * MIB - 8192, size: 5000 });
        assert_eq!(memory.read_obj::<u8>(GuestAddress(at.address + 4999)).unwrap(), 0x5a);
        assert_eq!(memory.read_obj::<u8>(GuestAddress(at.address + 5000)).unwrap(), 0);
    }

    #[test]
    fn an_initramfs_that_does_not_fit_is_told_the_room() {
        let memory = allocate(16 * MIB, false).unwrap();
        let file = file(8193);
        let error = load_initramfs(&memory, file.path(), &kernel(16 * MIB - 8192)).unwrap_err();
        assert!(matches!(error, BootError::InitramfsSize { size: 8193, free: 8192, .. }), "{error}");
        let error = load_initramfs(&memory, file.path(), &kernel(17 * MIB)).unwrap_err();
        assert!(matches!(error, BootError::InitramfsSize { free: 0, .. }), "{error}");
        assert!(error.to_string().contains("raise --mem"), "{error}");
        let near = Loaded { initramfs_max: 8 * MIB - 1, ..kernel(8 * MIB) };
        let error = load_initramfs(&memory, file.path(), &near).unwrap_err();
        assert!(error.to_string().contains("more memory does not help"), "{error}");
    }

    /// Returns less than requested, like a call for 2 GiB.
    struct Pieces(u64);

    impl ReadVolatile for Pieces {
        fn read_volatile<B: BitmapSlice>(
            &mut self,
            buffer: &mut VolatileSlice<'_, B>,
        ) -> Result<usize, VolatileMemoryError> {
            let len = buffer.len().min(1000).min(self.0 as usize);
            buffer.copy_from(&vec![0x5a_u8; len]);
            self.0 -= len as u64;
            Ok(len)
        }
    }

    #[test]
    fn a_file_is_read_in_as_many_calls_as_it_takes() {
        let memory = allocate(16 * MIB, false).unwrap();
        read(&memory, MIB, &mut Pieces(5000), 5000).unwrap();
        let mut seen = [0; 5001];
        memory.read_slice(&mut seen, GuestAddress(MIB)).unwrap();
        assert_eq!((seen[..5000].iter().all(|&byte| byte == 0x5a), seen[5000]), (true, 0));
        let error = read(&memory, MIB, &mut Pieces(4999), 5000).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn files_that_are_no_initramfs_are_named() {
        let memory = allocate(16 * MIB, false).unwrap();
        let error = load_initramfs(&memory, file(0).path(), &kernel(MIB)).unwrap_err();
        assert!(matches!(error, BootError::InitramfsEmpty(_)));
        for path in ["/nonexistent/initramfs", "/dev/zero", "/"] {
            let error = load_initramfs(&memory, Path::new(path), &kernel(MIB)).unwrap_err();
            assert!(matches!(error, BootError::Initramfs { .. }), "{path}: {error}");
        }
    }

    #[test]
    fn command_lines_are_checked_against_the_kernel() {
        let memory = allocate(16 * MIB, false).unwrap();
        write_cmdline(&memory, "quiet", 5).unwrap();
        let mut seen = [1; 6];
        memory.read_slice(&mut seen, GuestAddress(CMDLINE)).unwrap();
        assert_eq!(&seen, b"quiet\0");
        assert!(matches!(
            write_cmdline(&memory, "quiet!", 5),
            Err(BootError::CmdlineLength { len: 6, max: 5 })
        ));
        assert!(matches!(write_cmdline(&memory, "a\nb", 99), Err(BootError::CmdlineCharacter(1))));
        let long = "x".repeat(CMDLINE_ROOM as usize);
        assert!(write_cmdline(&memory, &long, u64::MAX).is_err());
    }
}
