//! Files that cannot be a disk, kernel or initramfs: refused at once, by the command line and by the API.

use std::path::Path;
use std::process::Command;

use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::guest::{Code, Machine, kvm};

const QCOW2: &[u8] = b"QFI\xfb\0\0\0\x03";

/// A FIFO without a writer, an image that is not raw, and a raw one.
fn files(dir: &Path) -> [String; 3] {
    let [fifo, qcow2, raw] = ["fifo", "disk.qcow2", "disk.img"].map(|name| dir.join(name));
    mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    std::fs::write(&qcow2, [QCOW2, &[0; 4096]].concat()).unwrap();
    std::fs::write(&raw, [0; 4096]).unwrap();
    [fifo, qcow2, raw].map(|path| path.to_str().unwrap().to_owned())
}

#[test]
fn the_command_line_refuses_what_is_no_disk() {
    if !kvm("the_command_line_refuses_what_is_no_disk") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let [fifo, qcow2, raw] = files(dir.path());
    let (fifo_ro, qcow2_ro, other) =
        (format!("{fifo},ro"), format!("{qcow2},ro"), format!("{raw},format=qcow2"));
    let cases: [(&[&str], i32, &str); 8] = [
        (&["--disk", &fifo_ro], 1, "neither a file nor a block device"),
        (&["--disk", &fifo], 1, "neither a file nor a block device"),
        (&["--rootfs", &fifo], 1, "neither a file nor a block device"),
        (&["--initramfs", &fifo], 1, "not a regular file"),
        (&["--disk", &qcow2], 1, "qemu-img convert -O raw"),
        (&["--rootfs", &qcow2_ro], 1, "format=raw"),
        (&["--disk", &other], 2, "supports only raw disks"),
        (&["--rootfs", &raw, "--disk", &raw], 1, "which this machine has already"),
    ];
    let image = Code::new().power_off().bzimage();
    for (args, status, why) in cases {
        let end = Machine::new(&image).args(args).run();
        assert_eq!(end.status.code(), Some(status), "{args:?}: {end:?}");
        assert!(end.log.contains(why), "{args:?}: {end:?}");
    }
    let raw = format!("{qcow2},format=raw");
    let end = Machine::new(&image).args(&["--rootfs", &raw]).run();
    assert_eq!(end.status.code(), Some(0), "{end:?}");
}

#[test]
fn the_api_refuses_what_is_no_disk() {
    if !kvm("the_api_refuses_what_is_no_disk") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let [fifo, qcow2, raw] = files(dir.path());
    let machine = Machine::new(&Code::new().print("up").halt().bzimage());
    let socket = machine.path("api").to_str().unwrap().to_owned();
    let mut machine = machine.args(&["--api-socket", &socket, "--disk", &raw]).spawn();
    machine.expect("up");
    let add = |options: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_volt-vmm"))
            .args(["ctl", "--api-socket", &socket, "add", "disk", options])
            .output()
            .unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let hard = dir.path().join("hard").to_str().unwrap().to_owned();
    std::fs::hard_link(&raw, &hard).unwrap();
    let cases = [
        (format!("{fifo},ro"), "neither a file nor a block device"),
        (qcow2.clone(), "qemu-img convert -O raw"),
        (hard, "which this machine has already"),
    ];
    for (options, why) in cases {
        let (added, error) = add(&options);
        assert!(!added && error.contains(why), "{options}: {error}");
    }
    let (added, error) = add(&format!("{qcow2},format=raw"));
    assert!(added, "{error}");
}
