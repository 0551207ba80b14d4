//! What KVM emulates for the machine as a whole: interrupt controllers and the timer.

use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_pit_config};
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
    vm.set_identity_map_address(layout::KVM_IDENTITY_MAP).map_err(refused("place its identity map"))?;
    vm.set_tss_address(layout::KVM_TSS).map_err(refused("place its task state segment"))?;
    vm.create_irq_chip().map_err(refused("create the interrupt controllers"))?;
    // A write to port 0x61, the speaker's, is then KVM's business and no exit.
    let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..kvm_pit_config::default() };
    vm.create_pit2(pit).map_err(refused("create the interval timer"))
}
