//! The effect of each signal: every line of the table in docs/reference/exit-status.md, and the signals of
//! process limits.
#![expect(unsafe_code, reason = "real-time signals are sent by libc only")]

use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Stdio;

use crate::console::echo;
use crate::guest::{Code, Machine, Running, eventually, kvm};

/// Returns the signals with this effect, from the table.
fn with(effect: &str) -> Vec<i32> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/exit-status.md");
    let text = std::fs::read_to_string(path).unwrap();
    let rows = text.lines().skip_while(|line| !line.starts_with("| signals |")).skip(2);
    let rows = rows.take_while(|line| line.starts_with('|'));
    let rows = rows.map(|row| row.trim_matches('|').split('|').map(str::trim).collect::<Vec<_>>());
    let signals: Vec<i32> = rows.filter(|row| row[4] == effect).flat_map(|row| numbers(row[0])).collect();
    assert!(!signals.is_empty(), "no signal {effect}");
    signals
}

fn numbers(cell: &str) -> Vec<i32> {
    match cell.strip_suffix(" (real time)").and_then(|range| range.split_once(" to ")) {
        Some((first, last)) => (first.parse().unwrap()..=last.parse().unwrap()).collect(),
        None => cell.split(", ").map(number).collect(),
    }
}

fn number(name: &str) -> i32 {
    let found = (1..32).find(|&signal| volt_program::signals::name(signal) == name);
    found.unwrap_or_else(|| panic!("no signal {name}"))
}

fn start() -> Running {
    let mut machine = Machine::new(&echo().bzimage()).stdin(Stdio::piped()).spawn();
    machine.expect("up");
    machine
}

fn send(machine: &Running, signal: i32) {
    // SAFETY: plain values. The process is a child, and not reaped.
    assert_eq!(unsafe { libc::kill(machine.pid().as_raw_pid(), signal) }, 0, "signal {signal}");
}

fn answers(machine: &mut Running) {
    machine.child.stdin.as_mut().unwrap().write_all(b"x").unwrap();
    machine.expect("x");
}

#[test]
fn signals_do_what_the_table_says() {
    if !kvm("signals_do_what_the_table_says") {
        return;
    }
    for signal in with("ends") {
        let machine = start();
        send(&machine, signal);
        let (end, name) = (machine.wait(), volt_program::signals::name(signal));
        assert_eq!(end.status.code(), Some(128 + signal), "{end:?}");
        assert!(end.log.contains(&format!("signal {signal} ({name})")), "{end:?}");
    }
    let mut machine = start();
    for signal in with("ignored") {
        send(&machine, signal);
        answers(&mut machine);
    }
    drop(machine);
    // In a process group that a shell could continue. SIGTSTP stops no other.
    let mut machine = Machine::new(&echo().bzimage()).in_a_group().stdin(Stdio::piped()).spawn();
    machine.expect("up");
    for signal in with("stops") {
        send(&machine, signal);
        eventually("it stops", || machine.is_stopped());
        send(&machine, number("SIGCONT"));
        answers(&mut machine);
    }
    drop(machine);
    for signal in with("dies") {
        let machine = start();
        send(&machine, signal);
        assert_eq!(machine.wait().status.signal(), Some(signal));
    }
}

/// The registers of the first disk.
const DISK: u32 = 0xd000_0000;
const STATUS: u32 = DISK + 0x70;
/// Addresses of its ring, and of a request: header, data, status.
const RING: u32 = 0x40_0000;
const HEADER: u32 = 0x42_0000;

/// A driver that writes one sector, and prints the status of the request as a digit (virtio 1.2, 5.2.6).
fn write_sector(sector: u32) -> Code {
    let mut code = Code::new().store(STATUS, 0).store(RING + 0x2000, 0).store(STATUS, 1).store(STATUS, 3);
    // VERSION_1 is the first bit of the second word.
    code = code.store(DISK + 0x24, 1).store(DISK + 0x20, 1).store(STATUS, 0xb);
    code = code.store(DISK + 0x38, 16).store(DISK + 0x80, RING).store(DISK + 0x90, RING + 0x1000);
    code = code.store(DISK + 0xa0, RING + 0x2000).store(DISK + 0x44, 1).store(STATUS, 0xf);
    // VIRTIO_BLK_T_OUT; then descriptors of address, length, flags and next.
    code = code.store(HEADER, 1).store(HEADER + 8, sector);
    let chain = [(HEADER, 16, 1 | 1 << 16), (HEADER + 0x1000, 512, 1 | 2 << 16), (HEADER + 0x2000, 1, 2)];
    for (at, (address, len, flags)) in (RING..).step_by(16).zip(chain) {
        code = code.store(at, address).store(at + 8, len).store(at + 12, flags);
    }
    code = code.store(RING + 0x1000, 1 << 16).store(DISK + 0x50, 0);
    // mov edi, the used ring; mov eax, [rdi]; test eax, its index; jz back to the read
    code = code.raw(&[0xbf]).raw(&(RING + 0x2000).to_le_bytes());
    code = code.raw(&[0x8b, 0x07, 0xa9, 0, 0, 0xff, 0xff, 0x74, 0xf7]);
    // mov edi, the status; mov al, [rdi]; add al, '0'; mov dx, 0x3f8; out dx, al
    code.raw(&[0xbf])
        .raw(&(HEADER + 0x2000).to_le_bytes())
        .raw(&[0x8a, 0x07, 0x04, b'0', 0x66, 0xba, 0xf8, 3, 0xee])
}

/// A write beyond the limit of a file's size is an I/O error for the guest, and logged.
#[test]
fn a_disk_write_beyond_the_file_size_limit_is_an_error() {
    if !kvm("a_disk_write_beyond_the_file_size_limit_is_an_error") {
        return;
    }
    let guest = write_sector(0).then(write_sector((96 << 20) / 512)).power_off();
    for (limit, output) in [("unlimited", "00"), ("67108864", "01")] {
        let machine = Machine::new(&guest.bzimage());
        let disk = machine.path("disk");
        std::fs::File::create(&disk).unwrap().set_len(128 << 20).unwrap();
        let machine = machine.by(&["prlimit", &format!("--fsize={limit}"), "--"]);
        // The guest's memory is a file of that size, too.
        let end =
            machine.args(&["--transport", "mmio", "--mem", "32M", "--disk", disk.to_str().unwrap()]).run();
        assert_eq!((end.status.code(), &*end.output), (Some(0), output), "{end:?}");
        assert_eq!(end.log.contains("File too large"), output == "01", "{end:?}");
    }
}

/// Guest memory beyond that limit is an error at the start.
#[test]
fn memory_beyond_the_file_size_limit_is_an_error() {
    if !kvm("memory_beyond_the_file_size_limit_is_an_error") {
        return;
    }
    let machine = Machine::new(&Code::new().power_off().bzimage());
    let end = machine.by(&["prlimit", "--fsize=67108864", "--"]).run();
    assert_eq!(end.status.code(), Some(1), "{end:?}");
    assert!(end.log.contains("File too large"), "{end:?}");
}

/// A limit of CPU time ends the machine in order, and the log says so.
#[test]
fn a_processor_time_limit_ends_it_in_order() {
    if !kvm("a_processor_time_limit_ends_it_in_order") {
        return;
    }
    // jmp to itself
    let machine = Machine::new(&Code::new().raw(&[0xeb, 0xfe]).bzimage());
    let end = machine.by(&["prlimit", "--cpu=1:100", "--"]).run();
    assert_eq!(end.status.code(), Some(128 + number("SIGXCPU")), "{end:?}");
    assert!(end.log.contains("SIGXCPU"), "{end:?}");
}
