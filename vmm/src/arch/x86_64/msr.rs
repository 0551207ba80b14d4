//! The model-specific registers that are set before a vCPU starts. Numbers are those of the Intel SDM, volume 4.

const IA32_MISC_ENABLE: u32 = 0x1a0;
const IA32_MTRR_DEF_TYPE: u32 = 0x2ff;

/// Fast string operations.
const MISC_ENABLE_FAST_STRING: u64 = 1;
/// Memory type ranges on, and write-back where none says otherwise.
const MTRR_ENABLE_WRITE_BACK: u64 = 1 << 11 | 6;

/// Which bits are set in which register before a guest starts; KVM's reset values are right for all others.
pub(super) const BOOT: [(u32, u64); 2] =
    [(IA32_MISC_ENABLE, MISC_ENABLE_FAST_STRING), (IA32_MTRR_DEF_TYPE, MTRR_ENABLE_WRITE_BACK)];
