//! What CPUID answers in a guest: KVM's list of what it supports, with the topology of this machine written into it.
//!
//! Leaves are those of the Intel SDM, volume 2A, "CPUID", and of the AMD APM, volume 3, appendix E. The KVM leaves
//! (0x4000_0000 and on: clock, asynchronous page faults, PV EOI …) are passed on as KVM gives them.

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// How the vCPUs are told they sit together: one package, one or two threads a core.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Topology {
    /// How many vCPUs there are, 1 to 32.
    pub vcpu_count: u8,
    /// Whether two vCPUs share a core.
    pub smt: bool,
}

impl Topology {
    fn threads_per_core(self) -> u32 {
        if self.smt && self.vcpu_count > 1 { 2 } else { 1 }
    }

    fn cores(self) -> u32 {
        u32::from(self.vcpu_count).div_ceil(self.threads_per_core())
    }

    /// How many low bits of an APIC id number the threads of a core.
    fn core_shift(self) -> u32 {
        self.threads_per_core().ilog2()
    }

    /// How many low bits of an APIC id number the threads of the package.
    fn package_shift(self) -> u32 {
        u32::from(self.vcpu_count).next_power_of_two().ilog2()
    }
}

/// Leaf 1, ECX: the local APIC timer can be set by a TSC value.
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1, ECX: there is a hypervisor.
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1, EDX: the package holds more than one logical processor.
const HYPER_THREADING: u32 = 1 << 28;
/// Leaf 1, ECX and EDX: what belongs to Intel's performance counters.
const DTES64: u32 = 1 << 2;
const PDCM: u32 = 1 << 15;
const DEBUG_STORE: u32 = 1 << 21;
/// Leaf 1, ECX, and leaf 0x8000_0001, ECX: a guest can be a host.
const VMX: u32 = 1 << 5;
const SVM: u32 = 1 << 2;
/// Leaf 0x8000_0001, ECX: more of AMD's performance counters.
const AMD_PERFCTR_CORE: u32 = 1 << 23;
/// Leaf 0, EBX: `Auth` of AuthenticAMD and `Hygo` of HygonGenuine.
const AMD_VENDORS: [u32; 2] = [u32::from_le_bytes(*b"Auth"), u32::from_le_bytes(*b"Hygo")];
/// Leaf 0x8000_0001, ECX: AMD's legacy way to say the same.
const AMD_CMP_LEGACY: u32 = 1 << 1;

/// Writes into `entries`, KVM's supported list, what vCPU `index` of `topology` is to see.
///
/// `tsc_deadline` says whether KVM emulates that timer mode; it is no part of KVM's list.
pub(super) fn specialize(
    entries: &mut Vec<kvm_cpuid_entry2>,
    topology: Topology,
    index: u8,
    tsc_deadline: bool,
) {
    entries.retain(|entry| !matches!(entry.function, 0xb | 0x1f | 0x8000_0022 | 0x8000_0026));
    let is_amd = entries.iter().any(|entry| entry.function == 0 && AMD_VENDORS.contains(&entry.ebx));
    let has_topology_leaf = entries.iter().any(|entry| entry.function == 0 && entry.eax >= 0xb);
    for entry in entries.iter_mut() {
        specialize_entry(entry, topology, index, tsc_deadline);
        hide_counters(entry);
        hide_nesting(entry);
        if is_amd {
            specialize_amd_entry(entry, topology, index);
        }
    }
    if has_topology_leaf {
        entries.extend(topology_leaf(topology, index));
    }
}

fn specialize_entry(entry: &mut kvm_cpuid_entry2, topology: Topology, index: u8, tsc_deadline: bool) {
    let several = topology.vcpu_count > 1;
    match entry.function {
        0x1 => {
            let ids = 1_u32 << topology.package_shift();
            entry.ebx = (entry.ebx & 0xffff) | ids << 16 | u32::from(index) << 24;
            set_bit(&mut entry.ecx, HYPERVISOR, true);
            set_bit(&mut entry.ecx, TSC_DEADLINE, tsc_deadline);
            set_bit(&mut entry.edx, HYPER_THREADING, several);
        }
        0x4 if entry.eax & 0x1f != 0 => {
            let package_cores = (1 << (topology.package_shift() - topology.core_shift())) - 1;
            entry.eax = (entry.eax & 0x3fff) | cache_sharers(entry.eax, topology) << 14 | package_cores << 26;
        }
        0x8000_0001 if !several => set_bit(&mut entry.ecx, AMD_CMP_LEGACY, false),
        _ => {}
    }
}

