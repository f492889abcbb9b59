//! The serial port's output without a reader, with a slow reader, and at the machine's end.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};
use rustix::pipe::fcntl_setpipe_size;
use rustix::process::Signal;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use crate::guest::{Code, Machine, Running, kvm};

/// Logged when the guest continues to write, after a second without a reader.
const LOST: &str = "bytes are lost until it is";

/// Size of a small pipe in bytes, which is soon full.
pub(crate) const PIPE: usize = 4096;

/// Guests that write without end: with a free transmitter, or at any time.
fn writers() -> [Code; 2] {
    [Code::new().digits(u32::MAX).halt(), Code::new().print("u").raw(&[0xee, 0xeb, 0xfd])]
}

/// Starts a machine with input for the guest, and waits until its output has not been read for a second.
fn unread(machine: Machine) -> Running {
    let mut machine = machine.stdin(Stdio::piped()).spawn();
    fcntl_setpipe_size(machine.child.stdout.as_ref().unwrap(), PIPE).unwrap();
    machine.child.stdin.as_mut().unwrap().write_all(b"x").unwrap();
    machine.expect_log(LOST);
    machine
}

#[track_caller]
fn ends_unread(machine: Running, status: i32) {
    let end = machine.wait_unread();
    assert_eq!(end.status.code(), Some(status), "{}", end.log);
    assert!(end.log.contains("bytes of serial output were lost"), "{}", end.log);
    assert_eq!(end.log.matches(LOST).count(), 0, "logged once, and again: {}", end.log);
}

#[test]
fn a_signal_ends_a_guest_whose_output_nobody_reads() {
    if !kvm("a_signal_ends_a_guest_whose_output_nobody_reads") {
        return;
    }
    for guest in writers() {
        let machine = unread(Machine::new(&guest.bzimage()));
        machine.signal(Signal::TERM);
        ends_unread(machine, 143);
    }
}

#[test]
fn the_api_ends_a_guest_whose_output_nobody_reads() {
    if !kvm("the_api_ends_a_guest_whose_output_nobody_reads") {
        return;
    }
    let [guest, _] = writers();
    let machine = Machine::new(&guest.bzimage());
    let socket = machine.path("api").to_str().unwrap().to_owned();
    let machine = unread(machine.args(&["--api-socket", &socket]));
    let ctl = |request| {
        let output = Command::new(env!("CARGO_BIN_EXE_volt-vmm"))
            .args(["ctl", "--api-socket", &socket, request])
            .output()
            .unwrap();
        assert!(output.status.success(), "{request}: {output:?}");
    };
    ["pause", "resume", "shutdown"].into_iter().for_each(ctl);
    ends_unread(machine, 0);
}

#[test]
fn the_escape_key_ends_a_guest_whose_output_nobody_reads() {
    if !kvm("the_escape_key_ends_a_guest_whose_output_nobody_reads") {
        return;
    }
    let (mut user, path) = terminal();
    let [guest, _] = writers();
    let side = File::options().read(true).write(true).open(path).unwrap();
    let mut machine = Machine::new(&guest.bzimage()).stdin(side).spawn();
    fcntl_setpipe_size(machine.child.stdout.as_ref().unwrap(), PIPE).unwrap();
    machine.expect_log(LOST);
    user.write_all(b"x\x01x").unwrap();
    ends_unread(machine, 0);
}

/// Returns a pseudo-terminal: the user's side, and the path of the other one.
fn terminal() -> (File, String) {
    let user = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&user).unwrap();
    unlockpt(&user).unwrap();
    let path = ptsname(&user, Vec::new()).unwrap().into_string().unwrap();
    (File::from(user), path)
}

/// `--serial file=` behaves alike: a FIFO without a reader or with a sleeping one, and a terminal that nobody
/// reads.
#[test]
fn a_file_that_takes_nothing_holds_nobody() {
    if !kvm("a_file_that_takes_nothing_holds_nobody") {
        return;
    }
    let (_user, terminal) = terminal();
    let dir = tempfile::tempdir().unwrap();
    let fifo = |name| {
        let path = dir.path().join(name);
        mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        path
    };
    let (alone, asleep) = (fifo("alone"), fifo("asleep"));
    let reader = rustix::fs::open(&asleep, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty()).unwrap();
    fcntl_setpipe_size(&reader, PIPE).unwrap();
    let [guest, _] = writers();
    for path in [&alone, &asleep, Path::new(&terminal)] {
        let target = format!("file={}", path.display());
        let machine = unread(Machine::new(&guest.bzimage()).args(&["--serial", &target]));
        machine.signal(Signal::TERM);
        ends_unread(machine, 143);
    }
}

/// A guest that checks the transmitter loses nothing if the reader is slow, not even at its end, when pipe
/// and buffer are full.
#[test]
fn a_slow_reader_gets_everything() {
    if !kvm("a_slow_reader_gets_everything") {
        return;
    }
    const COUNT: u32 = 60_000;
    let mut machine = Machine::new(&Code::new().digits(COUNT).power_off().bzimage()).spawn();
    let mut pipe = machine.child.stdout.take().unwrap();
    fcntl_setpipe_size(&pipe, PIPE).unwrap();
    let mut seen = Vec::new();
    let mut buffer = [0; PIPE];
    loop {
        let len = pipe.read(&mut buffer).unwrap();
        if len == 0 {
            break;
        }
        seen.extend_from_slice(&buffer[..len]);
        thread::sleep(Duration::from_millis(10));
    }
    let mut log = String::new();
    machine.child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    assert!(machine.child.wait().unwrap().success(), "{log}");
    assert!(!log.contains("lost"), "{log}");
    let written: Vec<u8> = (b'0'..=b'9').cycle().take(COUNT as usize).collect();
    assert!(seen == written, "{} bytes came", seen.len());
}
