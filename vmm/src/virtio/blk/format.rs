//! Recognizes disk images that are not raw, by their signatures.
//!
//! A guest would find no partitions on such an image, and destroy it with its first writes. LUKS is not in
//! the list: a raw disk that the guest itself has encrypted starts like that, too.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// A signature: offset, bytes, and the format's name, as in `qemu-img` if it has one.
const HEADS: [(usize, &[u8], &str); 11] = [
    // With the version, which is 1 for qcow, and 2 or 3 for qcow2.
    (0, b"QFI\xfb\0\0\0\x01", "qcow"),
    (0, b"QFI\xfb", "qcow2"),
    (0, b"QED\0", "qed"),
    (0, b"KDMV", "vmdk"),
    (0, b"COWD", "vmdk"),
    (0, b"# Disk DescriptorFile", "vmdk"),
    (0, b"conectix", "vpc (VHD)"),
    (0, b"vhdxfile", "vhdx"),
    (0, b"WithoutFreeSpace", "parallels"),
    (0, b"WithouFreSpacExt", "parallels"),
    (0x40, b"\x7f\x10\xda\xbe", "vdi"),
];
/// A VHD of a fixed size is raw except for its last bytes.
const VHD_FOOTER: u64 = 512;
const VHD: &[u8] = b"conectix";

/// Returns the format of `file`, of `len` bytes, if it is known and not raw.
///
/// # Errors
///
/// Fails if the file cannot be read.
pub fn of(file: &File, len: u64) -> io::Result<Option<&'static str>> {
    let mut head = [0; 0x60];
    let in_head = usize::try_from(len).map_or(head.len(), |len| len.min(head.len()));
    file.read_exact_at(&mut head[..in_head], 0)?;
    let starts = |&&(at, magic, _): &&(usize, &[u8], &str)| head[at..].starts_with(magic);
    if let Some(&(_, _, name)) = HEADS.iter().find(starts) {
        return Ok(Some(name));
    }
    let Some(at) = len.checked_sub(VHD_FOOTER) else { return Ok(None) };
    let mut tail = [0; VHD.len()];
    file.read_exact_at(&mut tail, at)?;
    Ok((tail == VHD).then_some("vpc (VHD of a fixed size)"))
}