/// Leaves that mean something else, or nothing, on other vendors' processors.
fn specialize_amd_entry(entry: &mut kvm_cpuid_entry2, topology: Topology, index: u8) {
    match entry.function {
        0x8000_0008 => {
            let count = u32::from(topology.vcpu_count) - 1;
            entry.ecx = (entry.ecx & !0xf0ff) | count | topology.package_shift() << 12;
        }
        0x8000_001d if entry.eax & 0x1f != 0 => {
            entry.eax = (entry.eax & 0x3fff) | cache_sharers(entry.eax, topology) << 14;
        }
        0x8000_001e => {
            entry.eax = u32::from(index);
            entry.ebx = u32::from(index) >> topology.core_shift() | (topology.threads_per_core() - 1) << 8;
            entry.ecx = 0;
        }
        _ => {}
    }
}

/// Leaves out the performance counters, of which a VM has none: their state cannot be moved between hosts.
fn hide_counters(entry: &mut kvm_cpuid_entry2) {
    match entry.function {
        0x1 => {
            set_bit(&mut entry.ecx, DTES64 | PDCM, false);
            set_bit(&mut entry.edx, DEBUG_STORE, false);
        }
        0xa => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        0x8000_0001 => set_bit(&mut entry.ecx, AMD_PERFCTR_CORE, false),
        _ => {}
    }
}

/// A VM is no host of others: their state is none that is saved.
fn hide_nesting(entry: &mut kvm_cpuid_entry2) {
    match entry.function {
        0x1 => set_bit(&mut entry.ecx, VMX, false),
        0x8000_0001 => set_bit(&mut entry.ecx, SVM, false),
        0x8000_000a => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        _ => {}
    }
}

/// How many logical processors share the cache that EAX of leaf 4 or 0x8000_001d describes, less one.
fn cache_sharers(eax: u32, topology: Topology) -> u32 {
    let level = eax >> 5 & 7;
    let sharers = if level < 3 { topology.threads_per_core() } else { 1 << topology.package_shift() };
    sharers - 1
}

/// Leaf 0xb: the threads of a core, the cores of the package, and the end of the list.
fn topology_leaf(topology: Topology, index: u8) -> [kvm_cpuid_entry2; 3] {
    let level = |number: u32, kind: u32, shift: u32, processors: u32| kvm_cpuid_entry2 {
        function: 0xb,
        index: number,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: processors,
        ecx: number | kind << 8,
        edx: u32::from(index),
        ..kvm_cpuid_entry2::default()
    };
    let all = topology.cores() * topology.threads_per_core();
    [
        level(0, 1, topology.core_shift(), topology.threads_per_core()),
        level(1, 2, topology.package_shift(), all),
        level(2, 0, 0, 0),
    ]
}

