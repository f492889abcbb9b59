//! The log: no vCPU waits for its reader, a guest cannot flood it, and it reports the end.

use std::fs::File;
use std::io::{PipeReader, Write, pipe};
use std::process::{Command, Stdio};
use std::time::Instant;

use rustix::pipe::{fcntl_getpipe_size, fcntl_setpipe_size};

use crate::guest::{Code, Machine, kvm};

/// The registers of the network device, which follows the entropy device.
const NET: u32 = 0xd000_1000;
const STATUS: u32 = NET + 0x70;

/// A pipe that is full until it is read.
fn full_pipe() -> (PipeReader, Stdio) {
    let (reader, mut writer) = pipe().unwrap();
    fcntl_setpipe_size(&writer, 4096).unwrap();
    writer.write_all(&vec![b'.'; fcntl_getpipe_size(&writer).unwrap()]).unwrap();
    (reader, writer.into())
}

/// A driver that starts the network device with both rings of pair 0, whose available indices jump by more
/// than a ring. It resets the device when the device requests that.
fn start_and_reset() -> Code {
    let mut code = Code::new().store(STATUS, 1).store(STATUS, 3);
    // VERSION_1 is the first bit of the second word.
    code = code.store(NET + 0x24, 1).store(NET + 0x20, 1).store(STATUS, 0xb);
    for (ring, memory) in [(0, 0x40_0000), (1, 0x41_0000)] {
        code = code.store(NET + 0x30, ring).store(NET + 0x38, 16);
        code = code
            .store(NET + 0x80, memory)
            .store(NET + 0x90, memory + 0x1000)
            .store(NET + 0xa0, memory + 0x2000);
        code = code.store(memory + 0x1000, 1000 << 16).store(NET + 0x44, 1);
    }
    code = code.store(STATUS, 0xf).store(NET + 0x50, 0).store(NET + 0x50, 1);
    // mov edi, STATUS; mov eax, [rdi]; test al, DEVICE_NEEDS_RESET; jz back to the read
    code.raw(&[0xbf]).raw(&STATUS.to_le_bytes()).raw(&[0x8b, 0x07, 0xa8, 0x40, 0x74, 0xfa]).store(STATUS, 0)
}

/// Returns whether a network namespace can be created. Prints the reason if not.
fn namespace(test: &str) -> bool {
    let output =
        Command::new("unshare").args(["--net", "--", "test", "-c", "/dev/net/tun"]).output().unwrap();
    if !output.status.success() {
        eprintln!("SKIP {test}: a network namespace with a TAP needs root and /dev/net/tun: {output:?}");
    }
    output.status.success()
}

const ARGS: [&str; 4] = ["--transport", "mmio", "--net", "tap=tap0"];
const OWN_NET: [&str; 3] = ["unshare", "--net", "--"];

/// With a full pipe as standard error, the guest continues and ends.
#[test]
fn a_log_that_nobody_reads_holds_no_processor() {
    const NAME: &str = "a_log_that_nobody_reads_holds_no_processor";
    if !kvm(NAME) || !namespace(NAME) {
        return;
    }
    let (_reader, stderr) = full_pipe();
    let guest = start_and_reset().times(20).then(Code::new().print("done").power_off());
    let end = Machine::new(&guest.bzimage()).by(&OWN_NET).args(&ARGS).stderr(stderr).run();
    assert_eq!((end.status.code(), &*end.output), (Some(0), "done"));
}

/// A guest that resets its network device in a loop causes a bounded log, which still has the reason of the
/// end.
#[test]
fn a_guest_that_resets_in_a_loop_is_bounded() {
    const NAME: &str = "a_guest_that_resets_in_a_loop_is_bounded";
    if !kvm(NAME) || !namespace(NAME) {
        return;
    }
    let guest = start_and_reset().times(150).then(Code::new().power_off());
    let start = Instant::now();
    let end = Machine::new(&guest.bzimage()).by(&OWN_NET).args(&ARGS).run();
    assert_eq!(end.status.code(), Some(0), "{end:?}");
    assert!(end.log.contains("the guest powered off"), "{end:?}");
    let warnings = end.log.lines().filter(|line| line.contains("stopped: available index")).count() as u64;
    // A slow machine needs more than one window of time.
    assert!(warnings <= (start.elapsed().as_secs() / 10 + 1) * 200, "{warnings} warnings");
    assert!(warnings == 300 || end.log.contains("left out: more than 200 in 10 s"), "{warnings}: {end:?}");
}

/// If an error cannot be printed, the status is still right.
#[test]
fn an_error_that_nobody_reads_keeps_its_status() {
    for stderr in [pipe().unwrap().1.into(), full_pipe().1] {
        let end = Machine::new(b"not a kernel").stderr(stderr).run();
        assert_eq!(end.status.code(), Some(1), "{end:?}");
    }
}

/// An answer that cannot be written is an error. A reader that closes the pipe causes none.
#[test]
fn answers_that_cannot_be_written() {
    const NAME: &str = "answers_that_cannot_be_written";
    if !kvm(NAME) {
        return;
    }
    let machine = Machine::new(&Code::new().print("up").halt().bzimage());
    let api = machine.path("api");
    let mut running = machine.args(&["--api-socket", api.to_str().unwrap()]).spawn();
    running.expect("up");
    let ask = |stdout: Stdio, stderr: Stdio| {
        let mut command = Command::new("timeout");
        command
            .args(["20", env!("CARGO_BIN_EXE_volt-vmm"), "ctl", "status", "--api-socket"])
            .arg(&api)
            .stdout(stdout)
            .stderr(stderr);
        command.output().unwrap()
    };
    let full_disk = || File::options().write(true).open("/dev/full").unwrap();
    let seen_enough = ask(pipe().unwrap().1.into(), Stdio::piped());
    assert!(seen_enough.status.success() && seen_enough.stderr.is_empty(), "{seen_enough:?}");
    let lost = ask(full_disk().into(), Stdio::piped());
    assert_eq!(lost.status.code(), Some(1), "{lost:?}");
    assert!(String::from_utf8_lossy(&lost.stderr).contains("No space left"), "{lost:?}");
    let (_reader, unread) = full_pipe();
    assert_eq!(ask(full_disk().into(), unread).status.code(), Some(1));
}
