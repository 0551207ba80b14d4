//! From resources to a VM that has not run yet.

use std::sync::Arc;

use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use linux_loader::cmdline::Cmdline;
use memory::{GuestRam, RamError};

use super::devices::{DeviceError, Devices, Options};
use super::memory::{Memory, MemoryError, MemoryPlan};
use super::message::Notifier;
use super::resources::Resources;
use super::vm::{self, MemorySlotError, Vm};
use crate::arch::host::state::{Extent, HostFacts, StateError, Unfit};
use crate::arch::host::{
    Payload, PayloadError, Processor, ProcessorError, ProcessorTopology, acpi, layout, platform,
};
use crate::kvm::{self, KvmError};
use crate::vcpu::{Vcpu, VcpuError, VcpuMetrics, Vcpus, Ways};

/// How often KVM may be asked for a VM again: creating one is interrupted by signals.
const CREATE_VM_ATTEMPTS: u32 = 5;

/// Why a VM could not be built. The resources stay, so that it can be tried again.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// There is nothing to start.
    #[error("Cannot start microvm without kernel configuration.")]
    NoKernel,
    /// The host's KVM cannot be used.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// KVM gives no VM or vCPU.
    #[error("kvm refused to {step}")]
    Create {
        /// What was being done.
        step: &'static str,
        /// KVM's answer.
        source: kvm_ioctls::Error,
    },
    /// More memory than the host could ever give.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Guest memory that is to be as it was saved. Clients know the text.
    #[error("Failed to load guest memory")]
    RestoredMemory(#[source] MemoryError),
    /// Guest memory, as KVM sees it.
    #[error(transparent)]
    Slot(#[from] MemorySlotError),
    /// Interrupt controllers and timer.
    #[error(transparent)]
    Platform(#[from] platform::PlatformError),
    /// A processor.
    #[error(transparent)]
    Processor(#[from] ProcessorError),
    /// Kernel, initrd or command line.
    #[error(transparent)]
    Payload(#[from] PayloadError),
    /// The tables that describe the machine.
    #[error(transparent)]
    Acpi(#[from] acpi::AcpiError),
    /// A device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A vCPU's thread.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    /// State that KVM does not give or take.
    #[error(transparent)]
    State(#[from] StateError),
    /// A guest that was told of what this host does not have.
    #[error(transparent)]
    Unfit(#[from] Unfit),
    /// Memory that lies elsewhere than this program puts it.
    #[error("the snapshot's memory lies where this program puts none: use the program that wrote it")]
    OtherLayout,
    /// A machine without processors.
    #[error("a microVM needs a vCPU: set `vcpu_count`")]
    NoVcpu,
}

/// Makes a VM from `resources`, its memory as `plan` says, its vCPUs at the kernel's entry and not running.
///
/// # Errors
///
/// [`BuildError`]; nothing of the VM is left then, and memory that was to be served is spent.
pub fn build(
    resources: &mut Resources,
    plan: &mut MemoryPlan,
    options: &Options,
    notifier: &Notifier,
) -> Result<Vm, BuildError> {
    // Before anything is spent: here a user's mistake would show.
    let command_line = command_line(resources)?;
    let kvm = kvm::open()?;
    let machine = &resources.machine;
    // Checked in MiB: in bytes the size might not fit into its type.
    GuestRam::check_host(machine.mem_size_mib)?;
    let ranges = layout::ram_ranges(machine.mem_size_mib << 20);
    let ram = plan.map(&ranges, machine.huge_pages)?;
    let memory = Memory::new(plan, ram, machine.track_dirty_pages, notifier)?;
    match furnish(resources, &command_line, &kvm, memory.ram(), options, notifier) {
        Ok(Furnished { vcpus, vcpu_metrics, devices, extent, host, vm }) => {
            memory.loaded();
            Ok(Vm { vcpus, vcpu_metrics, devices, extent, host, vm, memory })
        }
        // Who writes to a page that is lost learns only that it cannot.
        Err(error) => Err(memory.awaited_failure().map_or(error, |cause| MemoryError::Failed(cause).into())),
    }
}

/// A VM but for its memory.
struct Furnished {
    vcpus: Vcpus,
    vcpu_metrics: VcpuMetrics,
    devices: Devices,
    extent: Arc<Extent>,
    host: HostFacts,
    vm: VmFd,
}

/// Puts everything else to the memory, and into it what the guest is started from.
fn furnish(
    resources: &mut Resources,
    command_line: &Cmdline,
    kvm: &Kvm,
    ram: &GuestRam,
    options: &Options,
    notifier: &Notifier,
) -> Result<Furnished, BuildError> {
    let files = resources.boot.as_mut().and_then(|boot| boot.files.as_mut());
    let files = files.ok_or(BuildError::NoKernel)?;
    let vm = create_vm(kvm)?;
    vm::map_ram(&vm, ram)?;
    platform::create(&vm)?;
    let processor = Processor::new(kvm, topology(&resources.machine))?;
    let payload = Payload::load(ram, &mut files.kernel, files.initrd.as_mut(), command_line)?;
    let devices = Devices::attach(&vm, ram, resources, options, notifier, None)?;
    let vcpu_count = resources.machine.vcpu_count;
    let rsdp = acpi::write_tables(ram, vcpu_count, devices.virtio_count())?;
    payload.introduce(ram, rsdp)?;

    let extent = Extent::of(kvm, &vm)?;
    let fds = (0..vcpu_count).map(|index| create_vcpu(&vm, index)).collect::<Result<Vec<_>, _>>()?;
    let host = HostFacts::of(kvm, fds.first().ok_or(BuildError::NoVcpu)?, &extent)?;
    let vcpu_metrics = VcpuMetrics::default();
    let vcpus = (0..).zip(fds).map(|(index, vcpu)| {
        processor.identify(&vcpu, index)?;
        if index == 0 {
            Processor::set_entry(&vcpu, ram, payload.entry())?;
        }
        let ways = Ways { buses: devices.buses(), ram: ram.clone() };
        Ok(Vcpu::spawn(index, vcpu, ways, vcpu_metrics.clone(), notifier.clone())?)
    });
    let vcpus = Vcpus(vcpus.collect::<Result<_, BuildError>>()?);
    Ok(Furnished { vcpus, vcpu_metrics, devices, extent: Arc::new(extent), host, vm })
}

pub(super) fn create_vcpu(vm: &VmFd, index: u8) -> Result<VcpuFd, BuildError> {
    vm.create_vcpu(index.into()).map_err(|source| BuildError::Create { step: "create a vCPU", source })
}

pub(super) fn create_vm(kvm: &Kvm) -> Result<VmFd, BuildError> {
    let mut attempt = 1;
    loop {
        match kvm.create_vm() {
            Ok(vm) => return Ok(vm),
            Err(error) if error.errno() == libc::EINTR && attempt < CREATE_VM_ATTEMPTS => attempt += 1,
            Err(source) => return Err(BuildError::Create { step: "create a VM", source }),
        }
    }
}

fn topology(machine: &api::types::MachineConfig) -> ProcessorTopology {
    ProcessorTopology { vcpu_count: machine.vcpu_count, smt: machine.smt }
}

/// What the kernel is told.
fn command_line(resources: &Resources) -> Result<Cmdline, BuildError> {
    let files = resources.boot.as_ref().and_then(|boot| boot.files.as_ref());
    let mut command_line = files.ok_or(BuildError::NoKernel)?.command_line.clone();
    if let Some(root) = resources.drives.iter().find(|drive| drive.config.is_root_device) {
        root_argument(&mut command_line, &root.config)?;
    }
    Ok(command_line)
}

/// Tells the kernel which drive is its root, as Firecracker does.
fn root_argument(command_line: &mut Cmdline, root: &api::types::Drive) -> Result<(), PayloadError> {
    let device = match &root.partuuid {
        Some(partuuid) => format!("PARTUUID={partuuid}"),
        None => "/dev/vda".to_owned(),
    };
    let mode = if root.is_read_only.unwrap_or(false) { "ro" } else { "rw" };
    command_line
        .insert("root", &device)
        .and_then(|()| command_line.insert_str(mode))
        .map_err(|error| PayloadError::CommandLine(error.into()))
}
