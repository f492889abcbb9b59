//! The serial port on standard input and output, in a file, and absent.

use std::io::Write;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::Signal;

use crate::guest::{Code, Machine, feed, kvm};
use crate::terminal::terminal;

/// Prints "up", then echoes input until a "q", which powers off.
pub(crate) fn echo() -> Code {
    Code::new()
        .print("up")
        .out(0x3f9, 1)
        // next: mov dx, 0x3fd; in al, dx; test al, 1; jz next
        .raw(&[0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xf7])
        // mov dx, 0x3f8; in al, dx; cmp al, 'q'; je end; out dx, al; jmp next
        .raw(&[0x66, 0xba, 0xf8, 0x03, 0xec, 0x3c, b'q', 0x74, 0x03, 0xee, 0xeb, 0xeb])
        .power_off()
}

/// Ten kilobytes pasted at once arrive complete and in order, although the UART's FIFO has 64 bytes.
#[test]
fn pasted_input_arrives_whole() {
    if !kvm("pasted_input_arrives_whole") {
        return;
    }
    let mut machine = Machine::new(&echo().bzimage()).stdin(Stdio::piped()).spawn();
    let text: String = (0..10_240u32).map(|n| char::from(b'A' + (n % 26) as u8)).collect();
    let stdin = machine.child.stdin.take().unwrap();
    let feeder = feed(stdin, format!("{text}q").into_bytes());
    let end = machine.wait();
    feeder.join().unwrap();
    assert_eq!(end.status.code(), Some(0), "{}", end.log);
    assert!(end.output == format!("up{text}"), "{} bytes came back", end.output.len());
}

/// The end of standard input neither ends the machine nor uses CPU time.
#[test]
fn the_end_of_input_is_no_spin() {
    if !kvm("the_end_of_input_is_no_spin") {
        return;
    }
    let mut machine = Machine::new(&Code::new().print("up").halt().bzimage()).spawn();
    machine.expect("up");
    let before = machine.used();
    std::thread::sleep(Duration::from_millis(500));
    assert!(machine.used() - before < Duration::from_millis(100), "the machine is busy with nothing");
    machine.signal(Signal::TERM);
    assert_eq!(machine.wait().status.code(), Some(143));
}

#[test]
fn output_goes_to_a_file() {
    if !kvm("output_goes_to_a_file") {
        return;
    }
    let machine = Machine::new(&Code::new().print("logged").power_off().bzimage());
    let path = machine.path("serial.log");
    let text = format!("file={}", path.display());
    let mut running = machine.args(&["--serial", &text]).spawn();
    assert_eq!(running.child.wait().unwrap().code(), Some(0));
    let log = std::fs::read_to_string(&path).unwrap();
    assert_eq!(log, "logged");
}

#[test]
fn without_a_serial_port_there_is_no_output() {
    if !kvm("without_a_serial_port_there_is_no_output") {
        return;
    }
    let end =
        Machine::new(&Code::new().print("lost").power_off().bzimage()).args(&["--serial", "none"]).run();
    assert_eq!((end.status.code(), &*end.output), (Some(0), ""));
}

/// Ctrl-C goes to the guest, Ctrl-A a sends a Ctrl-A, Ctrl-A x ends the machine.
#[test]
fn a_terminal_has_an_escape_key() {
    if !kvm("a_terminal_has_an_escape_key") {
        return;
    }
    let mut terminal = terminal();
    let mut machine = terminal.start(echo());
    terminal.user.write_all(b"\x03\x01a-\x01\x01+").unwrap();
    machine.expect("\x03\x01-\x01+");
    terminal.user.write_all(b"\x01x").unwrap();
    let end = machine.wait();
    assert_eq!(end.status.code(), Some(0), "{}", end.log);
    assert!(end.log.contains("ended by Ctrl-A x"), "{}", end.log);
    terminal.assert_restored();
}

/// Ctrl-A x also ends a guest that halts forever and never reads its input.
#[test]
fn a_dead_guest_can_be_left() {
    if !kvm("a_dead_guest_can_be_left") {
        return;
    }
    let mut terminal = terminal();
    let machine = terminal.start(Code::new().print("up").halt());
    terminal.user.write_all(&[b'z'; 1000]).unwrap();
    terminal.user.write_all(b"\x01x").unwrap();
    assert_eq!(machine.wait().status.code(), Some(0));
    terminal.assert_restored();
}
