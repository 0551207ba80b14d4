//! Registers that KVM refuses.

use kvm_ioctls::{Kvm, VcpuFd, VmFd};

use super::super::msrs::{in_order, list, restore, save};
use super::super::{SavedMsr, StateError};
use super::guest::{LSTAR, SYSENTER_EIP, TSC_DEADLINE};
use crate::kvm;

/// No processor has it.
const NONE: u32 = 0x4fff_fff0;

fn vcpu() -> (Kvm, VmFd, VcpuFd) {
    let kvm = kvm::open().unwrap();
    let vm = kvm.create_vm().unwrap();
    let vcpu = vm.create_vcpu(0).unwrap();
    (kvm, vm, vcpu)
}

#[test]
fn those_that_kvm_does_not_give_are_left_out_wherever_they_are() {
    let (_, _vm, vcpu) = vcpu();
    let saved = save(&vcpu, &[NONE, NONE, SYSENTER_EIP, NONE, LSTAR, NONE]).unwrap();
    assert_eq!(saved.iter().map(|msr| msr.index).collect::<Vec<_>>(), [SYSENTER_EIP, LSTAR]);
}

#[test]
fn more_than_kvm_takes_at_once_are_saved_and_set() {
    let (_, _vm, vcpu) = vcpu();
    let many = [SYSENTER_EIP; 600];
    assert_eq!(save(&vcpu, &many).unwrap().len(), 600);
    restore(&vcpu, &many.map(|index| SavedMsr { index, value: 7 })).unwrap();
    assert_eq!(save(&vcpu, &[SYSENTER_EIP]).unwrap()[0].value, 7);
}

#[test]
fn a_value_that_cannot_be_set_is_named_and_a_zero_is_done_without() {
    let (_, _vm, vcpu) = vcpu();
    let with = |value| [SavedMsr { index: NONE, value }, SavedMsr { index: SYSENTER_EIP, value: 9 }];
    restore(&vcpu, &with(0)).unwrap();
    assert_eq!(save(&vcpu, &[SYSENTER_EIP]).unwrap()[0].value, 9, "what comes after it is set");
    let refused = restore(&vcpu, &with(5));
    assert!(matches!(refused, Err(StateError::Msr { index: NONE, value: 5 })), "{refused:?}");
}

#[test]
fn the_counter_is_set_first_and_its_deadline_last() {
    let saved = [TSC_DEADLINE, LSTAR, 0x10, SYSENTER_EIP].map(|index| SavedMsr { index, value: 1 });
    let order: Vec<_> = in_order(&saved).iter().map(|msr| msr.index).collect();
    assert_eq!(order, [0x10, LSTAR, SYSENTER_EIP, TSC_DEADLINE]);
}

#[test]
fn each_is_listed_once_and_what_kvm_does_not_list_is() {
    let mut listed = list(&kvm::open().unwrap()).unwrap();
    let count = listed.len();
    assert!([0x10, 0x2ff, 0x250, 0x400, LSTAR].iter().all(|index| listed.contains(index)));
    listed.sort_unstable();
    listed.dedup();
    assert_eq!(listed.len(), count);
}
