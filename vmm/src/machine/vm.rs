//! A VM that was built.
//!
//! Invariants:
//!
//! - vCPUs stand still before devices do, and run again after them: a device that is stopped is notified by nobody.
//! - Fields are dropped in the order in which they stand: vCPUs first, guest memory and who serves it last.

use std::sync::Arc;
use std::time::Duration;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use memory::GuestRam;

use super::devices::{DeviceError, Devices};
use super::memory::Memory;
use crate::arch::host::state::{Extent, HostFacts};
use crate::telemetry::metrics::MetricsRegistry;
use crate::vcpu::{VcpuError, VcpuMetrics, Vcpus};

/// How long the end of a VM waits for what the guest said last to be written.
const SERIAL_FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// KVM refused guest memory.
#[derive(Debug, thiserror::Error)]
#[error("kvm refused guest memory region {slot}")]
pub struct MemorySlotError {
    slot: u32,
    source: kvm_ioctls::Error,
}

/// Why a VM did not do as it was told.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// A vCPU did not.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    /// A device did not.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// A VM, with everything that belongs to it.
pub struct Vm {
    pub(super) vcpus: Vcpus,
    pub(super) vcpu_metrics: VcpuMetrics,
    /// Its devices.
    pub devices: Devices,
    pub(super) extent: Arc<Extent>,
    pub(super) host: HostFacts,
    pub(super) vm: VmFd,
    /// Its memory.
    pub memory: Memory,
}

impl Vm {
    /// Lets the guest run.
    ///
    /// # Errors
    ///
    /// [`VmError`] of the part that does not.
    pub fn resume(&mut self) -> Result<(), VmError> {
        self.devices.resume()?;
        self.vcpus.resume()?;
        self.memory.resumed();
        Ok(())
    }

    /// Stops the guest where it is. When this returns, no vCPU is in the guest and no device has work in flight.
    ///
    /// # Errors
    ///
    /// [`VmError`] of the part that does not stop; then the guest runs on.
    pub fn pause(&mut self) -> Result<(), VmError> {
        if let Err(error) = self.vcpus.pause() {
            self.vcpus.release();
            return Err(error.into());
        }
        if let Err(error) = self.devices.pause() {
            self.devices.release();
            self.vcpus.release();
            return Err(error.into());
        }
        self.memory.paused();
        Ok(())
    }

    /// Stops for good what can be stopped of a guest whose memory has failed: who waits for a page that will never
    /// come cannot be, and everybody else is.
    ///
    /// # Errors
    ///
    /// [`VmError`] of the first part that does not stop. It stops as soon as it can.
    pub fn halt(&mut self) -> Result<(), VmError> {
        let vcpus = self.vcpus.pause();
        self.devices.pause()?;
        Ok(vcpus?)
    }

    /// Makes the VM's counters known.
    pub fn register_metrics(&self, registry: &mut MetricsRegistry) {
        registry.register("vcpu", "vcpu", &[], self.vcpu_metrics.list());
        self.memory.register_metrics(registry);
        self.devices.register_metrics(registry);
    }

    /// Ends the VM: vCPUs first, then devices, and what the guest wrote last is written out.
    ///
    /// # Errors
    ///
    /// [`VmError`] of the first part that does not end; the others are ended all the same.
    pub fn stop(&mut self) -> Result<(), VmError> {
        let vcpus = self.vcpus.stop();
        let devices = self.devices.pause();
        self.devices.flush_serial(SERIAL_FLUSH_TIMEOUT);
        vcpus?;
        Ok(devices?)
    }
}

/// Gives guest memory to KVM, one slot for each region.
///
/// # Errors
///
/// KVM's refusal of a region.
#[expect(unsafe_code, reason = "KVM is told host addresses")]
pub fn map_ram(vm: &VmFd, ram: &GuestRam) -> Result<(), MemorySlotError> {
    for (slot, region) in (0..).zip(ram.regions()) {
        let range = region.range();
        let description = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: range.gpa.0,
            memory_size: range.size_bytes,
            userspace_addr: region.hva(),
        };
        // SAFETY: the addresses are those of the mapping that `ram` owns, and a VM is dropped before its memory: `Vm`
        // holds both, in this order.
        unsafe { vm.set_user_memory_region(description) }
            .map_err(|source| MemorySlotError { slot, source })?;
    }
    Ok(())
}
