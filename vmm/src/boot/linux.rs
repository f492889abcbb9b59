//! The 64-bit Linux boot protocol: `boot_params`, the "zero page" (Linux, arch/x86/boot.rst).

use linux_loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use vm_memory::{ByteValued, GuestMemoryMmap};

use crate::board::layout::{CMDLINE, RSDP, ZERO_PAGE};
use crate::board::memory::{RangeKind, map_for_guest};
use crate::boot::data::{Initramfs, put};
use crate::boot::error::BootError;

/// `type_of_loader` of a loader without an own number.
const LOADER_UNDEFINED: u8 = 0xff;
/// e820 type of RAM.
const E820_RAM: u32 = 1;
/// e820 type of memory that must not be used.
const E820_RESERVED: u32 = 2;

/// Writes `boot_params` for a kernel whose file has `header`.
///
/// # Errors
///
/// Fails if guest memory ends before it.
pub fn write_zero_page(
    memory: &GuestMemoryMmap,
    header: setup_header,
    initramfs: Option<Initramfs>,
    cmdline_len: usize,
) -> Result<(), BootError> {
    let params = zero_page(memory, header, initramfs, cmdline_len);
    put(memory, ZERO_PAGE, params.as_slice())
}

fn zero_page(
    memory: &GuestMemoryMmap,
    header: setup_header,
    initramfs: Option<Initramfs>,
    cmdline_len: usize,
) -> boot_params {
    let mut params = boot_params { hdr: header, acpi_rsdp_addr: RSDP, ..Default::default() };
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    // Both are below 4 GiB: see the layout and Loaded::initramfs_max.
    params.hdr.cmd_line_ptr = CMDLINE as u32;
    params.hdr.cmdline_size = cmdline_len as u32;
    // Overwritten in any case, because these fields belong to the loader.
    let ramdisk = initramfs.map(|initramfs| (initramfs.address as u32, initramfs.size as u32));
    (params.hdr.ramdisk_image, params.hdr.ramdisk_size) = ramdisk.unwrap_or_default();
    params.hdr.setup_data = 0;
    for (entry, (addr, size, kind)) in params.e820_table.iter_mut().zip(map_for_guest(memory)) {
        let r#type = match kind {
            RangeKind::Ram => E820_RAM,
            RangeKind::Reserved => E820_RESERVED,
        };
        *entry = boot_e820_entry { addr, size, r#type };
        params.e820_entries += 1;
    }
    params
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::board::memory::allocate;

    #[test]
    fn the_zero_page_tells_ram_initramfs_and_tables() {
        let memory = allocate(4 << 30, false).unwrap();
        let initramfs = Initramfs { address: 0xbfff_0000, size: 0x1234 };
        let params =
            zero_page(&memory, setup_header { version: 0x20f, ..Default::default() }, Some(initramfs), 7);
        assert_eq!({ params.acpi_rsdp_addr }, RSDP);
        assert_eq!({ params.hdr.version }, 0x20f);
        assert_eq!(({ params.hdr.ramdisk_image }, { params.hdr.ramdisk_size }), (0xbfff_0000, 0x1234));
        let stray = setup_header { ramdisk_image: 1, ramdisk_size: 2, setup_data: 3, ..Default::default() };
        let hdr = zero_page(&memory, stray, None, 7).hdr;
        assert_eq!(({ hdr.ramdisk_image }, { hdr.ramdisk_size }, { hdr.setup_data }), (0, 0, 0));
        assert_eq!(params.e820_entries, 4);
        let last = params.e820_table[3];
        assert_eq!(({ last.addr }, { last.size }, { last.r#type }), (4 << 30, 1 << 30, E820_RAM));
    }
}
