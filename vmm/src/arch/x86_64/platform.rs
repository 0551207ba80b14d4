//! What KVM emulates for the machine as a whole: interrupt controllers and the timer.

use kvm_bindings::{
    KVM_CAP_PMU_CAPABILITY, KVM_PIT_SPEAKER_DUMMY, KVM_PMU_CAP_DISABLE, kvm_enable_cap, kvm_pit_config,
};
use kvm_ioctls::VmFd;

use super::layout;

/// Why the machine's parts inside KVM could not be made.
#[derive(Debug, thiserror::Error)]
#[error("kvm refused to {step}")]
pub struct PlatformError {
    step: &'static str,
    source: kvm_ioctls::Error,
}

/// Makes the interrupt controllers (PIC, I/O APIC, local APICs) and the timer, which must be there before any vCPU.
///
/// # Errors
///
/// KVM's refusal of a step.
pub fn create(vm: &VmFd) -> Result<(), PlatformError> {
    let refused = |step| move |source| PlatformError { step, source };
    disable_counters(vm);
    vm.set_identity_map_address(layout::KVM_IDENTITY_MAP).map_err(refused("place its identity map"))?;
    vm.set_tss_address(layout::KVM_TSS).map_err(refused("place its task state segment"))?;
    vm.create_irq_chip().map_err(refused("create the interrupt controllers"))?;
    // A write to port 0x61, the speaker's, is then KVM's business and no exit.
    let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..kvm_pit_config::default() };
    vm.create_pit2(pit).map_err(refused("create the interval timer"))
}

/// A VM has no performance counters, as CPUID says. Before Linux 5.18 a guest that does not believe it has them still.
fn disable_counters(vm: &VmFd) {
    let mut capability = kvm_enable_cap { cap: KVM_CAP_PMU_CAPABILITY, ..kvm_enable_cap::default() };
    capability.args[0] = KVM_PMU_CAP_DISABLE.into();
    if let Err(error) = vm.enable_cap(&capability) {
        tracing::debug!(%error, "this host's KVM cannot leave out performance counters");
    }
}
