//! What a host can give a guest, and whether a saved vCPU can live there: asked before anything of it runs.

use std::fmt;

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm, VcpuFd};
use serde::{Deserialize, Serialize};

use super::features::{self, Register, WORDS, Word};
use super::{Extent, StateError, Uapi, VcpuState, refused};

/// How far apart two frequencies may be and count as one, in parts of a million: the default of KVM's own
/// `tsc_tolerance_ppm`.
const TSC_TOLERANCE_PPM: u64 = 250;
/// Leaf 1, ECX: the local APIC timer can be set by a TSC value.
const TSC_DEADLINE: u32 = 1 << 24;
/// How many features of those that a host lacks are named.
const NAMED_MAX: usize = 64;

/// What is known of a host. It is saved with a guest, so that it can be told where that came from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HostFacts {
    /// CPUID's twelve letters, such as `GenuineIntel`.
    pub vendor: String,
    /// The processor's family, as the vendors count it.
    pub family: u32,
    /// The processor's model.
    pub model: u32,
    /// The processor's name, as the vendor writes it; empty where KVM does not pass it on.
    pub brand: String,
    /// What CPUID answers a vCPU that is given all that KVM has to give.
    pub cpuid: Vec<Uapi<kvm_cpuid_entry2>>,
    /// How fast the time stamp counter of a new vCPU counts; `None` where KVM does not know.
    pub tsc_khz: Option<u32>,
    /// Whether a guest's counter can have another frequency.
    pub can_scale_tsc: bool,
    /// How many model-specific registers KVM may have of a vCPU.
    pub msr_count: usize,
    /// The kernel's release.
    pub kernel: String,
}

impl HostFacts {
    /// Asks this host by `vcpu`, a new vCPU whose CPUID is set for that; `extent` is what KVM holds of one.
    ///
    /// # Errors
    ///
    /// KVM's refusal to say.
    pub fn of(kvm: &Kvm, vcpu: &VcpuFd, extent: &Extent) -> Result<Self, StateError> {
        let cpuid = answers(kvm, vcpu)?;
        let (family, model) = family_and_model(leaf(&cpuid, 1, 0).map_or(0, |leaf| leaf.eax));
        Ok(Self {
            vendor: vendor(&cpuid),
            family,
            model,
            brand: brand(&cpuid),
            cpuid,
            tsc_khz: vcpu.get_tsc_khz().ok(),
            can_scale_tsc: extent.can_scale_tsc,
            msr_count: extent.msrs.len(),
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        })
    }
}

/// What `vcpu` answers that is given all there is. It is read back, since a KVM that does not trap CPUID (PVM) gives a
/// guest more than it lists.
fn answers(kvm: &Kvm, vcpu: &VcpuFd) -> Result<Vec<Uapi<kvm_cpuid_entry2>>, StateError> {
    let mut all = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(refused("list its CPUID leaves"))?;
    if kvm.check_extension(Cap::TscDeadlineTimer) {
        // KVM can emulate it and says so elsewhere.
        let ones = all.as_mut_slice().iter_mut().filter(|leaf| leaf.function == 1);
        ones.for_each(|leaf| leaf.ecx |= TSC_DEADLINE);
    }
    vcpu.set_cpuid2(&all).map_err(refused("set CPUID"))?;
    let answers = vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES).map_err(refused("read CPUID"))?;
    Ok(answers.as_slice().iter().copied().map(Uapi).collect())
}

/// Why a saved vCPU cannot live on a host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Unfit {
    /// The saved vendor and the host's, where they differ.
    pub vendors: Option<(String, String)>,
    /// The saved frequency of the TSC and the host's, in kHz, where the host can have no other.
    pub tsc_khz: Option<(u32, u32)>,
    /// Bits of a physical address, saved and the host's, where the host has fewer.
    pub physical_bits: Option<(u32, u32)>,
    /// What the guest was told it has, and the host lacks.
    pub features: Vec<String>,
}

impl fmt::Display for Unfit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "this host cannot take the guest")?;
        if let Some((saved, host)) = &self.vendors {
            write!(formatter, "; its processor is of {saved}, this host's of {host}")?;
        }
        if let Some((saved, host)) = self.tsc_khz {
            write!(
                formatter,
                "; its TSC counts at {saved} kHz, this host's at {host} kHz and without scaling"
            )?;
        }
        if let Some((saved, host)) = self.physical_bits {
            write!(formatter, "; its physical addresses have {saved} bits, this host's {host}")?;
        }
        if !self.features.is_empty() {
            let named = &self.features[..self.features.len().min(NAMED_MAX)];
            write!(formatter, "; this host lacks {}", named.join(", "))?;
        }
        if self.features.len() > NAMED_MAX {
            write!(formatter, " and {} more", self.features.len() - NAMED_MAX)?;
        }
        write!(formatter, ": restore it on a host whose processor has what that had which it was saved on")
    }
}

