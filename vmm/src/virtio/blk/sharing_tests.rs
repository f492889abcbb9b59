//! Images that other processes, QEMU or this machine itself use or have created.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::tests::{config, image, reopen};
use super::*;
use crate::virtio::testing::eventually;

fn open(path: &Path, read_only: bool) -> Result<Block, String> {
    Block::open(&config(path, read_only), &Arc::default()).map_err(|error| error.to_string())
}

#[track_caller]
fn is_refused(path: &Path, read_only: bool, why: &str) {
    let error = open(path, read_only).err().expect("it is refused");
    assert!(error.contains(why), "{error}");
}

/// Another program that has an image open. It ends when this is dropped.
struct Holder(Child);

impl Holder {
    /// Runs `command` with `input` until it has printed that many lines. If it ends before, returns its error
    /// text.
    fn start(command: &mut Command, input: &str, lines: usize) -> Result<Holder, String> {
        let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut holder = Holder(spawned.map_err(|error| error.to_string())?);
        // A program that is ending reads nothing more.
        let _ = holder.0.stdin.as_mut().unwrap().write_all(input.as_bytes());
        let stdout = BufReader::new(holder.0.stdout.as_mut().unwrap());
        if stdout.lines().take(lines).count() == lines {
            return Ok(holder);
        }
        holder.0.wait().unwrap();
        Err(std::io::read_to_string(holder.0.stderr.take().unwrap()).unwrap())
    }

    fn flock(path: &Path, kind: &str) -> Holder {
        let mut command = Command::new("flock");
        command.args(["--no-fork", kind]).arg(path).args(["sh", "-c", "echo locked; read end"]);
        Holder::start(&mut command, "", 1).unwrap()
    }

