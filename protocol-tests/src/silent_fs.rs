//! A file on a file system in user space (FUSE) that stops answering once the file is open: every further
//! access blocks. The protocol is that of the kernel's `linux/fuse.h`.
#![expect(unsafe_code, reason = "a thread gets a mount namespace of its own")]

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::thread::{UnshareFlags, unshare_unsafe};

const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const INIT: u32 = 26;
/// Bytes of the header of a request.
const HEADER: usize = 40;
const SIZE: u64 = 64 << 20;
const MODE: u32 = 0o100_666;

/// The file. Dropping it ends its file system, and blocked accesses fail.
#[derive(Debug)]
pub struct SilentFile {
    /// Open for reading and writing. Closing it blocks too, so it is closed only after the file system has
    /// gone.
    pub file: OwnedFd,
    server: Option<OwnedFd>,
}

impl SilentFile {
    /// Mounts a file system of one file on a file in `dir`, visible to no other process, opens the file and
    /// stops answering.
    ///
    /// # Errors
    ///
    /// Returns an error without root or without FUSE.
    pub fn new(dir: &Path) -> io::Result<SilentFile> {
        let path = dir.join("silent");
        File::create(&path)?;
        let fuse = OwnedFd::from(File::options().read(true).write(true).open("/dev/fuse")?);
        let (requests, silent) = (fuse.try_clone()?, Arc::new(AtomicBool::new(false)));
        let falls = silent.clone();
        thread::spawn(move || answer(&File::from(requests), &falls));
        let number = fuse.as_fd().as_raw_fd();
        // The mount belongs to the thread.
        let file = thread::spawn(move || -> io::Result<OwnedFd> {
            // SAFETY: descriptors stay shared.
            unsafe { unshare_unsafe(UnshareFlags::NEWNS)? };
            mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)?;
            let options = CString::new(format!("fd={number},rootmode={MODE:o},user_id=0,group_id=0"))?;
            mount("silent", &path, "fuse", MountFlags::empty(), options.as_c_str())?;
            let file = File::options().read(true).write(true).open(&path)?;
            silent.store(true, Ordering::SeqCst);
            Ok(file.into())
        });
        let file = file.join().map_err(|_| io::Error::other("mounting panicked"))??;
        Ok(SilentFile { file, server: Some(fuse) })
    }
}

impl Drop for SilentFile {
    fn drop(&mut self) {
        // The file system ends with its last descriptor; the answering thread has dropped its own.
        self.server = None;
    }
}

/// Answers the requests of mounting and opening, until the file is open.
fn answer(mut fuse: &File, silent: &AtomicBool) {
    let mut request = vec![0; 1 << 20];
    while !silent.load(Ordering::SeqCst) {
        let readable = crate::wire::readable(fuse, std::time::Duration::from_millis(5));
        if !readable.unwrap_or(true) || silent.load(Ordering::SeqCst) {
            continue;
        }
        // Not mounted yet.
        let Ok(len) = fuse.read(&mut request) else { continue };
        if len < HEADER {
            continue;
        }
        let word =
            |at: usize| u32::from_ne_bytes([request[at], request[at + 1], request[at + 2], request[at + 3]]);
        let body = match word(4) {
            INIT => init(),
            GETATTR => attributes(),
            OPEN => vec![0; 16],
            _ => Vec::new(),
        };
        let error = if body.is_empty() { -libc::ENOSYS } else { 0 };
        let len = (16 + body.len()) as u32;
        let reply = [&len.to_ne_bytes()[..], &error.to_ne_bytes(), &request[8..16], &body].concat();
        // Nothing waits for the answer to an interrupted request.
        let _ = fuse.write(&reply);
    }
}

/// `struct fuse_init_out`, of version 7.31.
fn init() -> Vec<u8> {
    let words: [u32; 16] = [7, 31, 4096, 0, 0, 4096, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// Returns `struct fuse_attr_out` with a validity of zero.
fn attributes() -> Vec<u8> {
    let longs: [u64; 8] = [0, 0, 1, SIZE, SIZE / 512, 0, 0, 0];
    let words: [u32; 10] = [0, 0, 0, MODE, 1, 0, 0, 0, 4096, 0];
    let longs = longs.iter().flat_map(|long| long.to_ne_bytes());
    longs.chain(words.iter().flat_map(|word| word.to_ne_bytes())).collect()
}
