//! Which vCPU can live on which host.

use kvm_bindings::{kvm_cpuid_entry2, kvm_lapic_state, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs};

use super::super::{Extent, HostFacts, Uapi, Unfit, VcpuState};
use super::guest::{Machine, Peers};
use crate::kvm;

type Leaves = Vec<Uapi<kvm_cpuid_entry2>>;

fn leaf(function: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> Uapi<kvm_cpuid_entry2> {
    Uapi(kvm_cpuid_entry2 { function, eax, ebx, ecx, edx, ..kvm_cpuid_entry2::default() })
}

fn vendor(letters: &[u8; 12]) -> Uapi<kvm_cpuid_entry2> {
    let word = |at: usize| u32::from_le_bytes(letters[at..at + 4].try_into().unwrap());
    leaf(0, [0x1f, word(0), word(8), word(4)])
}

fn intel() -> Leaves {
    vec![
        vendor(b"GenuineIntel"),
        leaf(1, [0x000a_0655, 0, 1 << 20 | 1 << 25, 1 << 25]),
        leaf(7, [0, 1 << 5, 0, 0]),
        leaf(0x8000_0008, [46, 0, 0, 0]),
    ]
}

fn host(cpuid: Leaves, tsc_khz: u32) -> HostFacts {
    HostFacts {
        vendor: "GenuineIntel".to_owned(),
        family: 6,
        model: 0xa5,
        brand: String::new(),
        cpuid,
        tsc_khz: Some(tsc_khz),
        can_scale_tsc: false,
        msr_count: 0,
        kernel: String::new(),
    }
}

fn vcpu(cpuid: Leaves, tsc_khz: u32) -> VcpuState {
    VcpuState {
        cpuid,
        tsc_khz: Some(tsc_khz),
        mp_state: 0,
        events: Uapi(kvm_vcpu_events::default()),
        regs: Uapi(kvm_regs::default()),
        sregs: Uapi(kvm_sregs::default()),
        xcrs: Uapi(kvm_xcrs::default()),
        xsave: Vec::new(),
        debugregs: Uapi(kvm_bindings::kvm_debugregs::default()),
        msrs: Vec::new(),
        lapic: Uapi(kvm_lapic_state::default()),
    }
}

const GHZ_KHZ: u32 = 2_000_000;

fn check(saved: Leaves, supported: Leaves) -> Result<(), Unfit> {
    vcpu(saved, GHZ_KHZ).check(&host(supported, GHZ_KHZ))
}

#[test]
fn a_host_with_as_much_or_more_will_do() {
    assert_eq!(check(intel(), intel()), Ok(()));
    let mut more = intel();
    more[1].0.ecx |= 1 << 28;
    more[3].0.eax = 52;
    more.push(leaf(0x8000_0021, [u32::MAX; 4]));
    assert_eq!(check(intel(), more), Ok(()));
}

#[test]
fn each_feature_that_is_lacking_is_named() {
    let mut saved = intel();
    saved[1].0.ecx |= 1 << 28 | 1 << 12; // avx, fma
    saved[2].0.ebx |= 1 << 16; // avx512f
    saved[2].0.ecx |= 1 << 15; // no name
    saved.push(leaf(0xd, [7, 0, 0, 0]));
    let unfit = check(saved, intel()).unwrap_err();
    let expected = ["fma", "avx", "avx512f", "CPUID 0x7/0 ECX bit 15", "x87_state", "sse_state", "avx_state"];
    assert_eq!(unfit.features, expected);
    let said = unfit.to_string();
    assert!(said.contains("this host lacks fma, avx, avx512f, CPUID 0x7/0 ECX bit 15"), "{said}");
}

#[test]
fn what_a_guest_switches_on_and_what_every_guest_is_told_is_no_feature() {
    let mut saved = intel();
    saved[1].0.ecx |= 1 << 27 | 1 << 31; // OSXSAVE, hypervisor
    saved[1].0.edx |= 1 << 28; // several processors
    saved[1].0.ebx = 0x0304_0800;
    saved[2].0.ecx |= 1 << 4; // OSPKE
    assert_eq!(check(saved, intel()), Ok(()));
}

#[test]
fn another_vendor_and_narrower_addresses_are_told() {
    let mut amd = intel();
    amd[0] = vendor(b"AuthenticAMD");
    amd[3].0.eax = 48;
    let unfit = check(amd, intel()).unwrap_err();
    assert_eq!(unfit.vendors, Some(("AuthenticAMD".to_owned(), "GenuineIntel".to_owned())));
    assert_eq!(unfit.physical_bits, Some((48, 46)));
    let said = unfit.to_string();
    assert!(said.contains("is of AuthenticAMD, this host's of GenuineIntel"), "{said}");
    assert!(said.contains("have 48 bits, this host's 46"), "{said}");
}

#[test]
fn a_counter_that_is_too_fast_or_slow_needs_scaling() {
    let limit_khz = GHZ_KHZ / 4000; // 250 millionths
    let at = |khz| vcpu(intel(), khz).check(&host(intel(), GHZ_KHZ));
    assert_eq!(at(GHZ_KHZ + limit_khz), Ok(()));
    assert_eq!(at(GHZ_KHZ - limit_khz), Ok(()));
    for khz in [GHZ_KHZ + limit_khz + 1, GHZ_KHZ - limit_khz - 1] {
        assert_eq!(at(khz).unwrap_err().tsc_khz, Some((khz, GHZ_KHZ)));
        let scaling = HostFacts { can_scale_tsc: true, ..host(intel(), GHZ_KHZ) };
        assert_eq!(vcpu(intel(), khz).check(&scaling), Ok(()));
    }
}

#[test]
fn a_long_list_is_cut_short() {
    let saved = vec![vendor(b"GenuineIntel"), leaf(1, [0, 0, u32::MAX, u32::MAX]), leaf(7, [u32::MAX; 4])];
    let unfit = check(saved, vec![vendor(b"GenuineIntel")]).unwrap_err();
    assert!(unfit.features.len() > 64);
    let said = unfit.to_string();
    assert!(said.contains(&format!("and {} more", unfit.features.len() - 64)), "{said}");
}

#[test]
fn a_guest_fits_the_host_it_is_on() {
    let kvm = kvm::open().unwrap();
    let mut machine = Machine::new(&kvm, &Peers::new());
    let vm = kvm.create_vm().unwrap();
    let facts = HostFacts::of(&kvm, &vm.create_vcpu(0).unwrap(), &Extent::of(&kvm, &vm).unwrap()).unwrap();
    assert_eq!(facts.vendor.len(), 12, "{facts:?}");
    assert!(facts.family >= 6 && facts.msr_count > 0 && !facts.kernel.is_empty(), "{facts:?}");
    for state in machine.save().vcpus {
        assert_eq!(state.check(&facts), Ok(()));
    }
    let bytes = postcard::to_allocvec(&facts).unwrap();
    assert_eq!(postcard::from_bytes::<HostFacts>(&bytes).unwrap(), facts);
}
