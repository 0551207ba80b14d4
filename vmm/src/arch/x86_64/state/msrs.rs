//! The model-specific registers of a vCPU.
//!
//! KVM tells which it has (`KVM_GET_MSR_INDEX_LIST`), but for two kinds that it keeps nevertheless: memory type ranges
//! and machine check banks. Those are asked for too; a KVM that lacks one refuses it, and it is left out.
//!
//! Hyper-V's are listed and left out: no guest is told of them, some are clocks, and to set one makes KVM play Hyper-V.

use std::collections::HashSet;

use kvm_bindings::{KVM_MAX_MSR_ENTRIES, Msrs, kvm_msr_entry};
use kvm_ioctls::{Kvm, VcpuFd};
use serde::{Deserialize, Serialize};

use super::{StateError, refused};

const IA32_TSC: u32 = 0x10;
const IA32_TSC_DEADLINE: u32 = 0x6e0;
/// Decades, at any frequency.
const FAR_AWAY: u64 = 1 << 62;
/// Memory types: the default, the fixed ranges, and eight variable ones (Intel SDM, volume 3, "MTRRs").
const MTRR_DEF_TYPE: u32 = 0x2ff;
const MTRR_FIXED: [u32; 11] = [0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f];
const MTRR_VARIABLE: std::ops::Range<u32> = 0x200..0x210;
/// Machine check banks: control, status, address and more of each of KVM's 32.
const MC_BANKS: std::ops::Range<u32> = 0x400..0x480;

/// Hyper-V's (arch/x86/include/asm/hyperv-tlfs.h).
const HYPER_V: std::ops::Range<u32> = 0x4000_0000..0x4000_0200;
/// How many registers KVM takes at once: its limit is the first number that it does not take (`E2BIG`).
const AT_ONCE_MAX: usize = KVM_MAX_MSR_ENTRIES - 1;

/// A register and what was in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedMsr {
    /// Its number, as in the Intel SDM, volume 4.
    pub index: u32,
    /// Its value.
    pub value: u64,
}

/// All registers that this host's KVM may have of a vCPU, each once.
pub(super) fn list(kvm: &Kvm) -> Result<Vec<u32>, StateError> {
    let listed = kvm.get_msr_index_list().map_err(refused("list its MSRs"))?;
    let listed = listed.as_slice().iter().copied().filter(|index| !HYPER_V.contains(index));
    let unlisted = MTRR_FIXED.into_iter().chain(MTRR_VARIABLE).chain([MTRR_DEF_TYPE]).chain(MC_BANKS);
    let mut seen = HashSet::new();
    Ok(listed.chain(unlisted).filter(|index| seen.insert(*index)).collect())
}

/// The value of each of `indices` that KVM gives.
pub(super) fn save(vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<SavedMsr>, StateError> {
    let mut saved = Vec::with_capacity(indices.len());
    let mut rest = indices;
    while !rest.is_empty() {
        let chunk = &rest[..rest.len().min(AT_ONCE_MAX)];
        let entries: Vec<_> = chunk.iter().map(|&index| entry(index, 0)).collect();
        let mut msrs = as_list(&entries);
        // KVM reads on until it refuses one, and tells how many it has read.
        let count = vcpu.get_msrs(&mut msrs).map_err(refused("read MSRs"))?.min(chunk.len());
        saved.extend(
            msrs.as_slice()[..count].iter().map(|msr| SavedMsr { index: msr.index, value: msr.data }),
        );
        let mut done = count;
        if let Some(index) = chunk.get(count) {
            tracing::trace!(msr = format_args!("{index:#x}"), "kvm does not give an MSR that it lists");
            done += 1;
        }
        rest = &rest[done..];
    }
    Ok(saved)
}

/// Gives each register its value: the time stamp counter before all, its deadline after all, since a deadline is
/// compared with the counter when it is set.
///
/// KVM refuses a register that the new host lacks, or whose value means nothing there. That loses nothing where the
/// register has that value already, as read-only ones do. A zero that is refused is left out with a warning: zero is
/// what a feature's register holds which the guest does not use. Any other is an error that names it.
pub(super) fn restore(vcpu: &VcpuFd, saved: &[SavedMsr]) -> Result<(), StateError> {
    let ordered = in_order(saved);
    let mut rest = &ordered[..];
    while !rest.is_empty() {
        let chunk = &rest[..rest.len().min(AT_ONCE_MAX)];
        let entries: Vec<_> = chunk.iter().map(|msr| entry(msr.index, msr.value)).collect();
        let mut done = vcpu.set_msrs(&as_list(&entries)).map_err(refused("set MSRs"))?.min(chunk.len());
        if let Some(&msr) = chunk.get(done) {
            excuse(vcpu, msr)?;
            done += 1;
        }
        rest = &rest[done..];
    }
    Ok(())
}

/// Makes `vcpu`, the first of its VM, take the counter that [`restore`] gives it, by a write of one that is far away.
///
/// Before Linux 6.7 KVM takes a counter for an attempt to be in step with the VM's others which is less than a second
/// from theirs: and those have been counting from zero since they were made. So that of a guest which was saved in its
/// first second would go back. The other vCPUs are then in step with this one.
pub(super) fn unlock_counter(vcpu: &VcpuFd, saved: &[SavedMsr]) -> Result<(), StateError> {
    let Some(counter) = saved.iter().find(|msr| msr.index == IA32_TSC) else { return Ok(()) };
    let far = entry(IA32_TSC, counter.value ^ FAR_AWAY);
    vcpu.set_msrs(&as_list(&[far])).map(drop).map_err(refused("set the TSC"))
}

pub(super) fn in_order(saved: &[SavedMsr]) -> Vec<SavedMsr> {
    let mut ordered = saved.to_vec();
    ordered.sort_by_key(|msr| match msr.index {
        IA32_TSC => 0,
        IA32_TSC_DEADLINE => 2,
        _ => 1,
    });
    ordered
}

/// Whether the guest can do without `msr`, which KVM has refused.
fn excuse(vcpu: &VcpuFd, msr: SavedMsr) -> Result<(), StateError> {
    let SavedMsr { index, value } = msr;
    let current = save(vcpu, &[index])?.first().map(|msr| msr.value);
    if current == Some(value) {
        return Ok(());
    }
    if value != 0 {
        return Err(StateError::Msr { index, value });
    }
    tracing::warn!(
        msr = format_args!("{index:#x}"),
        ?current,
        "kvm refuses the zero that an MSR was saved with"
    );
    Ok(())
}

fn entry(index: u32, data: u64) -> kvm_msr_entry {
    kvm_msr_entry { index, data, ..kvm_msr_entry::default() }
}

fn as_list(entries: &[kvm_msr_entry]) -> Msrs {
    Msrs::from_entries(entries).expect("a chunk is no longer than KVM's limit")
}
