//! Kernel and initramfs files: a refused file changes no important memory. A loaded one lies at its announced
//! address, inside the guest's memory, without overlaps.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use arbitrary::Arbitrary;
use rustix::fs::{MemfdFlags, memfd_create};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use volt_vmm::board::layout::{CMDLINE, HIGH_RAM, LOW_RAM_END, PVH_START_INFO, ZERO_PAGE};
use volt_vmm::board::memory::allocate;
use volt_vmm::boot::kernel::KernelImage;
use volt_vmm::boot::{Entry, load};

const MIB: u64 = 1 << 20;

#[derive(Arbitrary, Debug)]
pub(super) struct Input {
    kernel: Kernel,
    /// Bytes to change afterwards.
    patches: Vec<(u16, u8)>,
    /// Bytes to cut off at the end.
    cut: u16,
    /// Length of the initramfs.
    initramfs: Option<Len>,
    cmdline: Vec<u8>,
    mib: u8,
}

#[derive(Arbitrary, Debug)]
enum Kernel {
    Bytes(Vec<u8>),
    BzImage { address: Address, init_size: Len, payload: u16, setup: u8, initrd_max: u32, cmdline: u16 },
    Vmlinux { headers: Vec<Header>, note: Vec<u8>, entry: u32 },
}

#[derive(Arbitrary, Debug)]
enum Address {
    Mib(u8),
    Any(u64),
}

impl Address {
    fn get(&self) -> u64 {
        match self {
            Address::Mib(n) => u64::from(n % 32) * MIB,
            Address::Any(n) => *n,
        }
    }
}

#[derive(Arbitrary, Debug)]
enum Len {
    Small(u16),
    Kib(u16),
    Any(u32),
}

impl Len {
    fn get(&self) -> u32 {
        match self {
            Len::Small(n) => (*n).into(),
            Len::Kib(n) => u32::from(*n) << 10,
            Len::Any(n) => *n,
        }
    }
}

/// A program header, and 16 bytes of the file for it.
#[derive(Arbitrary, Debug)]
struct Header {
    kind: u8,
    address: Address,
    offset: Option<u64>,
    file: Option<u64>,
    memory: Len,
    align: u16,
}

pub(super) fn run(input: Input) {
    let mut bytes = match &input.kernel {
        Kernel::Bytes(bytes) => bytes.clone(),
        Kernel::BzImage { address, init_size, payload, setup, initrd_max, cmdline } => {
            bzimage(address.get(), init_size.get(), (*payload).into(), *setup, *initrd_max, (*cmdline).into())
        }
        Kernel::Vmlinux { headers, note, entry } => vmlinux(&headers[..headers.len().min(8)], note, *entry),
    };
    for (at, byte) in &input.patches {
        if let Some(place) = bytes.get_mut(usize::from(*at)) {
            *place = *byte;
        }
    }
    bytes.truncate(bytes.len().saturating_sub(usize::from(input.cut) % 1024));
    let memory = allocate(u64::from(input.mib % 16 + 1) * MIB, false).expect("memory for a guest");
    let (kernel, path) = file(&bytes);
    let Ok(image) = KernelImage::open(&path) else { return };
    // Beyond 2 MiB only its length counts; a sparse file has that without content.
    let initramfs = input.initramfs.map(|len| {
        let (mut rest, path) = file(&[0xa5; 4096][..(len.get() as usize).min(4096)]);
        rest.set_len(len.get().into()).expect("a sparse file");
        rest.flush().expect("a file");
        (rest, path, u64::from(len.get()))
    });
    let cmdline = String::from_utf8_lossy(&input.cmdline[..input.cmdline.len().min(3000)]).into_owned();
    let loaded = load(&memory, image, initramfs.as_ref().map(|(_, path, _)| path.as_path()), &cmdline);
    if let Ok(entry) = loaded {
        check(&memory, entry, &bytes, initramfs.map(|(.., len)| len), &cmdline);
    }
    drop(kernel);
}

