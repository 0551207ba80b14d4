//! From a snapshot to a VM that stands still.
//!
//! ```text
//!   RAM, empty ──▶ KVM's VM and vCPUs ──▶ does this host have what the guest was told of? ──▶ who serves the memory
//!                                                 no: nothing has been touched                       │
//!                                       devices ◀── state of vCPUs, platform ◀───────────────────────┘
//! ```
//!
//! KVM is given the RAM before all else. Making its interrupt controllers has it wait for readers of the memory's slots
//! later on, in its own time: whoever changes a slot then waits for that, which takes 3 to 6 ms.
//!
//! Invariant: until somebody serves the memory, nothing of this touches it, KVM included. A page that came then would be
//! zero, and nobody would ever be asked for what it is to hold.

use std::sync::Arc;

use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use memory::GuestRam;
use vm_memory::GuestAddress;

use super::build::{BuildError, create_vcpu, create_vm};
use super::devices::{Devices, Options};
use super::memory::{Memory, MemoryError, MemoryPlan};
use super::message::Notifier;
use super::resources::Resources;
use super::vm::{self, Vm};
use crate::arch::host::state::{ClockPolicy, Extent, HostFacts};
use crate::arch::host::{layout, platform};
use crate::kvm;
use crate::snapshot::saved::Saved;
use crate::vcpu::{Vcpu, VcpuMetrics, Vcpus, Ways};

/// A VM of KVM whose vCPUs have not run.
struct Bare {
    vm: VmFd,
    vcpus: Vec<VcpuFd>,
    extent: Arc<Extent>,
    host: HostFacts,
}

impl Bare {
    /// Makes it around `ram`, for a guest that is checked to fit this host. It is to be dropped before that.
    fn make(kvm: &Kvm, saved: &Saved, ram: &GuestRam) -> Result<Self, BuildError> {
        let vm = create_vm(kvm)?;
        vm::map_ram(&vm, ram)?;
        platform::create(&vm)?;
        let extent = Extent::of(kvm, &vm)?;
        let vcpus: Vec<_> =
            (0..).zip(&saved.vcpus).map(|(index, _)| create_vcpu(&vm, index)).collect::<Result<_, _>>()?;
        let first = vcpus.first().ok_or(BuildError::OtherLayout)?;
        let host = HostFacts::of(kvm, first, &extent)?;
        saved.vcpus.iter().try_for_each(|vcpu| vcpu.check(&host))?;
        Ok(Self { vm, vcpus, extent: Arc::new(extent), host })
    }
}

/// Makes the VM that `saved` is of, from `resources` that were made from it, its memory as `plan` says. It stands still
/// where it was saved.
///
/// # Errors
///
/// [`BuildError`]; nothing of the VM is left then, and memory that was to be served is spent, unless the guest does not fit
/// this host.
pub fn restore(
    saved: &Saved,
    resources: &Resources,
    plan: &mut MemoryPlan,
    options: &Options,
    notifier: &Notifier,
    clock: ClockPolicy,
) -> Result<Vm, BuildError> {
    let ranges = saved.memory.ranges();
    if ranges != layout::ram_ranges(resources.machine.mem_size_mib << 20) {
        return Err(BuildError::OtherLayout);
    }
    let kvm = kvm::open()?;
    let machine = &resources.machine;
    let ram = plan.map(&ranges, machine.huge_pages).map_err(BuildError::RestoredMemory)?;
    let bare = Bare::make(&kvm, saved, &ram)?;
    let memory = Memory::new(plan, ram.clone(), machine.track_dirty_pages, notifier)
        .map_err(BuildError::RestoredMemory)?;
    match furnish(bare, saved, resources, memory, options, notifier, clock) {
        Ok(vm) => {
            vm.memory.loaded();
            Ok(vm)
        }
        Err(failed) => {
            let (error, memory) = *failed;
            // Who touches a page that is lost learns only that it cannot.
            Err(memory
                .awaited_failure()
                .map_or(error, |cause| BuildError::RestoredMemory(MemoryError::Failed(cause))))
        }
    }
}

/// Puts the devices and all state into a VM that has memory. Gives the memory back where that fails.
fn furnish(
    bare: Bare,
    saved: &Saved,
    resources: &Resources,
    memory: Memory,
    options: &Options,
    notifier: &Notifier,
    clock: ClockPolicy,
) -> Result<Vm, Box<(BuildError, Memory)>> {
    let Bare { vm, vcpus, extent, host } = bare;
    let made = || {
        // The guest is told there that it is a clone.
        let told = saved.devices.generation.place;
        memory
            .have(&[GuestAddress(told.id), GuestAddress(told.clock)])
            .map_err(BuildError::RestoredMemory)?;
        for (vcpu, state) in vcpus.iter().zip(&saved.vcpus) {
            state.restore(vcpu, &extent)?;
        }
        saved.platform.restore(&vm, clock)?;
        let devices = Devices::attach(&vm, memory.ram(), resources, options, notifier, Some(&saved.devices))?;
        Ok(devices)
    };
    let devices: Devices = match made() {
        Ok(devices) => devices,
        Err(error) => return Err(Box::new((error, memory))),
    };
    let vcpu_metrics = VcpuMetrics::default();
    let threads = (0..).zip(vcpus).map(|(index, vcpu)| {
        let ways = Ways { buses: devices.buses(), ram: memory.ram().clone() };
        Vcpu::spawn(index, vcpu, ways, vcpu_metrics.clone(), notifier.clone())
    });
    match threads.collect::<Result<_, _>>() {
        Ok(threads) => Ok(Vm { vcpus: Vcpus(threads), vcpu_metrics, devices, extent, host, vm, memory }),
        Err(error) => Err(Box::new((error.into(), memory))),
    }
}
