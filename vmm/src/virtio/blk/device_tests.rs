//! Block devices of the host as images.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use tempfile::TempDir;
use virtio_bindings::virtio_blk::*;

use super::tests::{DATA, FLUSH, OK, config, image, range, reopen, request, start};
use super::*;

/// A block device backed by an image file, for as long as it lives.
struct Loop {
    path: PathBuf,
    _directory: TempDir,
    _turn: MutexGuard<'static, ()>,
}

/// A machine has few loop devices, and a free one is free for all: one test at a time.
static TURN: Mutex<()> = Mutex::new(());

fn run(program: &str, args: &[&str], path: &Path) -> Result<String, String> {
    let output = Command::new(program).args(args).arg(path).output();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
        false => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
    }
}

impl Loop {
    fn new(image: &Path) -> Result<Loop, String> {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let mut error = String::new();
        // Another program may take it between the question and the answer.
        for _ in 0..20 {
            let directory = tempfile::tempdir().unwrap();
            let name = Command::new("losetup").arg("--find").output().map_err(|e| format!("losetup: {e}"))?;
            let name = String::from_utf8_lossy(&name.stdout).trim().to_owned();
            let number = name.strip_prefix("/dev/loop").and_then(|number| number.parse().ok());
            let number: u32 = number.ok_or_else(|| "no loop device is free".to_owned())?;
            // An own node, because a container has a fixed number of them.
            let path = directory.path().join(format!("loop{number}"));
            let mode = Mode::RUSR | Mode::WUSR;
            mknodat(CWD, &path, FileType::BlockDevice, mode, makedev(7, number))
                .map_err(|error| format!("a node for {name}: {error}"))?;
            match run("losetup", &[path.to_str().unwrap()], image) {
                Ok(_) => {
                    let device = Loop { path, _directory: directory, _turn: turn };
                    // It may have been left read-only.
                    run("blockdev", &["--setrw"], &device.path)?;
                    return Ok(device);
                }
                Err(why) => error = why,
            }
        }
        Err(error)
    }

    /// Flushes that the device has completed: field 16 of its statistics.
    fn flushes(&self) -> Option<u64> {
        let name = self.path.file_name().unwrap().to_str().unwrap();
        let stat = fs::read_to_string(format!("/sys/block/{name}/stat")).unwrap();
        stat.split_whitespace().nth(15).map(|field| field.parse().unwrap())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = run("blockdev", &["--setrw"], &self.path);
        let _ = run("losetup", &["--detach"], &self.path);
    }
}

/// A block device works as an image. After a flush, no acknowledged data is left in the host's memory. The
/// same holds after a write for a driver that knows no flush.
#[test]
fn block_devices_and_flushes() {
    let (_dir, path) = image();
    let device = match Loop::new(&path) {
        Ok(device) => device,
        Err(reason) => return eprintln!("SKIP block_devices_and_flushes: {reason}"),
    };
    let Some(before) = device.flushes() else {
        return eprintln!("SKIP block_devices_and_flushes: this kernel counts no flushes");
    };
    let mut driver = start(&device.path, false, FLUSH);
    assert_eq!(driver.config(8), 64u64.to_le_bytes());
    let write = [(DATA, 512, false)];
    driver.put(DATA, &[0xaa; 512]);
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_OUT, 1, &write), (OK, 1));
    assert_eq!(device.flushes(), Some(before));
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_FLUSH, 0, &[]), (OK, 1));
    let flushed = device.flushes().unwrap();
    assert!(flushed > before);
    assert_eq!(fs::read(&path).unwrap()[512..1024], [0xaa; 512]);

    driver.run(Features::VERSION_1, &[0]);
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_OUT, 2, &write), (OK, 1));
    let after_write = device.flushes().unwrap();
    assert!(after_write > flushed);
    driver.put(DATA, &range(8, 8, 1));
    let zero = [(DATA, 16, false)];
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_WRITE_ZEROES, 0, &zero), (OK, 1));
    assert!(device.flushes().unwrap() > after_write);
    assert_eq!(fs::read(&path).unwrap()[8 * 512..16 * 512], [0; 4096]);
}

/// The kernel opens it for writing, and refuses each write. volt-vmm reports that before a guest notices.
#[test]
fn a_read_only_block_device_is_refused_for_writing() {
    const NAME: &str = "a_read_only_block_device_is_refused_for_writing";
    let (_dir, path) = image();
    let device = match Loop::new(&path) {
        Ok(device) => device,
        Err(reason) => return eprintln!("SKIP {NAME}: {reason}"),
    };
    assert!(fs::metadata(&device.path).unwrap().file_type().is_block_device());
    reopen(&device.path, false);
    run("blockdev", &["--setro"], &device.path).unwrap();
    let refused = Block::open(&config(&device.path, false), &Arc::default());
    let error = refused.err().expect("it is refused").to_string();
    assert!(error.contains("is read-only: append ',ro'"), "{error}");
    reopen(&device.path, true);
    run("blockdev", &["--setrw"], &device.path).unwrap();
    reopen(&device.path, false);
}