fn set_bit(register: &mut u32, bit: u32, value: bool) {
    if value {
        *register |= bit;
    } else {
        *register &= !bit;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, eax: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, eax, ..kvm_cpuid_entry2::default() }
    }

    fn specialized(vcpu_count: u8, smt: bool, index: u8) -> Vec<kvm_cpuid_entry2> {
        // A leaf-4 L1 (level 1, data) and L3 (level 3, unified) besides those without parameters.
        let leaf0 = kvm_cpuid_entry2 { ebx: AMD_VENDORS[0], ..entry(0, 0x1f) };
        let mut entries = vec![
            leaf0,
            entry(1, 0),
            entry(4, 0x21),
            entry(4, 0x63),
            entry(0xa, 0x0730_0402),
            entry(0xb, 7),
            entry(0x1f, 7),
            entry(0x8000_0008, 0),
            entry(0x8000_001e, 0),
        ];
        specialize(&mut entries, Topology { vcpu_count, smt }, index, true);
        entries
    }

    fn find(entries: &[kvm_cpuid_entry2], function: u32, index: usize) -> kvm_cpuid_entry2 {
        *entries.iter().filter(|entry| entry.function == function).nth(index).expect("the leaf is there")
    }

    #[test]
    fn four_cores_are_told_apart() {
        let entries = specialized(4, false, 3);
        let one = find(&entries, 1, 0);
        assert_eq!((one.ebx >> 24, one.ebx >> 16 & 0xff), (3, 4));
        assert_eq!(one.ecx & (HYPERVISOR | TSC_DEADLINE), HYPERVISOR | TSC_DEADLINE);
        assert_ne!(one.edx & HYPER_THREADING, 0);
        let (threads, cores, end) = (find(&entries, 0xb, 0), find(&entries, 0xb, 1), find(&entries, 0xb, 2));
        assert_eq!((threads.eax, threads.ebx, threads.ecx, threads.edx), (0, 1, 0x100, 3));
        assert_eq!((cores.eax, cores.ebx, cores.ecx, cores.edx), (2, 4, 0x201, 3));
        assert_eq!((end.ebx, end.ecx >> 8), (0, 0));
        assert_eq!(find(&entries, 4, 0).eax >> 14 & 0xfff, 0, "L1 belongs to one core");
        assert_eq!(find(&entries, 4, 1).eax >> 14 & 0xfff, 3, "L3 is shared by all");
        assert!(entries.iter().all(|entry| entry.function != 0x1f));
    }

    #[test]
    fn threads_share_a_core() {
        let entries = specialized(6, true, 5);
        let (threads, cores) = (find(&entries, 0xb, 0), find(&entries, 0xb, 1));
        assert_eq!((threads.eax, threads.ebx), (1, 2));
        assert_eq!((cores.eax, cores.ebx), (3, 6));
        assert_eq!(find(&entries, 4, 0).eax >> 14 & 0xfff, 1);
        assert_eq!(find(&entries, 0x8000_001e, 0).ebx, 2 | 1 << 8, "core 2, two threads a core");
        assert_eq!(find(&entries, 0x8000_0008, 0).ecx, 5 | 3 << 12);
    }

    #[test]
    fn one_vcpu_stands_alone_and_counters_are_gone() {
        let entries = specialized(1, true, 0);
        assert_eq!(find(&entries, 1, 0).edx & HYPER_THREADING, 0);
        assert_eq!(find(&entries, 0xb, 1).ebx, 1);
        assert_eq!(find(&entries, 0xa, 0).eax, 0);
    }

    #[test]
    fn a_guest_is_no_host() {
        let mut entries = vec![
            kvm_cpuid_entry2 { ecx: VMX | 1, ..entry(1, 0) },
            kvm_cpuid_entry2 { ecx: SVM | 1, ..entry(0x8000_0001, 0) },
            entry(0x8000_000a, 1),
        ];
        specialize(&mut entries, Topology { vcpu_count: 1, smt: false }, 0, false);
        assert_eq!(entries[0].ecx, HYPERVISOR | 1);
        assert_eq!((entries[1].ecx, entries[2].eax), (1, 0));
    }

    #[test]
    fn leaves_of_one_vendor_are_left_alone_on_another() {
        let mut entries = vec![entry(0, 0x1f), entry(0x8000_0008, 0)];
        specialize(&mut entries, Topology { vcpu_count: 8, smt: false }, 0, true);
        assert_eq!(find(&entries, 0x8000_0008, 0).ecx, 0);
    }

    #[test]
    fn every_count_gives_each_vcpu_its_own_id() {
        for vcpu_count in 1..=32 {
            for index in 0..vcpu_count {
                let entries = specialized(vcpu_count, vcpu_count % 2 == 0, index);
                let cores = find(&entries, 0xb, 1);
                assert_eq!(cores.edx, u32::from(index));
                assert!(u32::from(index) < 1 << cores.eax, "the id fits into the package's bits");
            }
        }
    }
}
