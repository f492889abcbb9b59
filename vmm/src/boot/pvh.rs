//! The PVH boot protocol: `hvm_start_info` and the tables that it points to (Xen, docs/misc/pvh.pandoc).

use linux_loader::start_info::{
    XEN_HVM_MEMMAP_TYPE_RAM, XEN_HVM_MEMMAP_TYPE_RESERVED, XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry,
    hvm_modlist_entry, hvm_start_info,
};
use vm_memory::{ByteValued, GuestMemoryMmap};

use crate::board::layout::{CMDLINE, PVH_MEMMAP, PVH_MODULES, PVH_START_INFO, RSDP};
use crate::board::memory::{RangeKind, map_for_guest};
use crate::boot::data::{Initramfs, put};
use crate::boot::error::BootError;

/// Version of `hvm_start_info` that has the memory map.
const VERSION: u32 = 1;

/// Writes the start info, the module list and the memory map.
///
/// # Errors
///
/// Fails if guest memory ends before them.
pub fn write_start_info(memory: &GuestMemoryMmap, initramfs: Option<Initramfs>) -> Result<(), BootError> {
    let mut info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: VERSION,
        cmdline_paddr: CMDLINE,
        rsdp_paddr: RSDP,
        memmap_paddr: PVH_MEMMAP,
        ..Default::default()
    };
    if let Some(Initramfs { address, size }) = initramfs {
        let module = hvm_modlist_entry { paddr: address, size, ..Default::default() };
        put(memory, PVH_MODULES, module.as_slice())?;
        info.nr_modules = 1;
        info.modlist_paddr = PVH_MODULES;
    }
    let mut next = PVH_MEMMAP;
    for (addr, size, kind) in map_for_guest(memory) {
        let type_ = match kind {
            RangeKind::Ram => XEN_HVM_MEMMAP_TYPE_RAM,
            RangeKind::Reserved => XEN_HVM_MEMMAP_TYPE_RESERVED,
        };
        let entry = hvm_memmap_table_entry { addr, size, type_, reserved: 0 };
        put(memory, next, entry.as_slice())?;
        next += size_of_val(&entry) as u64;
        info.memmap_entries += 1;
    }
    put(memory, PVH_START_INFO, info.as_slice())
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::board::memory::allocate;

    #[test]
    fn the_start_info_leads_to_everything_else() {
        let memory = allocate(4 << 30, false).unwrap();
        write_start_info(&memory, Some(Initramfs { address: 0xb000_0000, size: 77 })).unwrap();
        let info: hvm_start_info = memory.read_obj(GuestAddress(PVH_START_INFO)).unwrap();
        assert_eq!((info.magic, info.version, info.rsdp_paddr), (0x336e_c578, 1, RSDP));
        let module: hvm_modlist_entry = memory.read_obj(GuestAddress(info.modlist_paddr)).unwrap();
        assert_eq!((info.nr_modules, module.paddr, module.size), (1, 0xb000_0000, 77));
        let last = info.memmap_paddr + u64::from(info.memmap_entries - 1) * 24;
        let last: hvm_memmap_table_entry = memory.read_obj(GuestAddress(last)).unwrap();
        assert_eq!((last.addr, last.size, last.type_), (4 << 30, 1 << 30, XEN_HVM_MEMMAP_TYPE_RAM));
    }

    #[test]
    fn without_an_initramfs_there_is_no_module() {
        let memory = allocate(16 << 20, false).unwrap();
        write_start_info(&memory, None).unwrap();
        let info: hvm_start_info = memory.read_obj(GuestAddress(PVH_START_INFO)).unwrap();
        assert_eq!((info.nr_modules, info.modlist_paddr), (0, 0));
    }
}
