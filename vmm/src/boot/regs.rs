//! Registers, segments, page tables and local APIC of the boot vCPU (Intel SDM volume 3; AMD APM volume 2).

use kvm_bindings::{CpuId, Msrs, kvm_fpu, kvm_lapic_state, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use crate::board::layout::{GDT, PAGE_TABLES, PVH_START_INFO, ZERO_PAGE};
use crate::boot::data::Entry;

/// Protection enable.
const CR0_PE: u64 = 1;
/// Extension type: always set on modern processors.
const CR0_ET: u64 = 1 << 4;
/// Paging.
const CR0_PG: u64 = 1 << 31;
/// Physical address extension.
const CR4_PAE: u64 = 1 << 5;
/// Long mode enabled and active.
const EFER_LME_LMA: u64 = 1 << 8 | 1 << 10;
/// The bit of RFLAGS that is always set. Interrupts are off.
const RFLAGS: u64 = 2;
/// Page table entry: present and writable.
const PAGE_PRESENT_WRITABLE: u64 = 3;
/// Page directory entry: a page of 2 MiB.
const PAGE_LARGE: u64 = 1 << 7;
/// Selectors that the Linux boot protocol requires. They also suit PVH.
const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
const TSS_SELECTOR: u16 = 0x20;
/// `IA32_MISC_ENABLE`, and its fast string bit.
const MSR_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1;
/// `IA32_MTRR_DEF_TYPE`: MTRRs on, everything write-back.
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
const MTRR_ENABLE_WRITE_BACK: u64 = 1 << 11 | 6;

/// Why KVM refused a part of a vCPU's state.
#[derive(Debug, Error)]
pub enum RegsError {
    /// An ioctl failed.
    #[error("KVM refuses the vCPU's {0}")]
    Kvm(&'static str, #[source] kvm_ioctls::Error),
    /// This KVM does not have a register.
    #[error("KVM refuses the value of MSR {0:#x}")]
    Msr(u32),
    /// Writing page tables or the GDT failed.
    #[error("page tables cannot be written to guest memory")]
    Memory(#[source] GuestMemoryError),
}

/// Sets the common state of all vCPUs.
///
/// # Errors
///
/// Fails if KVM refuses a part.
pub fn setup_vcpu(vcpu: &VcpuFd, cpuid: &CpuId) -> Result<(), RegsError> {
    let kvm = |what| move |error| RegsError::Kvm(what, error);
    vcpu.set_cpuid2(cpuid).map_err(kvm("CPUID"))?;
    for (index, data) in
        [(MSR_MISC_ENABLE, MISC_ENABLE_FAST_STRING), (MSR_MTRR_DEF_TYPE, MTRR_ENABLE_WRITE_BACK)]
    {
        let msrs = Msrs::from_entries(&[kvm_msr_entry { index, data, ..Default::default() }])
            .map_err(|_| RegsError::Msr(index))?;
        if vcpu.set_msrs(&msrs).map_err(kvm("MSRs"))? != 1 {
            return Err(RegsError::Msr(index));
        }
    }
    let mut lapic = vcpu.get_lapic().map_err(kvm("local APIC"))?;
    connect_local_interrupts(&mut lapic);
    vcpu.set_lapic(&lapic).map_err(kvm("local APIC"))
}

/// Connects LINT0 to the PIC's interrupts and LINT1 to the NMI, like firmware ("virtual wire mode").
fn connect_local_interrupts(lapic: &mut kvm_lapic_state) {
    const LVT_LINT0: usize = 0x350;
    const LVT_LINT1: usize = 0x360;
    const DELIVERY_MODE: u32 = 7 << 8;
    const NMI: u32 = 4 << 8;
    const EXTINT: u32 = 7 << 8;
    const MASKED: u32 = 1 << 16;
    for (register, mode) in [(LVT_LINT0, EXTINT), (LVT_LINT1, NMI)] {
        let Some(field) = lapic.regs.get_mut(register..).and_then(|rest| rest.first_chunk_mut::<4>()) else {
            continue;
        };
        let value = u32::from_le_bytes(field.map(|byte| byte as u8));
        *field = (value & !(DELIVERY_MODE | MASKED) | mode).to_le_bytes().map(|byte| byte as i8);
    }
}

/// Sets the entry of the boot vCPU, and writes the GDT and page tables that it needs.
///
/// # Errors
///
/// Fails if KVM refuses a part.
pub fn setup_boot_vcpu(vcpu: &VcpuFd, memory: &GuestMemoryMmap, entry: Entry) -> Result<(), RegsError> {
    let kvm = |what| move |error| RegsError::Kvm(what, error);
    let mut sregs = vcpu.get_sregs().map_err(kvm("system registers"))?;
    let regs = match entry {
        Entry::Linux64 { rip } => {
            write_page_tables(memory).map_err(RegsError::Memory)?;
            long_mode(&mut sregs);
            kvm_regs { rip, rsi: ZERO_PAGE, rflags: RFLAGS, ..Default::default() }
        }
        Entry::Pvh { rip } => {
            protected_mode(&mut sregs);
            kvm_regs { rip, rbx: PVH_START_INFO, rflags: RFLAGS, ..Default::default() }
        }
    };
    write_gdt(memory, &mut sregs).map_err(RegsError::Memory)?;
    vcpu.set_sregs(&sregs).map_err(kvm("system registers"))?;
    vcpu.set_regs(&regs).map_err(kvm("registers"))?;
    // Like after FNINIT, with SSE exceptions masked.
    let fpu = kvm_fpu { fcw: 0x37f, mxcsr: 0x1f80, ..Default::default() };
    vcpu.set_fpu(&fpu).map_err(kvm("floating-point registers"))
}

fn long_mode(sregs: &mut kvm_sregs) {
    set_segments(sregs, true);
    sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
    sregs.cr3 = PAGE_TABLES;
    sregs.cr4 = CR4_PAE;
    sregs.efer |= EFER_LME_LMA;
}

fn protected_mode(sregs: &mut kvm_sregs) {
    set_segments(sregs, false);
    sregs.cr0 = CR0_PE | CR0_ET;
    sregs.cr4 = 0;
}

/// Sets flat segments over 4 GiB. `long` makes the code segment a 64-bit one.
fn set_segments(sregs: &mut kvm_sregs, long: bool) {
    const CODE: u8 = 0xb;
    const DATA: u8 = 3;
    const BUSY_TSS: u8 = 0xb;
    let flat = kvm_segment { limit: u32::MAX, present: 1, s: 1, g: 1, ..Default::default() };
    sregs.cs =
        kvm_segment { selector: CODE_SELECTOR, type_: CODE, l: long.into(), db: (!long).into(), ..flat };
    let data = kvm_segment { selector: DATA_SELECTOR, type_: DATA, db: 1, ..flat };
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = kvm_segment {
        selector: TSS_SELECTOR,
        type_: BUSY_TSS,
        limit: 0x67,
        present: 1,
        ..Default::default()
    };
}

/// Writes the descriptors of the segments in `sregs` to the places of their selectors.
fn write_gdt(memory: &GuestMemoryMmap, sregs: &mut kvm_sregs) -> Result<(), GuestMemoryError> {
    const ENTRIES: u16 = 5;
    let mut end = 0;
    for segment in [&sregs.cs, &sregs.ds, &sregs.tr] {
        memory.write_obj(descriptor(segment), GuestAddress(GDT + u64::from(segment.selector)))?;
        end = end.max(segment.selector + 8);
    }
    debug_assert_eq!(end, ENTRIES * 8);
    (sregs.gdt.base, sregs.gdt.limit) = (GDT, end - 1);
    (sregs.idt.base, sregs.idt.limit) = (0, 0);
    Ok(())
}

/// Returns a segment descriptor (Intel SDM volume 3, 3.4.5).
fn descriptor(segment: &kvm_segment) -> u64 {
    let (base, bytes) = (segment.base, u64::from(segment.limit));
    let limit = if segment.g == 1 { bytes >> 12 } else { bytes };
    let flag = |value: u8, bit: u32| u64::from(value & 1) << bit;
    limit & 0xffff
        | (base & 0xff_ffff) << 16
        | u64::from(segment.type_ & 0xf) << 40
        | flag(segment.s, 44)
        | u64::from(segment.dpl & 3) << 45
        | flag(segment.present, 47)
        | (limit >> 16 & 0xf) << 48
        | flag(segment.l, 53)
        | flag(segment.db, 54)
        | flag(segment.g, 55)
        | (base >> 24 & 0xff) << 56
}

/// Maps the first 4 GiB one to one with pages of 2 MiB.
fn write_page_tables(memory: &GuestMemoryMmap) -> Result<(), GuestMemoryError> {
    const TABLE: u64 = 0x1000;
    const ENTRIES: u64 = 512;
    const GIGABYTES: u64 = 4;
    let write = |table: u64, entry: u64, value: u64| {
        memory.write_obj(value | PAGE_PRESENT_WRITABLE, GuestAddress(table + entry * 8))
    };
    let (pdpt, directories) = (PAGE_TABLES + TABLE, PAGE_TABLES + 2 * TABLE);
    write(PAGE_TABLES, 0, pdpt)?;
    for gigabyte in 0..GIGABYTES {
        write(pdpt, gigabyte, directories + gigabyte * TABLE)?;
    }
    // The directories follow each other, so that one counter covers all of them.
    for page in 0..GIGABYTES * ENTRIES {
        write(directories, page, page << 21 | PAGE_LARGE)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::board::memory::allocate;

    #[test]
    fn descriptors_are_those_of_flat_segments() {
        let mut sregs = kvm_sregs::default();
        set_segments(&mut sregs, true);
        assert_eq!(descriptor(&sregs.cs), 0x00af_9b00_0000_ffff);
        assert_eq!(descriptor(&sregs.ds), 0x00cf_9300_0000_ffff);
        set_segments(&mut sregs, false);
        assert_eq!(descriptor(&sregs.cs), 0x00cf_9b00_0000_ffff);
        assert_eq!(descriptor(&sregs.tr), 0x0000_8b00_0000_0067);
    }

    #[test]
    fn the_first_four_gigabytes_are_mapped_one_to_one() {
        let memory = allocate(16 << 20, false).unwrap();
        write_page_tables(&memory).unwrap();
        let entry = |table: u64, index: u64| memory.read_obj::<u64>(GuestAddress(table + index * 8)).unwrap();
        for address in [0, 0x20_0000, 0xd000_0000u64, 0xffff_ffff] {
            let pdpt = entry(PAGE_TABLES, address >> 39) & !0xfff;
            let directory = entry(pdpt, address >> 30 & 511) & !0xfff;
            let page = entry(directory, address >> 21 & 511);
            assert_eq!(page, address & !0x1f_ffff | 0x83, "{address:#x}");
        }
    }

    #[test]
    fn lint_pins_are_those_of_virtual_wire_mode() {
        let mut lapic = kvm_lapic_state::default();
        lapic.regs[0x352] = 1;
        connect_local_interrupts(&mut lapic);
        assert_eq!(lapic.regs[0x350..0x354], [0, 7, 0, 0]);
        assert_eq!(lapic.regs[0x360..0x364], [0, 4, 0, 0]);
    }
}