/// Makes a file of `bytes`, and a path to open it.
fn file(bytes: &[u8]) -> (File, PathBuf) {
    let mut file = File::from(memfd_create("file", MemfdFlags::CLOEXEC).expect("a memfd"));
    file.write_all(bytes).expect("a memfd");
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    (file, path.into())
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

fn bzimage(
    address: u64,
    init_size: u32,
    payload: usize,
    setup: u8,
    initrd_max: u32,
    cmdline: u32,
) -> Vec<u8> {
    let sectors = if setup == 0 { 4 } else { usize::from(setup) };
    let mut image = vec![0; (512 * (sectors + 1)).max(1024)];
    image.resize(image.len() + payload, 0x90);
    image[0x1f1] = setup;
    put(&mut image, 0x202, b"HdrS");
    put(&mut image, 0x206, &0x020fu16.to_le_bytes());
    image[0x211] = 1;
    put(&mut image, 0x214, &0x10_0000u32.to_le_bytes());
    put(&mut image, 0x22c, &initrd_max.to_le_bytes());
    put(&mut image, 0x236, &1u16.to_le_bytes());
    put(&mut image, 0x238, &cmdline.to_le_bytes());
    put(&mut image, 0x258, &address.to_le_bytes());
    put(&mut image, 0x260, &init_size.to_le_bytes());
    image
}

fn vmlinux(headers: &[Header], note: &[u8], entry: u32) -> Vec<u8> {
    let mut image = vec![0; 64 + headers.len() * 56];
    put(&mut image, 0, b"\x7fELF\x02\x01\x01");
    put(&mut image, 16, &2u16.to_le_bytes());
    put(&mut image, 18, &62u16.to_le_bytes());
    put(&mut image, 20, &1u32.to_le_bytes());
    put(&mut image, 32, &64u64.to_le_bytes());
    put(&mut image, 52, &64u16.to_le_bytes());
    put(&mut image, 54, &56u16.to_le_bytes());
    put(&mut image, 56, &(headers.len() as u16).to_le_bytes());
    for (n, header) in headers.iter().enumerate() {
        let offset = image.len() as u64;
        let data = match header.kind % 4 {
            // A PVH note, and the fuzzer's bytes after it or instead of it.
            1 => [&[4u32, 4, 18].map(u32::to_le_bytes).concat()[..], b"Xen\0", &entry.to_le_bytes()].concat(),
            2 => note[..note.len().min(256)].to_vec(),
            _ => vec![0xf4; 16],
        };
        let kind = [1u32, 4, 4, header.kind.into()][usize::from(header.kind % 4)];
        let at = 64 + n * 56;
        put(&mut image, at, &kind.to_le_bytes());
        let fields = [
            (8, header.offset.unwrap_or(offset)),
            (24, header.address.get()),
            (32, header.file.unwrap_or(data.len() as u64)),
            (40, header.memory.get().into()),
            (48, header.align.into()),
        ];
        fields.iter().for_each(|(field, value)| put(&mut image, at + field, &value.to_le_bytes()));
        image.extend(data);
    }
    image
}

fn check(memory: &GuestMemoryMmap, entry: Entry, kernel: &[u8], initramfs: Option<u64>, cmdline: &str) {
    let end = vm_memory::GuestMemoryBackend::last_addr(memory).0 + 1;
    let (rip, module) = match entry {
        Entry::Linux64 { rip } => {
            let params = read(memory, ZERO_PAGE, 0x1000);
            (rip, (u64::from(word(&params, 0x218)), u64::from(word(&params, 0x21c))))
        }
        Entry::Pvh { rip } => {
            let info = read(memory, PVH_START_INFO, 32);
            let list = long(&info, 16);
            let module = if word(&info, 12) == 1 { read(memory, list, 16) } else { vec![0; 16] };
            (rip, (long(&module, 0), long(&module, 8)))
        }
    };
    assert!((HIGH_RAM..end).contains(&rip), "the first instruction at {rip:#x} is not in memory");
    let (at, len) = module;
    assert_eq!(len, initramfs.unwrap_or(0));
    if len > 0 {
        assert!(
            at >= HIGH_RAM && at + len <= end,
            "the initramfs of {len} bytes at {at:#x} is not in memory"
        );
        let head = (len as usize).min(4096);
        assert!(read(memory, at, head).iter().all(|byte| *byte == 0xa5), "other bytes than the initramfs's");
    }
    assert_eq!(read(memory, CMDLINE, cmdline.len() + 1), [cmdline.as_bytes(), &[0]].concat());
    assert!(kernel.len() >= 64);
    // Nothing lies there before the machine writes its own tables.
    for (from, to) in [(0, 0x6000), (LOW_RAM_END, HIGH_RAM)] {
        assert!(
            read(memory, from, (to - from) as usize).iter().all(|byte| *byte == 0),
            "{from:#x} was written"
        );
    }
}

fn read(memory: &GuestMemoryMmap, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    memory.read_slice(&mut bytes, GuestAddress(at)).expect("guest memory");
    bytes
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}
