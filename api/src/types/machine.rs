//! `/machine-config`: vCPUs and memory.

use super::Invalid;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Most vCPUs a machine can have.
pub const VCPU_COUNT_MAX: u8 = 32;

/// What backs the guest's memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum HugePages {
    /// Pages of the host's base size.
    #[default]
    None,
    /// The host may use huge pages where it has them free.
    Transparent,
    /// Reserved pages of 2 MiB from hugetlbfs.
    #[serde(rename = "2M")]
    Hugetlb2M,
}

impl HugePages {
    /// The size, in MiB, that the memory size must be a multiple of.
    fn granule_mib(self) -> u64 {
        match self {
            Self::None | Self::Transparent => 1,
            Self::Hugetlb2M => 2,
        }
    }
}

/// A named set of CPU features. Deprecated in the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[allow(missing_docs, reason = "names of EC2 instance families; the contract says no more about them")]
pub enum CpuTemplate {
    C3,
    T2,
    T2S,
    T2CL,
    T2A,
    V1N1,
    None,
}

/// vCPUs and memory of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = MachineConfiguration)]
pub struct MachineConfig {
    /// Number of vCPUs: 1, or with SMT an even number.
    #[schema(minimum = 1, maximum = 32)]
    pub vcpu_count: u8,
    /// Guest memory in MiB.
    #[schema(minimum = 1)]
    pub mem_size_mib: u64,
    /// Whether the guest sees two threads per core. x86_64 only.
    #[serde(default)]
    #[schema(default = false)]
    pub smt: bool,
    /// Deprecated. A named set of CPU features; using it makes the answer carry `Deprecation: true`.
    #[serde(default, skip_serializing_if = "names_no_template")]
    pub cpu_template: Option<CpuTemplate>,
    /// Whether the host tracks which pages the guest writes, for diff snapshots.
    #[serde(default)]
    #[schema(default = false)]
    pub track_dirty_pages: bool,
    /// What backs the guest's memory.
    #[serde(default)]
    #[schema(default = "None")]
    pub huge_pages: HugePages,
}

/// The template `None` and no template are the same thing, and only the latter is answered.
fn names_no_template(template: &Option<CpuTemplate>) -> bool {
    matches!(template, None | Some(CpuTemplate::None))
}

impl Default for MachineConfig {
    fn default() -> Self {
        Self {
            vcpu_count: 1,
            mem_size_mib: 128,
            smt: false,
            cpu_template: None,
            track_dirty_pages: false,
            huge_pages: HugePages::None,
        }
    }
}

impl MachineConfig {
    /// Refuses counts and sizes outside the contract. Whether this host has that much is the VMM's to say.
    pub fn validate(&self) -> Result<(), Invalid> {
        if self.smt && cfg!(target_arch = "aarch64") {
            return Err(Invalid::Smt);
        }
        let odd_threads = self.smt && self.vcpu_count > 1 && self.vcpu_count % 2 == 1;
        if self.vcpu_count == 0 || self.vcpu_count > VCPU_COUNT_MAX || odd_threads {
            return Err(Invalid::VcpuCount);
        }
        if self.mem_size_mib == 0 || !self.mem_size_mib.is_multiple_of(self.huge_pages.granule_mib()) {
            return Err(Invalid::MemorySize);
        }
        Ok(())
    }

    /// This configuration with the fields of `patch` replaced, if the result is valid.
    pub fn patched(&self, patch: &MachineConfigPatch) -> Result<Self, Invalid> {
        let cpu_template = match patch.cpu_template {
            None => self.cpu_template,
            Some(CpuTemplate::None) => None,
            named => named,
        };
        let patched = Self {
            vcpu_count: patch.vcpu_count.unwrap_or(self.vcpu_count),
            mem_size_mib: patch.mem_size_mib.unwrap_or(self.mem_size_mib),
            smt: patch.smt.unwrap_or(self.smt),
            cpu_template,
            track_dirty_pages: patch.track_dirty_pages.unwrap_or(self.track_dirty_pages),
            huge_pages: patch.huge_pages.unwrap_or(self.huge_pages),
        };
        patched.validate()?;
        Ok(patched)
    }
}

/// The parts of a machine's configuration to replace; at least one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = PartialMachineConfiguration)]
pub struct MachineConfigPatch {
    /// Number of vCPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 32)]
    pub vcpu_count: Option<u8>,
    /// Guest memory in MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1)]
    pub mem_size_mib: Option<u64>,
    /// Whether the guest sees two threads per core.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub smt: Option<bool>,
    /// Deprecated. A named set of CPU features; `None` takes it back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_template: Option<CpuTemplate>,
    /// Whether the host tracks which pages the guest writes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub track_dirty_pages: Option<bool>,
    /// What backs the guest's memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub huge_pages: Option<HugePages>,
}

impl MachineConfigPatch {
    /// Whether it asks for nothing, which the contract takes as an empty request.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(vcpu_count: u8, mem_size_mib: u64) -> MachineConfig {
        MachineConfig { vcpu_count, mem_size_mib, ..MachineConfig::default() }
    }

    #[test]
    fn vcpu_counts_and_memory_sizes_have_bounds() {
        assert_eq!(machine(1, 1).validate(), Ok(()));
        assert_eq!(machine(32, 128).validate(), Ok(()));
        assert_eq!(machine(0, 128).validate(), Err(Invalid::VcpuCount));
        assert_eq!(machine(33, 128).validate(), Err(Invalid::VcpuCount));
        assert_eq!(machine(1, 0).validate(), Err(Invalid::MemorySize));
    }

    #[test]
    fn huge_pages_need_an_even_size() {
        let odd = MachineConfig { huge_pages: HugePages::Hugetlb2M, ..machine(1, 129) };
        assert_eq!(odd.validate(), Err(Invalid::MemorySize));
        let even = MachineConfig { mem_size_mib: 130, ..odd };
        assert_eq!(even.validate(), Ok(()));
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn smt_needs_pairs_of_threads() {
        assert_eq!(MachineConfig { smt: true, ..machine(3, 128) }.validate(), Err(Invalid::VcpuCount));
        assert_eq!(MachineConfig { smt: true, ..machine(4, 128) }.validate(), Ok(()));
        assert_eq!(MachineConfig { smt: true, ..machine(1, 128) }.validate(), Ok(()));
    }

    #[test]
    fn a_patch_replaces_only_what_it_names_and_is_judged_by_the_result() {
        let base = MachineConfig { huge_pages: HugePages::Hugetlb2M, ..machine(2, 256) };
        let patch = MachineConfigPatch { vcpu_count: Some(4), ..MachineConfigPatch::default() };
        assert_eq!(base.patched(&patch), Ok(MachineConfig { vcpu_count: 4, ..base.clone() }));
        let odd = MachineConfigPatch { mem_size_mib: Some(255), ..MachineConfigPatch::default() };
        assert_eq!(base.patched(&odd), Err(Invalid::MemorySize));
    }

    #[test]
    fn the_template_none_takes_a_template_back() {
        let base = MachineConfig { cpu_template: Some(CpuTemplate::T2), ..machine(1, 128) };
        let patch =
            MachineConfigPatch { cpu_template: Some(CpuTemplate::None), ..MachineConfigPatch::default() };
        assert_eq!(base.patched(&patch).unwrap().cpu_template, None);
        assert_eq!(base.patched(&MachineConfigPatch::default()).unwrap(), base);
    }
}
