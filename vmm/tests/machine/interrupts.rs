//! Interrupts of the machine's own devices during a guest's boot.

use serde_json::json;
use volt_http::Method;
use volt_vmm::api::client::ask;

use crate::guest::{Code, Machine, kvm};

/// Registers of the hot-plug controller (filled slots), and of the power button's status.
const PLUGGED: [u8; 2] = 0x610u16.to_le_bytes();
const BUTTON: [u8; 2] = 0x603u16.to_le_bytes();

/// Waits, with all pins of the IOAPIC masked, until slot 2 is filled. Then enables its local APIC and pins 5
/// and 3, and prints "I" after both have interrupted.
fn guest() -> Code {
    let word = |opcode: u8, value: u32| [&[opcode][..], &value.to_le_bytes()].concat();
    // mov edx, 0xcf8; mov eax, slot 2; out dx, eax; mov edx, 0xcfc; in eax, dx; cmp eax, -1; je back to the
    // first
    let wait = [
        word(0xba, 0xcf8),
        word(0xb8, 0x8000_1000),
        vec![0xef],
        word(0xba, 0xcfc),
        vec![0xed, 0x83, 0xf8, 0xff, 0x74, 0xea],
    ];
    // mov ebx, local APIC; mov eax, [rbx + 0xf0]; or eax, 0x100; mov [rbx + 0xf0], eax; mov ecx, IOAPIC
    let enable = [
        word(0xbb, 0xfee0_0000),
        vec![0x8b, 0x83, 0xf0, 0, 0, 0],
        word(0x0d, 0x100),
        vec![0x89, 0x83, 0xf0, 0, 0, 0],
        word(0xb9, 0xfec0_0000),
    ];
    // mov dword [rcx], register; mov dword [rcx + 0x10], level-triggered and vector
    let unmask = |pin: u32, vector: u32| {
        let mut code = vec![0xc7, 0x01];
        code.extend((0x10 + 2 * pin).to_le_bytes());
        code.extend([0xc7, 0x41, 0x10]);
        code.extend((1 << 15 | vector).to_le_bytes());
        code
    };
    // mov eax, [rbx + 0x220]; and eax, 6; cmp eax, 6; jne back to the first
    let requested = [0x8b, 0x83, 0x20, 2, 0, 0, 0x83, 0xe0, 6, 0x83, 0xf8, 6, 0x75, 0xf2];
    let code = Code::new().print("up").raw(&wait.concat()).raw(&enable.concat());
    code.raw(&unmask(5, 0x41)).raw(&unmask(3, 0x42)).raw(&requested).print("I")
}

/// Prints the value of `port`, read with `opcode`, as a digit.
fn print_port(code: Code, port: [u8; 2], opcode: u8) -> Code {
    // mov dx, port; in; add al, '0'; mov dx, 0x3f8; out dx, al
    let [low, high] = port;
    code.raw(&[0x66, 0xba, low, high, opcode, 0x04, b'0', 0x66, 0xba, 0xf8, 0x03, 0xee])
}

/// An added device and a pressed button interrupt after the guest unmasks their interrupts, which are masked
/// until its drivers start. Each event is read once.
#[test]
fn what_happens_while_a_guest_boots_waits_for_it() {
    if !kvm("what_happens_while_a_guest_boots_waits_for_it") {
        return;
    }
    let mut code = guest();
    for (port, opcode) in [(PLUGGED, 0xed), (BUTTON, 0xec), (PLUGGED, 0xed), (BUTTON, 0xec)] {
        code = print_port(code, port, opcode);
    }
    // The guest continues: otherwise the end of the machine would overtake the answer to a request.
    let machine = Machine::new(&code.halt().bzimage());
    let (socket, disk) = (machine.path("api"), machine.path("disk"));
    std::fs::write(&disk, [0; 512]).unwrap();
    let allowed = ["--allow-path", disk.parent().unwrap().to_str().unwrap()];
    let mut machine = machine.args(&["--api-socket", socket.to_str().unwrap()]).args(&allowed).spawn();
    machine.expect("up");
    ask(&socket, Method::PUT, "/v1/power-button", None).unwrap();
    let body = json!({ "options": disk });
    assert_eq!(ask(&socket, Method::POST, "/v1/disk", Some(&body)).unwrap()["slot"], 2);
    machine.expect("I4100");
    ask(&socket, Method::PUT, "/v1/shutdown", None).unwrap();
    assert_eq!(machine.wait().status.code(), Some(0));
}
