use std::io::Write;
use std::os::unix::fs::symlink;

use vm_memory::Bytes;

use super::*;
use crate::board::memory::allocate;

const MIB: u64 = 1 << 20;

fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn opened(bytes: &[u8]) -> Result<KernelImage, KernelError> {
    KernelImage::open(file(bytes).path())
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// A bzImage with one setup sector and a payload of 528 bytes of 0x90.
fn bzimage() -> Vec<u8> {
    let mut image = vec![0; 1024];
    image.extend([0x90; 33 * 16]);
    image[0x1f1] = 1;
    put(&mut image, 0x1f4, &33u32.to_le_bytes());
    put(&mut image, 0x202, b"HdrS");
    put(&mut image, 0x206, &0x020fu16.to_le_bytes());
    image[0x211] = 1;
    put(&mut image, 0x214, &0x10_0000u32.to_le_bytes());
    put(&mut image, 0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(&mut image, 0x236, &1u16.to_le_bytes());
    put(&mut image, 0x238, &2047u32.to_le_bytes());
    put(&mut image, 0x258, &(2 * MIB).to_le_bytes());
    put(&mut image, 0x260, &(MIB as u32).to_le_bytes());
    image
}

/// A vmlinux with one segment of 16 bytes at 2 MiB, which grows to 1 MiB, with or without a PVH note.
fn vmlinux(note: bool) -> Vec<u8> {
    let mut image = vec![0; 64 + 2 * 56];
    put(&mut image, 0, b"\x7fELF\x02\x01\x01");
    put(&mut image, 16, &2u16.to_le_bytes());
    put(&mut image, 18, &62u16.to_le_bytes());
    put(&mut image, 32, &64u64.to_le_bytes());
    put(&mut image, 54, &56u16.to_le_bytes());
    put(&mut image, 56, &(if note { 2u16 } else { 1 }).to_le_bytes());
    let mut header = |index: usize, kind: u32, offset: u64, address: u64, size: u64, memory: u64| {
        let at = 64 + index * 56;
        put(&mut image, at, &kind.to_le_bytes());
        for (field, value) in [(8, offset), (24, address), (32, size), (40, memory)] {
            put(&mut image, at + field, &value.to_le_bytes());
        }
    };
    header(0, 1, 176, 2 * MIB, 16, MIB);
    header(1, 4, 192, 0, 20, 20);
    image.extend([0xf4; 16]);
    image.extend([4u32, 4, 18].into_iter().flat_map(u32::to_le_bytes));
    image.extend(b"Xen\0");
    image.extend((2 * MIB as u32 + 8).to_le_bytes());
    image
}

#[test]
fn a_bzimage_is_loaded_where_it_prefers_to_be() {
    let memory = allocate(16 * MIB, false).unwrap();
    let loaded = opened(&bzimage()).unwrap().load(&memory).unwrap();
    assert_eq!((loaded.entry, loaded.end), (2 * MIB + 0x200, 3 * MIB));
    assert_eq!((loaded.cmdline_max, loaded.initramfs_max), (2047, 0x7fff_ffff));
    assert!(matches!(loaded.protocol, Protocol::Linux64(_)));
    assert_eq!(memory.read_obj::<u8>(GuestAddress(2 * MIB + 511)).unwrap(), 0x90);
}

#[test]
fn an_entry_outside_of_the_kernel_is_refused() {
    let memory = allocate(16 * MIB, false).unwrap();
    for entry in [0u32, (2 * MIB) as u32 - 1, (3 * MIB) as u32, u32::MAX] {
        let mut image = vmlinux(true);
        let at = image.len() - 4;
        put(&mut image, at, &entry.to_le_bytes());
        let error = opened(&image).unwrap().load(&memory).unwrap_err();
        assert!(matches!(error, KernelError::Entry(at) if at == u64::from(entry)), "{error}");
    }
}

#[test]
fn a_vmlinux_is_started_at_its_pvh_entry() {
    let memory = allocate(16 * MIB, false).unwrap();
    let loaded = opened(&vmlinux(true)).unwrap().load(&memory).unwrap();
    assert_eq!((loaded.entry, loaded.end), (2 * MIB + 8, 3 * MIB));
    assert!(matches!(loaded.protocol, Protocol::Pvh));
}

#[test]
fn a_vmlinux_without_the_note_is_refused() {
    let memory = allocate(16 * MIB, false).unwrap();
    assert!(matches!(opened(&vmlinux(false)).unwrap().load(&memory), Err(KernelError::NoPvh)));
}

#[test]
fn too_little_memory_says_how_much_is_needed() {
    for (mut image, at) in [(bzimage(), 0x260), (vmlinux(true), 64 + 40)] {
        put(&mut image, at, &(30 * MIB as u32).to_le_bytes());
        let memory = allocate(16 * MIB, false).unwrap();
        let error = opened(&image).unwrap().load(&memory).unwrap_err();
        let (need, have) = (32 * MIB, 16 * MIB);
        assert!(
            matches!(error, KernelError::TooLittleMemory { need: n, have: h } if (n, h) == (need, have)),
            "{error}"
        );
    }
}

#[test]
fn a_kernel_below_one_megabyte_would_meet_the_boot_data() {
    let memory = allocate(16 * MIB, false).unwrap();
    for (mut image, at) in [(bzimage(), 0x258), (vmlinux(true), 64 + 24)] {
        put(&mut image, at, &0x8000u64.to_le_bytes());
        assert!(matches!(opened(&image).unwrap().load(&memory), Err(KernelError::Low(0x8000))));
    }
}

#[test]
fn files_that_are_no_kernel_are_told_apart() {
    let changed = |mut image: Vec<u8>, at: usize, value: &[u8]| {
        put(&mut image, at, value);
        opened(&image).unwrap_err()
    };
    assert!(matches!(opened(b""), Err(KernelError::Unknown)));
    assert!(matches!(opened(b"\x7fELF"), Err(KernelError::Unknown)));
    assert!(matches!(opened(&[0; 4096]), Err(KernelError::Unknown)));
    assert!(matches!(opened(b"\x1f\x8b\x08"), Err(KernelError::Compressed("gzip"))));
    assert!(matches!(opened(b"\xfd7zXZ\0"), Err(KernelError::Compressed("xz"))));
    assert!(matches!(opened(b"\x28\xb5\x2f\xfd\0"), Err(KernelError::Compressed("zstd"))));
    assert!(matches!(opened(b"MZ\x90\0"), Err(KernelError::Efi)));
    assert!(matches!(changed(bzimage(), 0x236, &[0, 0]), KernelError::Bits32));
    assert!(matches!(changed(bzimage(), 0x206, &[4, 2]), KernelError::Protocol(0x204)));
    assert!(matches!(changed(vmlinux(true), 18, &[3, 0]), KernelError::Bits32));
    assert!(matches!(changed(vmlinux(true), 4, &[1]), KernelError::Bits32));
    assert!(matches!(changed(vmlinux(true), 18, &[183, 0]), KernelError::Machine(183)));
    assert!(matches!(changed(vmlinux(true), 16, &[1, 0]), KernelError::ElfType(1)));
    assert!(matches!(changed(vmlinux(true), 54, &[1]), KernelError::Headers));
    assert!(matches!(changed(vmlinux(true), 32, &[0xff; 8]), KernelError::Headers));
    assert!(matches!(changed(vmlinux(true), 64 + 8, &[0xff; 8]), KernelError::Headers));
    assert!(matches!(changed(vmlinux(true), 64 + 40, &[0xff; 8]), KernelError::Headers));
    assert!(matches!(changed(vmlinux(true), 64 + 40, &[1, 0, 0, 0, 0, 0, 0, 0]), KernelError::Headers));
}

/// For every length, down to one at which nothing shows that it was a kernel.
#[test]
fn a_kernel_cut_short_is_named() {
    for image in [bzimage(), vmlinux(true)] {
        let all = image.len() as u64;
        opened(&image).unwrap();
        for len in [all - 1, all - 30, 700, 590, 530].into_iter().filter(|&len| len < all) {
            let error = opened(&image[..len as usize]).unwrap_err();
            let short = |need: u64| (len < need) && need <= all;
            assert!(
                matches!(error, KernelError::Short { len: l, need } if l == len && short(need)),
                "{len}: {error}"
            );
        }
    }
    let error = opened(&vmlinux(true)[..100]).unwrap_err();
    assert!(matches!(error, KernelError::Short { len: 100, need: 176 }), "{error}");
    // An image without a size has at least a first instruction.
    let mut image = bzimage();
    put(&mut image, 0x1f4, &[0; 4]);
    opened(&image[..1024 + 0x201]).unwrap();
    assert!(matches!(opened(&image[..1024 + 0x200]), Err(KernelError::Short { .. })));
    put(&mut image, 0x1f4, &[0xff; 4]);
    assert!(matches!(opened(&image), Err(KernelError::Short { .. })));
    put(&mut image, 0x1f1, &[0]);
    put(&mut image, 0x1f4, &[0; 4]);
    assert!(matches!(opened(&image), Err(KernelError::Short { need, .. }) if need == 5 * 512 + 0x201));
}

#[test]
fn more_memory_than_a_guest_can_have_is_no_advice_to_raise_it() {
    let memory = allocate(16 * MIB, false).unwrap();
    for (mut image, at) in [(bzimage(), 0x258), (vmlinux(true), 64 + 24)] {
        put(&mut image, at, &(3u64 << 30).to_le_bytes());
        let error = opened(&image).unwrap().load(&memory).unwrap_err();
        assert!(matches!(error, KernelError::TooHigh(_)) && !error.to_string().contains("--mem"), "{error}");
    }
}

#[test]
fn paths_that_are_no_file_are_named() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(KernelImage::open(dir.path()), Err(KernelError::NotAFile)));
    assert!(matches!(KernelImage::open(Path::new("/dev/zero")), Err(KernelError::NotAFile)));
    assert!(matches!(KernelImage::open(&dir.path().join("absent")), Err(KernelError::Read(_))));
    let fifo = dir.path().join("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    assert!(matches!(KernelImage::open(&fifo), Err(KernelError::NotAFile)));
    let link = dir.path().join("link");
    symlink(&link, &link).unwrap();
    assert!(matches!(KernelImage::open(&link), Err(KernelError::Read(_))));
}
