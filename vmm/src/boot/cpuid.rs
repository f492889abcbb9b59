//! CPUID of the guest's processors: the leaves that KVM supports, with each vCPU as a separate core in one
//! package.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::Kvm;

/// Leaf 1, ECX: the local APIC timer supports a TSC deadline.
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1, ECX: there is a hypervisor.
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1, EDX: the package has more than one APIC id.
const HTT: u32 = 1 << 28;
/// Leaf 0x8000_0001, ECX on AMD: these ids are cores, not threads.
const CMP_LEGACY: u32 = 1 << 1;
/// The entry is for one subleaf only.
const FLAG_INDEX: u32 = kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX;

/// Returns the leaves that this host's KVM supports.
///
/// # Errors
///
/// An error of KVM.
pub fn supported(kvm: &Kvm) -> Result<CpuId, kvm_ioctls::Error> {
    kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
}

/// Turns `cpuid` into the leaves of vCPU `id` of `cpus`.
///
/// `tsc_deadline` tells whether KVM's local APIC has that timer. KVM omits the bit from the supported leaves
/// and reports it as a capability.
pub fn for_vcpu(
    supported: &CpuId,
    id: u8,
    cpus: u8,
    tsc_deadline: bool,
) -> Result<CpuId, vmm_sys_util::fam::Error> {
    let topology = Topology { id: u32::from(id), cpus: u32::from(cpus.max(1)) };
    // Topology leaves are replaced, because hosts have any number of their subleaves.
    let mut entries: Vec<kvm_cpuid_entry2> =
        supported.as_slice().iter().filter(|entry| !matches!(entry.function, 0xb | 0x1f)).copied().collect();
    for entry in &mut entries {
        topology.adjust(entry, tsc_deadline);
    }
    for function in [0xb, 0x1f] {
        // Only up to the highest basic leaf.
        let highest =
            supported.as_slice().iter().find(|entry| entry.function == 0).map_or(0, |entry| entry.eax);
        if function <= highest {
            entries.extend(topology.extended_leaves(function));
        }
    }
    CpuId::from_entries(&entries)
}

struct Topology {
    id: u32,
    cpus: u32,
}

impl Topology {
    /// Returns the number of bits of an APIC id below the package's number.
    fn id_bits(&self) -> u32 {
        self.cpus.next_power_of_two().trailing_zeros()
    }

    fn adjust(&self, entry: &mut kvm_cpuid_entry2, tsc_deadline: bool) {
        let last = self.cpus - 1;
        match entry.function {
            1 => {
                entry.ecx |= HYPERVISOR;
                set(&mut entry.ecx, TSC_DEADLINE, tsc_deadline);
                set(&mut entry.edx, HTT, self.cpus > 1);
                let logical = self.cpus.next_power_of_two().min(0xff);
                entry.ebx = entry.ebx & 0xffff | logical << 16 | self.id << 24;
            }
            // Intel's cache parameters: each core has its own L1 and L2, all share L3.
            4 if entry.eax & 0x1f != 0 => {
                let level = entry.eax >> 5 & 7;
                let sharing = if level >= 3 { (1 << self.id_bits()) - 1 } else { 0 };
                let cores = ((1 << self.id_bits()) - 1).min(0x3f);
                entry.eax = entry.eax & 0x3fff | sharing << 14 | cores << 26;
            }
            0x8000_0001 if self.cpus == 1 => entry.ecx &= !CMP_LEGACY,
            // AMD: number of cores and bits of their ids.
            0x8000_0008 => entry.ecx = entry.ecx & !0xf0ff | last & 0xff | self.id_bits() << 12,
            // AMD's cache parameters, like leaf 4.
            0x8000_001d if entry.eax & 0x1f != 0 => {
                let sharing = if entry.eax >> 5 & 7 >= 3 { last } else { 0 };
                entry.eax = entry.eax & 0x3fff | sharing << 14;
            }
            // AMD: APIC id; core id and one thread per core; one node.
            0x8000_001e => {
                (entry.eax, entry.ebx, entry.ecx) = (self.id, self.id & 0xff, 0);
            }
            _ => {}
        }
    }

    /// Returns the extended topology, leaves 0xb and 0x1f: one thread per core, all cores in one package.
    fn extended_leaves(&self, function: u32) -> [kvm_cpuid_entry2; 3] {
        const THREAD: u32 = 1;
        const CORE: u32 = 2;
        [(0, 1, THREAD), (self.id_bits(), self.cpus, CORE), (0, 0, 0)].map(|(shift, processors, level)| {
            // The level's number is the subleaf's plus one. The last one, of type 0, ends the list.
            let index = match level {
                THREAD => 0,
                CORE => 1,
                _ => 2,
            };
            kvm_cpuid_entry2 {
                function,
                index,
                flags: FLAG_INDEX,
                eax: shift,
                ebx: processors,
                ecx: index | level << 8,
                edx: self.id,
                ..Default::default()
            }
        })
    }
}

fn set(register: &mut u32, bit: u32, on: bool) {
    *register = if on { *register | bit } else { *register & !bit };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(leaves: &[(u32, [u32; 4])]) -> CpuId {
        let entries: Vec<_> = leaves
            .iter()
            .map(|&(function, [eax, ebx, ecx, edx])| kvm_cpuid_entry2 {
                function,
                eax,
                ebx,
                ecx,
                edx,
                ..Default::default()
            })
            .collect();
        CpuId::from_entries(&entries).unwrap()
    }

    fn leaf(cpuid: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
        *cpuid.as_slice().iter().find(|e| e.function == function && e.index == index).unwrap()
    }

    #[test]
    fn each_vcpu_has_its_apic_id_in_every_leaf() {
        let host = host(&[
            (0, [0x1f, 0, 0, 0]),
            (1, [0, 0xaa00_1234, 0, 0]),
            (0xb, [9, 9, 9, 9]),
            (0x8000_001e, [7, 7, 7, 7]),
        ]);
        for id in 0..3 {
            let cpuid = for_vcpu(&host, id, 3, true).unwrap();
            let id = u32::from(id);
            let basic = leaf(&cpuid, 1, 0);
            assert_eq!(basic.ebx, id << 24 | 4 << 16 | 0x1234);
            assert_eq!(basic.ecx, HYPERVISOR | TSC_DEADLINE);
            assert_eq!(basic.edx, HTT);
            for function in [0xb, 0x1f] {
                assert_eq!(leaf(&cpuid, function, 0).edx, id);
                let cores = leaf(&cpuid, function, 1);
                assert_eq!((cores.eax, cores.ebx, cores.ecx, cores.edx), (2, 3, 0x201, id));
                assert_eq!(leaf(&cpuid, function, 2).ecx, 2);
            }
            assert_eq!(leaf(&cpuid, 0x8000_001e, 0).eax, id);
        }
    }

    #[test]
    fn one_vcpu_is_alone_and_leaves_beyond_the_highest_stay_away() {
        let cpuid =
            for_vcpu(&host(&[(0, [0xd, 0, 0, 0]), (1, [0, 0, TSC_DEADLINE, HTT])]), 0, 1, false).unwrap();
        let basic = leaf(&cpuid, 1, 0);
        assert_eq!((basic.ebx, basic.ecx, basic.edx), (1 << 16, HYPERVISOR, 0));
        assert_eq!(leaf(&cpuid, 0xb, 1).eax, 0);
        assert!(cpuid.as_slice().iter().all(|e| e.function != 0x1f));
    }
}
