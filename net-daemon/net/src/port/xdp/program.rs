//! The XDP program that gives an interface's frames to sockets, and its attachment (`bpf(2)`).
//!
//! It is six instructions long, so it is written here instead of being compiled:
//! ```text
//! r2 = ctx->rx_queue_index             the queue that the frame arrived on
//! r1 = the map                         from queues to sockets
//! r3 = XDP_PASS                        what becomes of frames of other queues
//! call bpf_redirect_map(r1, r2, r3)
//! return r0
//! ```
//! It is attached by a link: a descriptor. When the last copy of it is closed, the program is gone, and the
//! interface is the host's again. The kernel keeps the map as long as the program.
#![expect(unsafe_code, reason = "bpf(2)")]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Commands of `bpf(2)`, from `linux/bpf.h`.
const MAP_CREATE: libc::c_int = 0;
const MAP_UPDATE_ELEM: libc::c_int = 2;
const PROG_LOAD: libc::c_int = 5;
const LINK_CREATE: libc::c_int = 28;
/// `BPF_MAP_TYPE_XSKMAP`.
const XSKMAP: u32 = 17;
/// `BPF_PROG_TYPE_XDP`.
const TYPE_XDP: u32 = 6;
/// `BPF_XDP`, the place where it is attached.
const ATTACH_XDP: u32 = 37;
/// Flags of an attachment, from `linux/if_link.h`.
const SKB_MODE: u32 = 1 << 1;
const DRV_MODE: u32 = 1 << 2;
const XDP_PASS: i32 = 2;
/// `BPF_FUNC_redirect_map`.
const REDIRECT_MAP: i32 = 51;

/// An instruction (`struct bpf_insn`).
#[repr(C)]
#[derive(Clone, Copy)]
struct Instruction {
    code: u8,
    /// Destination in the lower half, source in the upper one.
    registers: u8,
    offset: i16,
    value: i32,
}

impl Instruction {
    const fn new(code: u8, to: u8, from: u8, offset: i16, value: i32) -> Instruction {
        Instruction { code, registers: to | from << 4, offset, value }
    }
}

/// Returns the program for the map with this descriptor.
fn instructions(map: i32) -> [Instruction; 6] {
    /// `BPF_LDX | BPF_MEM | BPF_W`, `BPF_LD | BPF_IMM | BPF_DW`, `BPF_ALU64 | BPF_MOV | BPF_K`.
    const LOAD: u8 = 0x61;
    const LOAD_WIDE: u8 = 0x18;
    const SET: u8 = 0xb7;
    const CALL: u8 = 0x85;
    const EXIT: u8 = 0x95;
    /// Offset of `rx_queue_index` in `struct xdp_md`.
    const QUEUE: i16 = 16;
    /// `BPF_PSEUDO_MAP_FD`: the value is the descriptor of a map.
    const MAP: u8 = 1;
    [
        Instruction::new(LOAD, 2, 1, QUEUE, 0),
        Instruction::new(LOAD_WIDE, 1, MAP, 0, map),
        // The upper half of the wide value.
        Instruction::new(0, 0, 0, 0, 0),
        Instruction::new(SET, 3, 0, 0, XDP_PASS),
        Instruction::new(CALL, 0, 0, 0, REDIRECT_MAP),
        Instruction::new(EXIT, 0, 0, 0, 0),
    ]
}

/// Where an XDP program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In the interface's driver.
    Driver,
    /// In the kernel's network stack, for drivers without XDP.
    Stack,
}

/// A map from an interface's queues to sockets.
#[derive(Debug)]
pub(super) struct SocketMap(OwnedFd);

impl SocketMap {
    /// Creates a map for queues below `queues`.
    pub(super) fn new(queues: u32) -> io::Result<SocketMap> {
        #[repr(C)]
        struct MapCreate {
            map_type: u32,
            key_size: u32,
            value_size: u32,
            max_entries: u32,
        }
        let create = MapCreate { map_type: XSKMAP, key_size: 4, value_size: 4, max_entries: queues };
        // SAFETY: it contains no pointers.
        unsafe { descriptor(MAP_CREATE, &create) }.map(SocketMap)
    }

    /// Gives the frames of `queue` to `socket`. The entry goes with the socket.
    pub(super) fn set(&self, queue: u32, socket: &OwnedFd) -> io::Result<()> {
        #[repr(C)]
        struct MapUpdate {
            map: u32,
            padding: u32,
            key: u64,
            value: u64,
            flags: u64,
        }
        let value = socket.as_raw_fd() as u32;
        let update = MapUpdate {
            map: self.0.as_raw_fd() as u32,
            padding: 0,
            key: std::ptr::from_ref(&queue) as u64,
            value: std::ptr::from_ref(&value) as u64,
            flags: 0,
        };
        // SAFETY: the kernel reads four bytes each from key and value, which live until after the call.
        unsafe { bpf(MAP_UPDATE_ELEM, &update) }.map(drop)
    }

    /// Loads the program for this map, and attaches it to interface number `interface`. Returns the link.
    pub(super) fn attach(&self, interface: u32, place: Place) -> io::Result<OwnedFd> {
        #[repr(C)]
        struct LinkCreate {
            program: u32,
            interface: u32,
            attach_type: u32,
            flags: u32,
        }
        let program = self.load()?;
        let create = LinkCreate {
            program: program.as_raw_fd() as u32,
            interface,
            attach_type: ATTACH_XDP,
            flags: match place {
                Place::Driver => DRV_MODE,
                Place::Stack => SKB_MODE,
            },
        };
        // SAFETY: it contains no pointers.
        unsafe { descriptor(LINK_CREATE, &create) }
    }

    fn load(&self) -> io::Result<OwnedFd> {
        #[repr(C)]
        struct ProgLoad {
            prog_type: u32,
            instructions_len: u32,
            instructions: u64,
            license: u64,
            log_level: u32,
            log_size: u32,
            log: u64,
            kernel_version: u32,
            flags: u32,
            name: [u8; 16],
            interface: u32,
            expected_attach_type: u32,
        }
        let instructions = instructions(self.0.as_raw_fd());
        let load = ProgLoad {
            prog_type: TYPE_XDP,
            instructions_len: instructions.len() as u32,
            instructions: instructions.as_ptr() as u64,
            license: c"Dual BSD/GPL".as_ptr() as u64,
            log_level: 0,
            log_size: 0,
            log: 0,
            kernel_version: 0,
            flags: 0,
            name: *b"volt_netd\0\0\0\0\0\0\0",
            interface: 0,
            expected_attach_type: ATTACH_XDP,
        };
        // SAFETY: the kernel reads the instructions and the license, which live until after the call.
        unsafe { descriptor(PROG_LOAD, &load) }
    }
}

/// Calls `bpf(2)` with a command that returns a descriptor.
///
/// # Safety
///
/// As for [`bpf`].
unsafe fn descriptor<T>(command: libc::c_int, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: as for this function. The kernel has opened the descriptor for this call.
    unsafe { bpf(command, attributes).map(|fd| OwnedFd::from_raw_fd(fd as i32)) }
}

/// Calls `bpf(2)`. The kernel takes attributes that are not given as zero.
///
/// # Safety
///
/// `T` must be the beginning of the attributes of `command` in `union bpf_attr`, and pointers in it must be
/// valid for what the command does with them.
unsafe fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<libc::c_long> {
    // SAFETY: as for this function. These commands do not write to the attributes.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
