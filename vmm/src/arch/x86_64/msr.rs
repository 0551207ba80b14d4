//! The model-specific registers a vCPU starts with. Numbers are those of the Intel SDM, volume 4.

use kvm_bindings::kvm_msr_entry;

const IA32_SYSENTER_CS: u32 = 0x174;
const IA32_SYSENTER_ESP: u32 = 0x175;
const IA32_SYSENTER_EIP: u32 = 0x176;
const IA32_MISC_ENABLE: u32 = 0x1a0;
const IA32_MTRR_DEF_TYPE: u32 = 0x2ff;

/// Fast string operations.
const MISC_ENABLE_FAST_STRING: u64 = 1;
/// Memory type ranges on, and write-back where none says otherwise.
const MTRR_ENABLE_WRITE_BACK: u64 = 1 << 11 | 6;

/// What is written before a guest starts. Some hosts refuse some of them; a guest sets its own later.
pub(super) const BOOT: [kvm_msr_entry; 5] = [
    entry(IA32_SYSENTER_CS, 0),
    entry(IA32_SYSENTER_ESP, 0),
    entry(IA32_SYSENTER_EIP, 0),
    entry(IA32_MISC_ENABLE, MISC_ENABLE_FAST_STRING),
    entry(IA32_MTRR_DEF_TYPE, MTRR_ENABLE_WRITE_BACK),
];

const fn entry(index: u32, data: u64) -> kvm_msr_entry {
    kvm_msr_entry { index, reserved: 0, data }
}
