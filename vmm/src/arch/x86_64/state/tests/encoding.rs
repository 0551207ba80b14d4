//! State as bytes: those that a save wrote, and all others.

use std::sync::OnceLock;

use kvm_bindings::kvm_regs;
use kvm_ioctls::Kvm;
use proptest::prelude::*;

use super::super::{ClockPolicy, Extent, PlatformState, StateError, Uapi, VcpuState};
use super::guest::{Machine, Peers};
use crate::arch::host::platform;
use crate::kvm;

/// A real vCPU and a real machine, encoded.
fn encoded() -> &'static (Vec<u8>, Vec<u8>) {
    static ENCODED: OnceLock<(Vec<u8>, Vec<u8>)> = OnceLock::new();
    ENCODED.get_or_init(|| {
        let saved = Machine::new(&kvm::open().unwrap(), &Peers::new()).save();
        let vcpu = postcard::to_allocvec(&saved.vcpus[1]).unwrap();
        (vcpu, postcard::to_allocvec(&saved.platform).unwrap())
    })
}

/// Gives a new VM what was decoded, whatever it is.
fn restore(kvm: &Kvm, vcpu_state: Option<&VcpuState>, platform_state: Option<&PlatformState>) {
    let vm = kvm.create_vm().unwrap();
    platform::create(&vm).unwrap();
    let vcpu = vm.create_vcpu(0).unwrap();
    let extent = Extent::of(kvm, &vm).unwrap();
    if let Some(state) = vcpu_state {
        let _ = state.restore(&vcpu, &extent);
    }
    if let Some(state) = platform_state {
        let _ = state.restore(&vm, ClockPolicy::Realtime);
    }
}

#[test]
fn what_is_encoded_is_decoded_the_same() {
    let (vcpu, platform) = encoded();
    let state: VcpuState = postcard::from_bytes(vcpu).unwrap();
    assert_eq!(&postcard::to_allocvec(&state).unwrap(), vcpu);
    let state: PlatformState = postcard::from_bytes(platform).unwrap();
    assert_eq!(&postcard::to_allocvec(&state).unwrap(), platform);
}

/// At all sorts of places, the last byte among them.
fn cuts(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    (0..bytes.len()).rev().step_by(13).map(|length| &bytes[..length])
}

#[test]
fn what_is_cut_off_is_refused() {
    let (vcpu, platform) = encoded();
    for cut in cuts(vcpu) {
        assert!(postcard::from_bytes::<VcpuState>(cut).is_err(), "{} bytes", cut.len());
    }
    for cut in cuts(platform) {
        assert!(postcard::from_bytes::<PlatformState>(cut).is_err(), "{} bytes", cut.len());
    }
}

#[test]
fn a_structure_of_another_length_is_refused() {
    let right = postcard::to_allocvec(&vec![0_u8; size_of::<kvm_regs>()]).unwrap();
    postcard::from_bytes::<Uapi<kvm_regs>>(&right).unwrap();
    for length in [0, 1, size_of::<kvm_regs>() - 1, size_of::<kvm_regs>() + 1] {
        let wrong = postcard::to_allocvec(&vec![0_u8; length]).unwrap();
        assert!(postcard::from_bytes::<Uapi<kvm_regs>>(&wrong).is_err(), "{length} bytes");
    }
}

#[test]
fn more_cpuid_leaves_than_kvm_takes_are_refused() {
    let kvm = kvm::open().unwrap();
    let vm = kvm.create_vm().unwrap();
    let vcpu = vm.create_vcpu(0).unwrap();
    let mut state: VcpuState = postcard::from_bytes(&encoded().0).unwrap();
    state.cpuid = vec![state.cpuid[0]; 1000];
    let refused = state.restore(&vcpu, &Extent::of(&kvm, &vm).unwrap());
    assert!(matches!(refused, Err(StateError::Damaged { what: "CPUID list" })), "{refused:?}");
}

#[test]
fn an_fpu_with_more_than_the_hosts_is_refused_and_a_shorter_one_filled_up() {
    let kvm = kvm::open().unwrap();
    let vm = kvm.create_vm().unwrap();
    platform::create(&vm).unwrap();
    let extent = Extent::of(&kvm, &vm).unwrap();
    let restored = |id: u64, change: &dyn Fn(&mut Vec<u8>)| {
        let mut state: VcpuState = postcard::from_bytes(&encoded().0).unwrap();
        change(&mut state.xsave);
        let vcpu = vm.create_vcpu(id).unwrap();
        // An APIC's number is its vCPU's: this one goes without.
        state.lapic = Uapi(vcpu.get_lapic().unwrap());
        state.restore(&vcpu, &extent).map(|()| vcpu)
    };
    restored(1, &|xsave| xsave.resize(xsave.len() + 4096, 0)).unwrap();
    let refused = restored(2, &|xsave| xsave.resize(xsave.len() + 4096, 1));
    assert!(matches!(refused, Err(StateError::Fpu { .. })), "{refused:?}");
    let vcpu = restored(3, &|xsave| xsave.truncate(600)).unwrap();
    assert_eq!(VcpuState::save(&vcpu, &extent).unwrap().xsave.len(), extent.xsave_bytes);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(100) })]

    #[test]
    fn garbled_state_is_kvms_to_refuse(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let (mut vcpu, mut platform) = encoded().clone();
        for (place, byte) in &changes {
            vcpu[place.index(encoded().0.len())] = *byte;
            platform[place.index(encoded().1.len())] = *byte;
        }
        let vcpu = postcard::from_bytes::<VcpuState>(&vcpu).ok();
        let platform = postcard::from_bytes::<PlatformState>(&platform).ok();
        restore(&kvm::open().unwrap(), vcpu.as_ref(), platform.as_ref());
    }

    #[test]
    fn any_bytes_are_decoded_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..4096)) {
        if let Ok(state) = postcard::from_bytes::<VcpuState>(&bytes) {
            prop_assert!(state.msrs.len() <= bytes.len());
        }
        let _ = postcard::from_bytes::<PlatformState>(&bytes);
    }
}