impl std::error::Error for Unfit {}

impl VcpuState {
    /// Whether `host` has all that this vCPU was told it has.
    ///
    /// # Errors
    ///
    /// [`Unfit`], with everything that is missing.
    pub fn check(&self, host: &HostFacts) -> Result<(), Unfit> {
        let saved_vendor = vendor(&self.cpuid);
        let bits = (physical_bits(&self.cpuid), physical_bits(&host.cpuid));
        let tsc_khz = self.tsc_khz.zip(host.tsc_khz);
        let unfit = Unfit {
            vendors: (saved_vendor != host.vendor).then(|| (saved_vendor, host.vendor.clone())),
            tsc_khz: tsc_khz.filter(|&(saved, khz)| !tsc_fits(saved, khz, host.can_scale_tsc)),
            physical_bits: (bits.0 > bits.1).then_some(bits),
            features: WORDS.iter().flat_map(|word| lacking(word, &self.cpuid, &host.cpuid)).collect(),
        };
        if unfit == Unfit::default() { Ok(()) } else { Err(unfit) }
    }
}

/// Whether a guest whose counter counts at `saved_khz` can have that on a host of `host_khz`.
pub(super) fn tsc_fits(saved_khz: u32, host_khz: u32, can_scale: bool) -> bool {
    let apart = u64::from(saved_khz.abs_diff(host_khz)) * 1_000_000;
    can_scale || apart <= u64::from(host_khz) * TSC_TOLERANCE_PPM
}

/// The features of `word` that are in `saved` and not in `host`.
fn lacking(word: &Word, saved: &[Uapi<kvm_cpuid_entry2>], host: &[Uapi<kvm_cpuid_entry2>]) -> Vec<String> {
    let bits = |list| leaf(list, word.function, word.index).map_or(0, |leaf| word.register.of(leaf));
    let missing = bits(saved) & !bits(host) & !word.ignored;
    (0..u32::BITS).filter(|bit| missing >> bit & 1 != 0).map(|bit| features::name(word, bit)).collect()
}

fn leaf(list: &[Uapi<kvm_cpuid_entry2>], function: u32, index: u32) -> Option<&kvm_cpuid_entry2> {
    list.iter().map(|entry| &entry.0).find(|entry| entry.function == function && entry.index == index)
}

fn vendor(list: &[Uapi<kvm_cpuid_entry2>]) -> String {
    let Some(leaf) = leaf(list, 0, 0) else { return String::new() };
    text([leaf.ebx, leaf.edx, leaf.ecx])
}

/// The brand of leaves 0x8000_0002 to 0x8000_0004.
fn brand(list: &[Uapi<kvm_cpuid_entry2>]) -> String {
    let leaves = (0x8000_0002..=0x8000_0004).filter_map(|function| leaf(list, function, 0));
    text(
        leaves.flat_map(|leaf| {
            [Register::Eax, Register::Ebx, Register::Ecx, Register::Edx].map(|r| r.of(leaf))
        }),
    )
}

/// The bytes of registers, up to the first zero, as text.
fn text(registers: impl IntoIterator<Item = u32>) -> String {
    let bytes = registers.into_iter().flat_map(u32::to_le_bytes).take_while(|&byte| byte != 0);
    String::from_utf8_lossy(&bytes.collect::<Vec<_>>()).trim().to_owned()
}

/// Leaf 1, EAX: extended family and model count where the family is 15, and the latter where it is 6 too.
fn family_and_model(signature: u32) -> (u32, u32) {
    let (base_family, base_model) = (signature >> 8 & 0xf, signature >> 4 & 0xf);
    let family = if base_family == 0xf { base_family + (signature >> 20 & 0xff) } else { base_family };
    let has_extended_model = matches!(base_family, 6 | 0xf);
    (family, if has_extended_model { base_model | (signature >> 16 & 0xf) << 4 } else { base_model })
}

/// How many bits a guest's physical address may have. A processor that does not say has 36.
fn physical_bits(list: &[Uapi<kvm_cpuid_entry2>]) -> u32 {
    leaf(list, 0x8000_0008, 0).map_or(36, |leaf| leaf.eax & 0xff)
}
