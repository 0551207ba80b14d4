//! The feature bits of CPUID, and their names.
//!
//! Names are those of Linux's /proc/cpuinfo where it has them; leaves are those of the Intel SDM, volume 2A, "CPUID", of
//! the AMD APM, volume 3, appendix E, and of Documentation/virt/kvm/x86/cpuid.rst.

use kvm_bindings::kvm_cpuid_entry2;

/// One of the four registers that CPUID answers in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

impl Register {
    pub(super) fn of(self, entry: &kvm_cpuid_entry2) -> u32 {
        match self {
            Self::Eax => entry.eax,
            Self::Ebx => entry.ebx,
            Self::Ecx => entry.ecx,
            Self::Edx => entry.edx,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Eax => "EAX",
            Self::Ebx => "EBX",
            Self::Ecx => "ECX",
            Self::Edx => "EDX",
        }
    }
}

/// A register of a leaf in which each bit is a feature: what is set in a guest has to be there on its host.
#[derive(Debug, Clone, Copy)]
pub(super) struct Word {
    pub(super) function: u32,
    pub(super) index: u32,
    pub(super) register: Register,
    /// Bits that say something else: of the topology, or of what the guest has switched on.
    pub(super) ignored: u32,
    /// From bit 0 on; `-` where there is no name.
    names: &'static str,
}

const fn word(function: u32, index: u32, register: Register, ignored: u32, names: &'static str) -> Word {
    Word { function, index, register, ignored, names }
}

/// OSXSAVE, and that there is a hypervisor: this program says that to every guest.
const LEAF_1_ECX_IGNORED: u32 = 1 << 27 | 1 << 31;
/// Whether the local APIC is switched on, and whether there is more than one logical processor.
const LEAF_1_EDX_IGNORED: u32 = 1 << 9 | 1 << 28;
/// OSPKE.
const LEAF_7_ECX_IGNORED: u32 = 1 << 4;
/// AMD's legacy way to say that there is more than one logical processor.
const EXTENDED_ECX_IGNORED: u32 = 1 << 1;

/// All registers that are compared.
pub(super) const WORDS: [Word; 22] = [
    word(1, 0, Register::Edx, LEAF_1_EDX_IGNORED, LEAF_1_EDX),
    word(1, 0, Register::Ecx, LEAF_1_ECX_IGNORED, LEAF_1_ECX),
    word(6, 0, Register::Eax, 0, "dtherm ida arat"),
    word(7, 0, Register::Ebx, 0, LEAF_7_EBX),
    word(7, 0, Register::Ecx, LEAF_7_ECX_IGNORED, LEAF_7_ECX),
    word(7, 0, Register::Edx, 0, LEAF_7_EDX),
    word(7, 1, Register::Eax, 0, LEAF_7_1_EAX),
    word(7, 1, Register::Ebx, 0, "intel_ppin"),
    word(7, 1, Register::Edx, 0, LEAF_7_1_EDX),
    word(7, 2, Register::Edx, 0, "psfd ipred_ctrl rrsba_ctrl ddpd_u bhi_ctrl mcdt_no"),
    word(0xd, 0, Register::Eax, 0, XCR0),
    word(0xd, 0, Register::Edx, 0, ""),
    word(0xd, 1, Register::Eax, 0, "xsaveopt xsavec xgetbv1 xsaves xfd"),
    word(0xd, 1, Register::Ecx, 0, ""),
    word(0xd, 1, Register::Edx, 0, ""),
    word(0x4000_0001, 0, Register::Eax, 0, KVM_FEATURES),
    word(0x8000_0001, 0, Register::Edx, 0, EXTENDED_EDX),
    word(0x8000_0001, 0, Register::Ecx, EXTENDED_ECX_IGNORED, EXTENDED_ECX),
    word(0x8000_0007, 0, Register::Edx, 0, "- - - - - - - - constant_tsc"),
    word(0x8000_0008, 0, Register::Ebx, 0, LEAF_8000_0008_EBX),
    word(0x8000_000a, 0, Register::Edx, 0, "npt lbrv svm_lock nrip_save tsc_scale vmcb_clean flushbyasid"),
    word(0x8000_0021, 0, Register::Eax, 0, LEAF_8000_0021_EAX),
];

const LEAF_1_EDX: &str = "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat pse36 pn clflush - dts \
                          acpi mmx fxsr sse sse2 ss ht tm ia64 pbe";
const LEAF_1_ECX: &str = "sse3 pclmulqdq dtes64 monitor ds_cpl vmx smx est tm2 ssse3 cid sdbg fma cx16 xtpr pdcm - pcid \
                          dca sse4_1 sse4_2 x2apic movbe popcnt tsc_deadline_timer aes xsave osxsave avx f16c rdrand \
                          hypervisor";
const LEAF_7_EBX: &str = "fsgsbase tsc_adjust sgx bmi1 hle avx2 fdp_excptn_only smep bmi2 erms invpcid rtm cqm \
                          zero_fcs_fds mpx rdt_a avx512f avx512dq rdseed adx smap avx512ifma - clflushopt clwb intel_pt \
                          avx512pf avx512er avx512cd sha_ni avx512bw avx512vl";
const LEAF_7_ECX: &str = "- avx512vbmi umip pku ospke waitpkg avx512_vbmi2 shstk gfni vaes vpclmulqdq avx512_vnni \
                          avx512_bitalg tme avx512_vpopcntdq - la57 - - - - - rdpid - bus_lock_detect cldemote - movdiri \
                          movdir64b enqcmd sgx_lc pks";
