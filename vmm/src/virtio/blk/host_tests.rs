//! Images, and actions of the host on them.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use virtio_bindings::virtio_blk::*;

use super::tests::{DATA, FLUSH, IOERR, OK, config, image, request, start};
use super::*;

#[test]
fn an_image_that_shrinks_gives_errors() {
    let (_dir, path) = image();
    let mut driver = start(&path, false, FLUSH);
    File::options().write(true).open(&path).unwrap().set_len(10 * 512 + 100).unwrap();
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_IN, 9, &[(DATA, 512, true)]), (OK, 513));
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_IN, 10, &[(DATA, 512, true)]), (IOERR, 0));
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_IN, 40, &[(DATA, 512, true)]), (IOERR, 0));
}

#[test]
fn a_write_that_the_host_refuses_is_an_error() {
    let (_file, path) = sealed_image(64 * 512);
    let mut driver = start(&path, false, FLUSH);
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_IN, 0, &[(DATA, 512, true)]), (OK, 513));
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_OUT, 0, &[(DATA, 512, false)]), (IOERR, 1));
}

/// A file that can be opened for writing and refuses each write.
fn sealed_image(len: u64) -> (File, PathBuf) {
    use std::os::fd::AsRawFd;
    let flags = rustix::fs::MemfdFlags::CLOEXEC | rustix::fs::MemfdFlags::ALLOW_SEALING;
    let file = File::from(rustix::fs::memfd_create("disk", flags).unwrap());
    file.set_len(len).unwrap();
    rustix::fs::fcntl_add_seals(&file, rustix::fs::SealFlags::WRITE).unwrap();
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    (file, path)
}

#[test]
fn partial_last_sector_is_left_out() {
    let (_dir, path) = image();
    File::options().append(true).open(&path).unwrap().write_all(&[1; 100]).unwrap();
    let mut driver = start(&path, false, FLUSH);
    assert_eq!(driver.config(8), 64u64.to_le_bytes());
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_IN, 64, &[(DATA, 512, true)]), (IOERR, 0));
}

#[test]
fn unusable_images_are_refused_by_name() {
    let (dir, _path) = image();
    let open = |path: &Path, read_only| match Block::open(&config(path, read_only), &Arc::default()) {
        Ok(_) => panic!("{} was opened", path.display()),
        Err(error) => error.to_string(),
    };
    let missing = dir.path().join("missing.img");
    assert!(open(&missing, false).contains(missing.to_str().unwrap()));
    assert!(open(dir.path(), true).contains("neither a file nor a block device"));
    assert!(open(Path::new("/dev/null"), false).contains("neither a file nor a block device"));
    // Opening it would wait for its other end.
    let fifo = dir.path().join("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    for read_only in [false, true] {
        assert!(open(&fifo, read_only).contains("neither a file nor a block device"));
    }
    let small = dir.path().join("small.img");
    fs::write(&small, [0; 511]).unwrap();
    assert!(open(&small, false).contains("511 bytes"));
}

mod full {
    #![expect(unsafe_code, reason = "a mount namespace for one thread")]

    use std::ffi::CString;
    use std::thread;

    use super::*;

    /// The guest sees that the host's file system is full, and continues when there is space again.
    #[test]
    fn no_space_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_owned();
        // The mount belongs to the thread, and disappears with it.
        thread::spawn(move || match mount_tmpfs(&path) {
            Ok(()) => fill(&path),
            Err(error) => eprintln!("SKIP no_space_is_an_error: a small tmpfs: {error}"),
        })
        .join()
        .unwrap();
    }

    fn fill(dir: &Path) {
        let (image, ballast) = (dir.join("disk.img"), dir.join("ballast"));
        File::create(&image).unwrap().set_len(1 << 20).unwrap();
        let mut driver = start(&image, false, FLUSH);
        fs::write(&ballast, [1; 48 << 10]).unwrap();
        let data = [(DATA, 64 << 10, false)];
        assert_eq!(request(&mut driver, VIRTIO_BLK_T_OUT, 0, &data), (IOERR, 1));
        assert_eq!(request(&mut driver, VIRTIO_BLK_T_FLUSH, 0, &[]), (OK, 1));
        fs::remove_file(&ballast).unwrap();
        assert_eq!(request(&mut driver, VIRTIO_BLK_T_OUT, 0, &data), (OK, 1));
    }

    fn mount_tmpfs(dir: &Path) -> std::io::Result<()> {
        let c = |text: &str| CString::new(text).unwrap();
        let (tmpfs, root, size) = (c("tmpfs"), c("/"), c("size=64k"));
        let dir = c(dir.to_str().unwrap());
        let private = libc::MS_REC | libc::MS_PRIVATE;
        let done = |result: i32| if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) };
        // SAFETY: all pointers are to strings that live until the end of this function, or null.
        unsafe {
            done(libc::unshare(libc::CLONE_NEWNS))?;
            let none: *const libc::c_char = std::ptr::null();
            done(libc::mount(none, root.as_ptr(), none, private, none.cast()))?;
            done(libc::mount(tmpfs.as_ptr(), dir.as_ptr(), tmpfs.as_ptr(), 0, size.as_ptr().cast()))
        }
    }
}
