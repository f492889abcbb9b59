//! A guest that echoes: a kernel of some hundred bytes with a driver for the first virtio-net device on
//! virtio-mmio. It returns each frame that it receives.
//!
//! For front-ends that are virtual machine monitors: `volt-conform frontend` writes it to a file and the
//! monitor boots it. It polls its rings, because some KVMs of test machines deliver no interrupts to such a
//! guest. PVH, 32-bit: memory is flat, and the devices are at volt-vmm's addresses, in slots of 4 KiB from
//! 0xd0000000.
#![expect(unsafe_code, reason = "the guest's code is assembled with this program and read as bytes")]

use std::arch::global_asm;

/// Load address of the code. Rings and buffers follow from 4 MiB, so 8 MiB of memory are enough.
const LOAD: u32 = 2 << 20;

// Rings of 8 entries: receive at 0x400000 (descriptors), 0x401000 (available), 0x402000 (used), transmit
// 0x4000 higher. Buffer N is the 2 KiB at 0x410000 + N * 0x800. ESI: registers of the device, EBX: frames
// echoed, ECX: the buffer.
global_asm!(
    ".section .rodata",
    ".code32",
    ".globl volt_echo_guest",
    "volt_echo_guest:",
    "cld",
    "mov esi, 0xd0000000",
    "2: cmp dword ptr [esi + 8], 1",
    "je 3f",
    "add esi, 0x1000",
    "jmp 2b",
    // Reset, ACKNOWLEDGE, DRIVER; VERSION_1 and nothing else; FEATURES_OK.
    "3: mov dword ptr [esi + 0x70], 0",
    "mov dword ptr [esi + 0x70], 1",
    "mov dword ptr [esi + 0x70], 3",
    "mov dword ptr [esi + 0x24], 1",
    "mov dword ptr [esi + 0x20], 1",
    "mov dword ptr [esi + 0x24], 0",
    "mov dword ptr [esi + 0x20], 0",
    "mov dword ptr [esi + 0x70], 11",
    // Both vrings.
    "mov dword ptr [esi + 0x30], 0",
    "mov dword ptr [esi + 0x38], 8",
    "mov dword ptr [esi + 0x80], 0x400000",
    "mov dword ptr [esi + 0x90], 0x401000",
    "mov dword ptr [esi + 0xa0], 0x402000",
    "mov dword ptr [esi + 0x44], 1",
    "mov dword ptr [esi + 0x30], 1",
    "mov dword ptr [esi + 0x38], 8",
    "mov dword ptr [esi + 0x80], 0x404000",
    "mov dword ptr [esi + 0x90], 0x405000",
    "mov dword ptr [esi + 0xa0], 0x406000",
    "mov dword ptr [esi + 0x44], 1",
    "mov dword ptr [esi + 0x70], 15",
    // All receive buffers.
    "xor ecx, ecx",
    "4: mov eax, ecx",
    "shl eax, 4",
    "mov edx, ecx",
    "shl edx, 11",
    "add edx, 0x410000",
    "mov dword ptr [eax + 0x400000], edx",
    "mov dword ptr [eax + 0x400008], 0x800",
    "mov dword ptr [eax + 0x40000c], 2",
    "mov word ptr [ecx * 2 + 0x401004], cx",
    "inc ecx",
    "cmp ecx, 8",
    "jb 4b",
    "mov word ptr [0x401002], cx",
    "mov dword ptr [esi + 0x50], 0",
    "xor ebx, ebx",
    // A frame has arrived: its buffer becomes a transmit chain.
    "5: pause",
    "cmp bx, word ptr [0x402002]",
    "je 5b",
    "mov eax, ebx",
    "and eax, 7",
    "mov ecx, dword ptr [eax * 8 + 0x402004]",
    "mov edx, dword ptr [eax * 8 + 0x402008]",
    "mov edi, ecx",
    "shl edi, 4",
    "mov ebp, ecx",
    "shl ebp, 11",
    "add ebp, 0x410000",
    "mov dword ptr [edi + 0x404000], ebp",
    "mov dword ptr [edi + 0x404008], edx",
    "mov dword ptr [edi + 0x40400c], 0",
    "mov word ptr [eax * 2 + 0x405004], cx",
    "inc ebx",
    "mov word ptr [0x405002], bx",
    "mov dword ptr [esi + 0x50], 1",
    // After the frame has left, the buffer is for receiving again.
    "6: pause",
    "cmp bx, word ptr [0x406002]",
    "jne 6b",
    "lea eax, [ebx + 7]",
    "and eax, 7",
    "mov word ptr [eax * 2 + 0x401004], cx",
    "lea edx, [ebx + 8]",
    "mov word ptr [0x401002], dx",
    "mov dword ptr [esi + 0x50], 0",
    "jmp 5b",
    ".globl volt_echo_guest_end",
    "volt_echo_guest_end:",
    ".code64",
    ".text",
);

unsafe extern "C" {
    safe static volt_echo_guest: u8;
    safe static volt_echo_guest_end: u8;
}

fn code() -> &'static [u8] {
    let (start, end) = (&raw const volt_echo_guest, &raw const volt_echo_guest_end);
    // SAFETY: both are labels around the same piece of read-only data, start before end.
    unsafe { std::slice::from_raw_parts(start, end.offset_from_unsigned(start)) }
}

/// Returns the guest as a vmlinux with a PVH entry: an ELF file of one segment, and the note with the address
/// of its first instruction.
pub fn vmlinux() -> Vec<u8> {
    const HEADERS: u32 = 64 + 2 * 56;
    let code = code();
    let note = [&words(&[4, 4, 18])[..], b"Xen\0", &LOAD.to_le_bytes()].concat();
    // Identification, type 2 (executable), machine 62 (x86-64), one place for program headers behind this
    // header.
    let mut image = b"\x7fELF\x02\x01\x01".to_vec();
    image.resize(16, 0);
    image.extend(words(&[62 << 16 | 2, 1, 0, 0, 64, 0, 0, 0, 0, 56 << 16 | 64, 2]));
    image.resize(64, 0);
    let mut segment = |kind: u32, offset: u32, address: u32, len: usize| {
        let len = len as u32;
        image.extend(words(&[kind, 7, offset, 0, address, 0, address, 0, len, 0, len, 0, 0, 0]));
    };
    segment(1, HEADERS + note.len() as u32, LOAD, code.len());
    segment(4, HEADERS, 0, note.len());
    [image, note, code.to_vec()].concat()
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}