const LEAF_7_EDX: &str = "- - avx512_4vnniw avx512_4fmaps fsrm - - - avx512_vp2intersect - md_clear rtm_always_abort - - \
                          serialize - tsxldtrk - pconfig arch_lbr ibt - amx_bf16 avx512_fp16 amx_tile amx_int8 spec_ctrl \
                          intel_stibp flush_l1d arch_capabilities core_capabilities spec_ctrl_ssbd";
const LEAF_7_1_EAX: &str = "sha512 sm3 sm4 - avx_vnni avx512_bf16 lass cmpccxadd - - fzrm fsrs fsrc - - - - fred lkgs \
                            wrmsrns - amx_fp16 - avx_ifma - - lam";
const LEAF_7_1_EDX: &str = "- - - - avx_vnni_int8 avx_ne_convert - - amx_complex - avx_vnni_int16 - - - prefetchiti - - - \
                            - avx10";
const XCR0: &str = "x87_state sse_state avx_state bndregs_state bndcsr_state opmask_state zmm_hi256_state hi16_zmm_state \
                    - pkru_state - - - - - - - xtilecfg_state xtiledata_state";
const KVM_FEATURES: &str = "kvm_clocksource kvm_nop_io_delay kvm_mmu_op kvm_clocksource2 kvm_async_pf kvm_steal_time \
                            kvm_pv_eoi kvm_pv_unhalt - kvm_pv_tlb_flush kvm_async_pf_vmexit kvm_pv_send_ipi \
                            kvm_poll_control kvm_pv_sched_yield kvm_async_pf_int kvm_msi_ext_dest_id \
                            kvm_hc_map_gpa_range kvm_migration_control - - - - - - kvm_clocksource_stable";
const EXTENDED_EDX: &str = "fpu vme de pse tsc msr pae mce cx8 apic - syscall mtrr pge mca cmov pat pse36 - mp nx - \
                            mmxext mmx fxsr fxsr_opt pdpe1gb rdtscp - lm 3dnowext 3dnow";
const EXTENDED_ECX: &str = "lahf_lm cmp_legacy svm extapic cr8_legacy abm sse4a misalignsse 3dnowprefetch osvw ibs xop \
                            skinit wdt - lwp fma4 tce - nodeid_msr - tbm topoext perfctr_core perfctr_nb - bpext ptsc \
                            perfctr_llc mwaitx";
const LEAF_8000_0008_EBX: &str = "clzero irperf xsaveerptr invlpgb rdpru - - - - wbnoinvd - - amd_ibpb - amd_ibrs amd_stibp \
                                  - amd_stibp_always_on ibrs_same_mode - - - - amd_ppin amd_ssbd virt_ssbd amd_ssb_no cppc \
                                  amd_psfd btc_no ibpb_ret";
const LEAF_8000_0021_EAX: &str = "no_nested_data_bp - lfence_rdtsc - - - null_sel_clr_base - autoibrs no_smm_ctl_msr - - - \
                                  - - - - - - - - - - - - - - sbpb ibpb_brtype srso_no";

/// What bit `bit` of `word` is called, and else where it is.
pub(super) fn name(word: &Word, bit: u32) -> String {
    let named = word.names.split(' ').filter(|name| !name.is_empty()).nth(bit as usize).unwrap_or("-");
    if named != "-" {
        return named.to_owned();
    }
    let Word { function, index, register, .. } = word;
    format!("CPUID {function:#x}/{index} {} bit {bit}", register.name())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name_at(function: u32, index: u32, register: Register, bit: u32) -> String {
        let found = |word: &&Word| (word.function, word.index, word.register) == (function, index, register);
        name(WORDS.iter().find(found).expect("the word is compared"), bit)
    }

    /// One far to the right in each table: a name that was left out moves all behind it.
    #[test]
    fn names_are_at_their_bits() {
        use Register::{Eax, Ebx, Ecx, Edx};
        let expected = [
            (1, 0, Edx, 31, "pbe"),
            (1, 0, Ecx, 31, "hypervisor"),
            (1, 0, Ecx, 24, "tsc_deadline_timer"),
            (7, 0, Ebx, 31, "avx512vl"),
            (7, 0, Ebx, 16, "avx512f"),
            (7, 0, Ecx, 31, "pks"),
            (7, 0, Ecx, 16, "la57"),
            (7, 0, Edx, 31, "spec_ctrl_ssbd"),
            (7, 0, Edx, 24, "amx_tile"),
            (7, 1, Eax, 26, "lam"),
            (7, 1, Edx, 19, "avx10"),
            (0xd, 0, Eax, 18, "xtiledata_state"),
            (0x4000_0001, 0, Eax, 24, "kvm_clocksource_stable"),
            (0x8000_0001, 0, Edx, 29, "lm"),
            (0x8000_0001, 0, Ecx, 29, "mwaitx"),
            (0x8000_0008, 0, Ebx, 30, "ibpb_ret"),
            (0x8000_0021, 0, Eax, 29, "srso_no"),
        ];
        for (function, index, register, bit, name) in expected {
            assert_eq!(name_at(function, index, register, bit), name);
        }
    }

    #[test]
    fn a_bit_without_a_name_is_told_by_its_place() {
        assert_eq!(name_at(7, 0, Register::Ecx, 15), "CPUID 0x7/0 ECX bit 15");
        assert_eq!(name_at(0xd, 1, Register::Edx, 3), "CPUID 0xd/1 EDX bit 3");
    }
}
