//! One vCPU as KVM holds it.
//!
//! The order of the steps is most of what this file knows. Sources: Documentation/virt/kvm/api.rst of Linux 6.12, and
//! arch/x86/kvm/{x86,lapic}.c of it.

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_regs,
    kvm_sregs, kvm_vcpu_events, kvm_xcrs,
};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};

use super::host::tsc_fits;
use super::{Extent, SavedMsr, StateError, Uapi, msrs, refused, xsave};

/// `IA32_APIC_BASE`: this is the processor that boots the others.
const APIC_BASE_BSP: u64 = 1 << 8;

/// What is saved of one vCPU. There is no nested state: guests are offered neither VMX nor SVM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VcpuState {
    /// What CPUID answers it.
    pub cpuid: Vec<Uapi<kvm_cpuid_entry2>>,
    /// How fast its time stamp counter counts; `None` where KVM does not know.
    pub tsc_khz: Option<u32>,
    /// Whether it runs, halts, or waits to be started.
    pub mp_state: u32,
    /// Exceptions, interrupts and NMIs between KVM and the guest.
    pub events: Uapi<kvm_vcpu_events>,
    /// General registers.
    pub regs: Uapi<kvm_regs>,
    /// Segments, control registers, EFER, the local APIC's base.
    pub sregs: Uapi<kvm_sregs>,
    /// Which parts of the FPU are on.
    pub xcrs: Uapi<kvm_xcrs>,
    /// The FPU, as XSAVE lays it out.
    pub xsave: Vec<u8>,
    /// Debug registers.
    pub debugregs: Uapi<kvm_debugregs>,
    /// Model-specific registers, all that KVM gave.
    pub msrs: Vec<SavedMsr>,
    /// The local APIC's registers.
    pub lapic: Uapi<kvm_lapic_state>,
}

impl VcpuState {
    /// The number of this form of it.
    pub const VERSION: u16 = 1;

    /// Reads all of `vcpu`, which has finished its last access: `KVM_RUN` has returned `EINTR` since.
    ///
    /// # Errors
    ///
    /// KVM's refusal of a step.
    pub fn save(vcpu: &VcpuFd, extent: &Extent) -> Result<Self, StateError> {
        // First: it takes in INIT and SIPI that have arrived, which changes nearly everything below.
        let mp_state = vcpu.get_mp_state().map_err(refused("read the multiprocessing state"))?.mp_state;
        // Before system and debug registers: of an exception that is pending it writes CR2 and DR6.
        let events = Uapi(vcpu.get_vcpu_events().map_err(refused("read pending events"))?);
        let cpuid = vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES).map_err(refused("read CPUID"))?;
        Ok(Self {
            cpuid: cpuid.as_slice().iter().copied().map(Uapi).collect(),
            tsc_khz: vcpu.get_tsc_khz().ok(),
            mp_state,
            events,
            regs: Uapi(vcpu.get_regs().map_err(refused("read registers"))?),
            sregs: Uapi(vcpu.get_sregs().map_err(refused("read system registers"))?),
            xcrs: Uapi(vcpu.get_xcrs().map_err(refused("read extended control registers"))?),
            xsave: xsave::save(vcpu, extent)?,
            debugregs: Uapi(vcpu.get_debug_regs().map_err(refused("read debug registers"))?),
            // Before the local APIC: a timer that fires in between clears the deadline here, and sets its interrupt
            // there. In this order the guest gets it, twice at worst; in the other, never.
            msrs: msrs::save(vcpu, &extent.msrs)?,
            lapic: Uapi(vcpu.get_lapic().map_err(refused("read the local APIC"))?),
        })
    }

    /// Puts all of it into `vcpu`, which is new and has not run. Guest memory must be there, and interrupt controllers
    /// in KVM. The VM's first vCPU comes first, since the counters of the others fall into step with its own;
    /// [`super::PlatformState`] comes after all vCPUs.
    ///
    /// # Errors
    ///
    /// KVM's refusal of a step, or a value that this host cannot give. The vCPU is then of no use.
    pub fn restore(&self, vcpu: &VcpuFd, extent: &Extent) -> Result<(), StateError> {
        // First: it decides which bits all others may have.
        vcpu.set_cpuid2(&self.cpuid_list()?).map_err(refused("set CPUID"))?;
        // Before the counter is set, which is then in its units.
        self.restore_tsc_frequency(vcpu, extent)?;
        // It clears a pending exception, so before events.
        vcpu.set_regs(&self.regs.0).map_err(refused("set registers"))?;
        // It holds the base and mode of the local APIC, so before that. It makes a vCPU runnable that is at its reset
        // vector, so before the multiprocessing state.
        vcpu.set_sregs(&self.sregs.0).map_err(refused("set system registers"))?;
        let mp_state = kvm_mp_state { mp_state: self.mp_state };
        vcpu.set_mp_state(mp_state).map_err(refused("set the multiprocessing state"))?;
        // As an operating system does it: which components are on, then what is in them.
        vcpu.set_xcrs(&self.xcrs.0).map_err(refused("set extended control registers"))?;
        xsave::restore(vcpu, extent, &self.xsave)?;
        vcpu.set_debug_regs(&self.debugregs.0).map_err(refused("set debug registers"))?;
        // Before MSRs: KVM drops a deadline for an APIC whose timer is not in that mode.
        vcpu.set_lapic(&self.lapic.0).map_err(refused("set the local APIC"))?;
        if self.sregs.0.apic_base & APIC_BASE_BSP != 0 {
            msrs::unlock_counter(vcpu, &self.msrs)?;
        }
        msrs::restore(vcpu, &self.msrs)?;
        // Last: what is pending goes to the guest as it is now.
        vcpu.set_vcpu_events(&self.events.0).map_err(refused("set pending events"))?;
        note_pause(vcpu);
        Ok(())
    }

    fn cpuid_list(&self) -> Result<CpuId, StateError> {
        let entries: Vec<_> = self.cpuid.iter().map(|entry| entry.0).collect();
        CpuId::from_entries(&entries).map_err(|_| StateError::Damaged { what: "CPUID list" })
    }

    /// Sets the counter's frequency where it is not the host's. What KVM would do without scaling, jumping ahead at
    /// each entry, is no clock for a guest.
    fn restore_tsc_frequency(&self, vcpu: &VcpuFd, extent: &Extent) -> Result<(), StateError> {
        let (Some(saved_khz), Ok(host_khz)) = (self.tsc_khz, vcpu.get_tsc_khz()) else { return Ok(()) };
        if saved_khz == host_khz {
            return Ok(());
        }
        if !tsc_fits(saved_khz, host_khz, extent.can_scale_tsc) {
            return Err(StateError::Tsc { saved_khz, host_khz });
        }
        vcpu.set_tsc_khz(saved_khz).map_err(refused("set the frequency of the TSC"))
    }
}

/// Tells a guest that has KVM's clock that it was stopped, so that its watchdogs do not take the time that has passed
/// for a lock-up (Documentation/virt/kvm/api.rst, "`KVM_KVMCLOCK_CTRL`").
pub fn note_pause(vcpu: &VcpuFd) {
    if let Err(error) = vcpu.kvmclock_ctrl() {
        // EINVAL: the guest does not use that clock.
        tracing::trace!(%error, "a guest was not told of its pause");
    }
}
