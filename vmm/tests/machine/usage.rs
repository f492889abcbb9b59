//! Mistakes of the user: each has its error, with status 1 or 2, before anything starts.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::guest::{Code, Machine, kvm};

#[track_caller]
fn fails(machine: Machine, status: i32, expected: &[&str]) {
    let end = machine.run();
    assert_eq!(end.status.code(), Some(status), "{end:?}");
    for text in expected {
        assert!(end.log.contains(text), "no '{text}' in {end:?}");
    }
}

#[test]
fn kernels_that_are_none_are_named() {
    fails(Machine::new(b"not a kernel"), 1, &["/kernel: ", "it is not a Linux kernel"]);
    fails(Machine::new(b"\x1f\x8b\x08\0"), 1, &["it is compressed with gzip"]);
    fails(Machine::new(b"").args(&["--kernel", "/nonexistent"]), 2, &["--kernel"]);
}

#[test]
fn arguments_are_checked_before_anything_else() {
    fails(Machine::new(b"").args(&["--cpus", "0"]), 2, &["--cpus", "1..=254"]);
    fails(Machine::new(b"").args(&["--disk", "a,what"]), 2, &["unknown option 'what'"]);
    fails(Machine::new(b"").args(&["--frobnicate"]), 2, &["--frobnicate"]);
}

#[test]
fn files_of_the_machine_are_checked() {
    const NAME: &str = "files_of_the_machine_are_checked";
    if !kvm(NAME) {
        return;
    }
    let image = Code::new().power_off().bzimage();
    let machine = || Machine::new(&image);
    fails(machine().args(&["--initramfs", "/nonexistent"]), 1, &["initramfs /nonexistent cannot be read"]);
    fails(machine().args(&["--disk", "/nonexistent"]), 1, &["/nonexistent"]);
    fails(machine().args(&["--cmdline", &"x".repeat(300)]), 1, &["command line has", "takes 255"]);
    fails(machine().args(&["--serial", "file=/nonexistent/log"]), 1, &["/nonexistent/log cannot be opened"]);
    fails(machine().args(&["--mem", "1024G", "--hugepages"]), 1, &["huge pages of 2 MiB"]);
    let big = machine();
    let path = big.path("initramfs");
    std::fs::write(&path, vec![1; 14 << 20]).unwrap();
    fails(
        big.args(&["--mem", "16M", "--initramfs", path.to_str().unwrap()]),
        1,
        &["does not fit", "raise --mem"],
    );
    // With the entropy device, one more than there are places.
    let disks = |count| ["--disk", "/dev/null"].repeat(count);
    fails(machine().args(&disks(31)), 1, &["32 virtio devices", "--transport pci"]);
    let mmio = machine().args(&["--transport", "mmio"]);
    fails(mmio.args(&disks(19)), 1, &["20 virtio devices", "--transport mmio", "or --transport pci"]);
}

/// Standard input that cannot be read causes a warning, and the machine continues.
#[test]
fn unreadable_input_is_survived() {
    const NAME: &str = "unreadable_input_is_survived";
    if !kvm(NAME) {
        return;
    }
    let directory = std::fs::File::open("/").unwrap();
    let mut machine = Machine::new(&Code::new().print("up").halt().bzimage()).stdin(directory).spawn();
    machine.expect("up");
    std::thread::sleep(Duration::from_millis(200));
    machine.signal(Signal::TERM);
    let end = machine.wait();
    assert_eq!(end.status.code(), Some(143), "{end:?}");
    assert!(end.log.contains("no more input"), "{end:?}");
}

/// The time-out and signals end the program while it waits for a back-end.
#[test]
fn waiting_for_a_back_end_can_be_ended() {
    const NAME: &str = "waiting_for_a_back_end_can_be_ended";
    if !kvm(NAME) {
        return;
    }
    let image = Code::new().power_off().bzimage();
    let start = Instant::now();
    let machine = Machine::new(&image).args(&["--net-socket", "/nonexistent/s", "--net-timeout", "1"]);
    fails(machine, 1, &["/nonexistent/s"]);
    assert!(start.elapsed() >= Duration::from_secs(1));

    let machine = Machine::new(&image).args(&["--net-socket", "/nonexistent/s"]).spawn();
    machine.takes(Signal::TERM);
    machine.signal(Signal::TERM);
    let end = machine.wait();
    assert_eq!(end.status.code(), Some(143), "{end:?}");
}

/// A machine with many devices needs more descriptors than its soft limit, and raises that to the hard one.
#[test]
fn the_limit_of_open_files_is_raised() {
    const NAME: &str = "the_limit_of_open_files_is_raised";
    if !kvm(NAME) {
        return;
    }
    let soft = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    if soft.maximum.is_some_and(|hard| hard < 512) {
        return eprintln!("SKIP {NAME}: the hard limit of open files is {:?} here", soft.maximum);
    }
    let machine = Machine::new(&Code::new().power_off().bzimage());
    let disk = machine.path("disk");
    std::fs::write(&disk, [0; 512]).unwrap();
    let disk = format!("{},ro", disk.display());
    let machine = machine.args(&["--disk", &disk].repeat(25)).file_limit(64);
    fails(machine, 0, &["powered off"]);
}