    /// A machine of QEMU with a disk. It never runs.
    fn qemu(path: &Path, read_only: bool) -> Result<Holder, String> {
        let read_only = if read_only { "on" } else { "off" };
        let disk = format!("file={},format=raw,if=virtio,readonly={read_only}", path.display());
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-S", "-nodefaults", "-display", "none", "-accel", "tcg", "-m", "32", "-qmp", "stdio"]);
        // It prints a greeting before it has opened the disk, and an answer afterwards.
        Holder::start(command.args(["-drive", &disk]), "{\"execute\": \"qmp_capabilities\"}\n", 2)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn has(program: &str, test: &str) -> bool {
    let found = Command::new(program).arg("--version").stdout(Stdio::null()).status();
    if let Err(error) = &found {
        eprintln!("SKIP {test}: {program}: {error}");
    }
    found.is_ok()
}

#[test]
fn one_machine_has_an_image_once() {
    let (dir, path) = image();
    let (link, hard) = (dir.path().join("symbolic"), dir.path().join("hard"));
    symlink(&path, &link).unwrap();
    fs::hard_link(&path, &hard).unwrap();
    let same = format!("is the same as {}, which this machine has already", path.display());
    for (first, seconds) in [(false, [false, true].as_slice()), (true, &[false])] {
        let _first = reopen(&path, first);
        for second in [&path, &link, &hard] {
            seconds.iter().for_each(|&read_only| is_refused(second, read_only, &same));
        }
    }
    let readers = [&path, &link, &hard].map(|path| reopen(path, true));
    drop(readers);
    reopen(&path, false);
}

/// `flock`, which `udev` and others respect.
#[test]
fn another_process_may_only_read_what_we_read() {
    let (_dir, path) = image();
    let writer = Holder::flock(&path, "--exclusive");
    for read_only in [false, true] {
        is_refused(&path, read_only, "in use by another process");
    }
    drop(writer);
    let reader = Holder::flock(&path, "--shared");
    is_refused(&path, false, "in use by another process");
    reopen(&path, true);
    drop(reader);
    reopen(&path, false);
}

/// The second program is refused, unless both only read.
#[test]
fn qemu_and_we_do_not_write_to_one_image() {
    if !has("qemu-system-x86_64", "qemu_and_we_do_not_write_to_one_image") {
        return;
    }
    let (_dir, path) = image();
    for (theirs, ours) in [(false, false), (false, true), (true, false), (true, true)] {
        let qemu = Holder::qemu(&path, theirs).unwrap();
        match open(&path, ours) {
            Ok(_) => assert!(theirs && ours, "both are open, and somebody writes"),
            Err(error) => {
                assert!(!(theirs && ours) && error.contains("in use by another process"), "{error}");
            }
        }
        drop(qemu);
        let _ours = reopen(&path, ours);
        match Holder::qemu(&path, theirs) {
            Ok(_) => assert!(theirs && ours, "both are open, and somebody writes"),
            Err(error) => assert!(!(theirs && ours) && error.contains("lock"), "{error}"),
        }
    }
}

/// QEMU's tools may look at an image in use, and not change it.
#[test]
fn qemu_tools_do_not_change_an_image_in_use() {
    const NAME: &str = "qemu_tools_do_not_change_an_image_in_use";
    if !has("qemu-img", NAME) || !has("qemu-io", NAME) {
        return;
    }
    let (_dir, path) = image();
    let run = |program: &str, args: &[&str]| {
        let output = Command::new(program).args(args).arg(&path).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let write = ["-f", "raw", "-c", "write 0 512"];
    for read_only in [false, true] {
        let _disk = reopen(&path, read_only);
        let (written, why) = run("qemu-io", &write);
        assert!(!written && why.contains("lock"), "{why}");
        let (resized, why) = run("qemu-img", &["resize", "-f", "raw", "--size=+1M"]);
        assert!(!resized, "{why}");
        let (seen, why) = run("qemu-img", &["info", "-f", "raw", "--force-share"]);
        assert!(seen, "{why}");
    }
    eventually("the image is free", || run("qemu-io", &write).0);
}

/// Images created by QEMU, in each format that it can write.
#[test]
fn other_formats_are_refused_unless_the_user_says_raw() {
    const NAME: &str = "other_formats_are_refused_unless_the_user_says_raw";
    if !has("qemu-img", NAME) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let make = |format: &str, options: &str| {
        let path = dir.path().join(format!("{format}-{options}.img"));
        let mut command = Command::new("qemu-img");
        command.args(["create", "-q", "-f", format]);
        if !options.is_empty() {
            command.args(["-o", options]);
        }
        let output = command.arg(&path).arg("8M").output().unwrap();
        assert!(output.status.success(), "{format}: {}", String::from_utf8_lossy(&output.stderr));
        path
    };
    let formats = [
        ("qcow", ""),
        ("qcow2", "compat=0.10"),
        ("qcow2", ""),
        ("qed", ""),
        ("vmdk", ""),
        ("vmdk", "subformat=monolithicFlat"),
        ("vmdk", "subformat=twoGbMaxExtentSparse"),
        ("vpc", ""),
        ("vpc", "subformat=fixed"),
        ("vhdx", ""),
        ("vdi", ""),
        ("parallels", ""),
    ];
    for (format, options) in formats {
        let path = make(format, options);
        if fs::metadata(&path).unwrap().len() < SECTOR_SIZE {
            let mut file = fs::File::options().append(true).open(&path).unwrap();
            file.write_all(&[b'\n'; SECTOR_SIZE as usize]).unwrap();
        }
        for read_only in [false, true] {
            let expected = format!("looks like the format {format}");
            // A lock of the last one may be left for a moment: see `reopen`.
            eventually("it is refused by name", || {
                let error = open(&path, read_only).err().expect("it is refused");
                error.contains(&expected) && error.contains("qemu-img convert -O raw")
            });
            let raw = DiskConfig { raw: true, ..config(&path, read_only) };
            eventually("it is raw when the user says so", || Block::open(&raw, &Arc::default()).is_ok());
        }
    }
    open(&make("raw", ""), false).unwrap();
}
