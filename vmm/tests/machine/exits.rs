//! Each way to end has its own exit status, and its own line in the log.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::guest::{Code, End, Machine, kvm};

#[track_caller]
fn ends(end: &End, status: i32, log: &str) {
    assert_eq!(end.status.code(), Some(status), "{end:?}");
    assert!(end.log.contains(log), "{end:?}");
}

/// Both boot protocols reach the first instruction, and both end through the sleep register with status 0.
#[test]
fn power_off_ends_with_0() {
    if !kvm("power_off_ends_with_0") {
        return;
    }
    let code = Code::new().print("hello").power_off();
    for image in [code.bzimage(), code.vmlinux()] {
        let end = Machine::new(&image).run();
        assert_eq!(end.output, "hello");
        ends(&end, 0, "the guest powered off");
    }
}

#[test]
fn resets_end_with_3() {
    if !kvm("resets_end_with_3") {
        return;
    }
    let end = Machine::new(&Code::new().out(0x64, 0xfe).halt().bzimage()).run();
    ends(&end, 3, "the keyboard controller");
    let end = Machine::new(&Code::new().out(0x600, 1).halt().bzimage()).run();
    ends(&end, 3, "the ACPI reset register");
}

/// A fault without an interrupt table: `lidt` of an empty one, then `ud2`.
#[test]
fn a_triple_fault_ends_with_3() {
    if !kvm("a_triple_fault_ends_with_3") {
        return;
    }
    let end = Machine::new(&Code::new().raw(&[0x0f, 0x0b]).halt().bzimage()).run();
    ends(&end, 3, "triple fault");
}

/// Ports and addresses without a device read as ones, and writes have no effect.
#[test]
fn what_is_not_there_reads_as_ones() {
    if !kvm("what_is_not_there_reads_as_ones") {
        return;
    }
    let code = Code::new()
        .out(0x80, 0)
        // mov dx, 0x70; in al, dx; cmp al, 0xff; jne +5
        .raw(&[0x66, 0xba, 0x70, 0, 0xec, 0x3c, 0xff, 0x75, 21])
        // mov edi, 0xe0000000; mov eax, [rdi]; cmp eax, -1; jne
        .raw(&[0xbf, 0, 0, 0, 0xe0, 0x8b, 0x07, 0x83, 0xf8, 0xff, 0x75, 9])
        // mov [rdi], eax
        .raw(&[0x89, 0x07])
        .out(0x3f8, b'y')
        .out(0x3f8, b'.')
        .power_off();
    let end = Machine::new(&code.bzimage()).run();
    assert_eq!(end.output, "y.", "{end:?}");
}

/// The boot vCPU sends INIT and SIPI to all others. Each counts itself, and the boot vCPU powers off only
/// after all three have.
#[test]
fn all_processors_start() {
    if !kvm("all_processors_start") {
        return;
    }
    const TRAMPOLINE: u32 = 0x8000;
    const COUNTER: u32 = 0x8800;
    // 16-bit: lock inc byte [COUNTER]; hlt; jmp
    let processor = [0xf0, 0xfe, 0x06, 0x00, 0x88, 0xf4, 0xeb, 0xfd];
    let mut code = Code::new();
    for (at, byte) in (TRAMPOLINE..).zip(processor) {
        // mov byte [at], byte
        code = code.raw(&[0xc6, 0x04, 0x25]).raw(&at.to_le_bytes()).raw(&[byte]);
    }
    code = code
        // mov edi, the interrupt command register
        .raw(&[0xbf])
        .raw(&0xfee0_0300u32.to_le_bytes())
        // mov dword [rdi], INIT to all but self; then SIPI with the trampoline's page
        .raw(&[0xc7, 0x07])
        .raw(&0x000c_4500u32.to_le_bytes())
        .raw(&[0xc7, 0x07])
        .raw(&(0x000c_4600u32 | TRAMPOLINE >> 12).to_le_bytes())
        // wait: cmp byte [COUNTER], 3; jne wait
        .raw(&[0x80, 0x3c, 0x25])
        .raw(&COUNTER.to_le_bytes())
        .raw(&[3, 0x75, 0xf6])
        .print("all")
        .power_off();
    let end = Machine::new(&code.bzimage()).args(&["--cpus", "4"]).run();
    assert_eq!(end.output, "all", "{end:?}");
    ends(&end, 0, "the guest powered off");
}

/// A vCPU that never leaves guest mode by itself is stopped, too.
#[test]
fn a_spinning_guest_is_stopped() {
    if !kvm("a_spinning_guest_is_stopped") {
        return;
    }
    let mut machine = Machine::new(&Code::new().print("up").raw(&[0xeb, 0xfe]).bzimage()).spawn();
    machine.expect("up");
    machine.signal(Signal::TERM);
    ends(&machine.wait(), 143, "signal 15");
}

/// If KVM only emulates guest kernels, an instruction that it cannot emulate ends with status 4 and an
/// explanation.
#[test]
fn a_host_that_cannot_run_the_guest_is_named() {
    const NAME: &str = "a_host_that_cannot_run_the_guest_is_named";
    if !kvm(NAME) {
        return;
    }
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    if cpuinfo.split_whitespace().any(|word| word == "vmx" || word == "svm") {
        eprintln!("SKIP {NAME}: this processor has vmx or svm, so its KVM runs everything");
        return;
    }
    // int3
    let end = Machine::new(&Code::new().raw(&[0xcc]).halt().bzimage()).run();
    ends(&end, 4, "KVM_EXIT_INTERNAL_ERROR");
    ends(&end, 4, "at rip 0x200200");
    ends(&end, 4, "The host's KVM is the limit");
}

/// The log reports a guest that works at one instruction before its first output. It does not report one that
/// sleeps, or one that has written.
#[test]
fn a_guest_that_does_not_get_on_is_noticed() {
    if !kvm("a_guest_that_does_not_get_on_is_noticed") {
        return;
    }
    const WORD: &str = "without progress, before the guest's first output";
    const PATIENCE: Duration = Duration::from_secs(300);
    let start = |code: Code| Machine::new(&code.bzimage()).spawn();
    // jmp to itself
    let stop = [0xeb, 0xfe];
    let asleep = start(Code::new().halt());
    let written = start(Code::new().print("u").raw(&stop));
    let mut stuck = start(Code::new().raw(&stop));
    stuck.expect_log_within(WORD, PATIENCE);
    stuck.expect_log("exit status 4");
    drop(stuck);
    let started = Instant::now();
    // More CPU time than the reported guest had.
    while written.used() < Duration::from_secs(8) {
        assert!(started.elapsed() < PATIENCE, "the machine does not run");
        std::thread::sleep(Duration::from_millis(100));
    }
    for machine in [asleep, written] {
        machine.signal(Signal::TERM);
        let end = machine.wait();
        assert!(!end.log.contains(WORD), "{end:?}");
    }
}
