//! Everything KVM holds of a VM, as values that can be kept and given to another KVM.
//!
//! | room | what it is for |
//! |---|---|
//! | [`vcpu`] | [`VcpuState`]: registers, FPU, local APIC and pending events of one vCPU |
//! | [`msrs`] | its model-specific registers |
//! | `xsave` | its FPU, whose size depends on the host |
//! | [`platform`] | [`PlatformState`]: interrupt controllers, timer, clock |
//! | [`host`] | [`HostFacts`]: what a host can give a guest; whether a saved vCPU fits it ([`Unfit`]) |
//! | `features` | the names of CPUID's feature bits |
//! | `uapi` | the kernel's structures as bytes |
//!
//! ```text
//!   save:     vCPUs paused ─▶ VcpuState of each ─▶ PlatformState
//!   restore:  check ─▶ irqchip, vCPUs made ─▶ VcpuState of each ─▶ PlatformState ─▶ run
//! ```
//!
//! Invariants:
//!
//! - Saved types are numbered ([`VcpuState::VERSION`], [`PlatformState::VERSION`]). What they hold of the kernel is its
//!   user interface, which does not change; lengths are checked when they are decoded.
//! - Nothing saved is trusted: KVM checks what it is given, and a wrong value is its refusal.
//! - All vCPUs stand still while one of them is saved, and none has run when one is restored
//!   (Documentation/virt/kvm/api.rst, "`KVM_GET_VCPU_EVENTS`").
//! - Guest memory is there before a vCPU is restored: KVM writes clocks and steal time into it.

mod features;
pub mod host;
pub mod msrs;
pub mod platform;
mod uapi;
pub mod vcpu;
mod xsave;

#[cfg(test)]
mod tests;

use kvm_bindings::kvm_xsave;
use kvm_ioctls::{Cap, Kvm, VmFd};

pub use host::{HostFacts, Unfit};
pub use msrs::SavedMsr;
pub use platform::{ClockPolicy, PlatformState};
pub use uapi::Uapi;
pub use vcpu::{VcpuState, note_pause};

/// Why state could not be saved or restored.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// KVM refused one step.
    #[error("kvm refused to {step}: its log (`dmesg`) may say why")]
    Kvm {
        /// What was being done.
        step: &'static str,
        /// KVM's answer.
        source: kvm_ioctls::Error,
    },
    /// KVM refused a register's value.
    #[error(
        "kvm refuses MSR {index:#x} = {value:#x}, which the guest had: restore it on a host whose processor and \
         kernel are like those it was saved on"
    )]
    Msr {
        /// The register's number.
        index: u32,
        /// Its saved value.
        value: u64,
    },
    /// The saved FPU has registers that this host's does not have.
    #[error(
        "the guest's FPU has {saved_bytes} bytes of state, this host's {host_bytes}: restore it on a host whose \
         processor is like that it was saved on"
    )]
    Fpu {
        /// What was saved.
        saved_bytes: usize,
        /// What this host's KVM takes.
        host_bytes: usize,
    },
    /// The guest's time stamp counter cannot have its frequency here.
    #[error(
        "the guest's TSC counts at {saved_khz} kHz, this host's at {host_khz} kHz, and KVM cannot scale it: use a \
         host of the same frequency, or with TSC scaling"
    )]
    Tsc {
        /// The guest's.
        saved_khz: u32,
        /// This host's.
        host_khz: u32,
    },
    /// What is to be restored is not what a save gives.
    #[error("the saved {what} makes no sense: the file is damaged, so save the guest anew")]
    Damaged {
        /// Which part.
        what: &'static str,
    },
}

/// For `map_err`: KVM refused `step`.
fn refused(step: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> StateError {
    move |source| StateError::Kvm { step, source }
}

/// How much state this host's KVM holds of a vCPU.
#[derive(Debug, Clone)]
pub struct Extent {
    msrs: Vec<u32>,
    /// Of the XSAVE area, 4096 at least.
    xsave_bytes: usize,
    /// `KVM_GET_XSAVE2` is there (Linux 5.17).
    has_xsave2: bool,
    can_scale_tsc: bool,
}

impl Extent {
    /// Asks KVM, and of `vm` what may differ between VMs.
    ///
    /// # Errors
    ///
    /// KVM's refusal to say.
    pub fn of(kvm: &Kvm, vm: &VmFd) -> Result<Self, StateError> {
        let xsave_bytes = usize::try_from(vm.check_extension_int(Cap::Xsave2)).unwrap_or(0);
        Ok(Self {
            msrs: msrs::list(kvm)?,
            xsave_bytes: xsave_bytes.max(size_of::<kvm_xsave>()),
            has_xsave2: xsave_bytes > 0,
            can_scale_tsc: kvm.check_extension(Cap::TscControl),
        })
    }
}
