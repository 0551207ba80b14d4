//! A vCPU before its first instruction.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_fpu, kvm_msr_entry, kvm_regs};
use kvm_ioctls::{Cap, Kvm, VcpuFd};
use memory::GuestRam;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::cpuid::{self, Topology};
use super::layout;
use super::msr;
use super::payload::EntryPoint;
use super::segments::{self, Mode};

pub use super::cpuid::Topology as ProcessorTopology;

/// CR0: protection on.
const CR0_PE: u64 = 1;
/// CR0: extension type, always set.
const CR0_ET: u64 = 1 << 4;
/// CR0: paging.
const CR0_PG: u64 = 1 << 31;
/// CR4: physical address extension, which long mode requires.
const CR4_PAE: u64 = 1 << 5;
/// EFER: long mode enabled, and active.
const EFER_LME_LMA: u64 = 1 << 8 | 1 << 10;
/// RFLAGS with nothing set but the bit that always is.
const RFLAGS_NONE: u64 = 1 << 1;
/// A page table entry that is present and writable.
const PAGE_PRESENT_WRITABLE: u64 = 0b11;
/// A page directory entry that maps 2 MiB.
const PAGE_2M: u64 = 1 << 7;
/// x87 control word and SSE control word after reset, all exceptions masked.
const FPU_CONTROL: u16 = 0x37f;
const SSE_CONTROL: u32 = 0x1f80;
/// Local APIC registers LVT LINT0 and LINT1, and their delivery modes.
const APIC_LVT_LINT0: usize = 0x350;
const APIC_LVT_LINT1: usize = 0x360;
const APIC_DELIVERY_NMI: u32 = 0b100 << 8;
const APIC_DELIVERY_EXTINT: u32 = 0b111 << 8;
const APIC_DELIVERY_MASK: u32 = 0b111 << 8;

/// Why a vCPU could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum ProcessorError {
    /// KVM refused one step.
    #[error("kvm refused to {step}")]
    Kvm {
        /// What was being done.
        step: &'static str,
        /// KVM's answer.
        source: kvm_ioctls::Error,
    },
    /// The boot structures do not fit into guest memory.
    #[error("guest memory is too small to start in: give the guest at least 1 MiB more")]
    Memory(#[from] GuestMemoryError),
}

/// The processor model of one VM: the same for all its vCPUs but for their numbers.
#[derive(Debug)]
pub struct Processor {
    supported: CpuId,
    topology: Topology,
    tsc_deadline: bool,
}

impl Processor {
    /// What this host's KVM can give a guest.
    ///
    /// # Errors
    ///
    /// KVM's refusal to say.
    pub fn new(kvm: &Kvm, topology: Topology) -> Result<Self, ProcessorError> {
        let supported =
            kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(refused("list its CPUID leaves"))?;
        let tsc_deadline = kvm.check_extension(Cap::TscDeadlineTimer);
        Ok(Self { supported, topology, tsc_deadline })
    }

    /// Gives vCPU `index` its identity. The others wait for the first to wake them, so this is all they need.
    ///
    /// # Errors
    ///
    /// KVM's refusal of a step.
    pub fn identify(&self, vcpu: &VcpuFd, index: u8) -> Result<(), ProcessorError> {
        let mut entries = self.supported.as_slice().to_vec();
        cpuid::specialize(&mut entries, self.topology, index, self.tsc_deadline);
        let cpuid =
            CpuId::from_entries(&entries).expect("the list grew by less than KVM's limit leaves free");
        vcpu.set_cpuid2(&cpuid).map_err(refused("set CPUID"))?;
        write_boot_msrs(vcpu);
        route_local_interrupts(vcpu)
    }

    /// Puts the first vCPU at the kernel's entry.
    ///
    /// # Errors
    ///
    /// KVM's refusal of a step, or guest memory that is too small.
    pub fn set_entry(vcpu: &VcpuFd, ram: &GuestRam, entry: EntryPoint) -> Result<(), ProcessorError> {
        set_start_registers(vcpu, entry)?;
        set_start_system_registers(vcpu, ram, entry)?;
        let fpu = kvm_fpu { fcw: FPU_CONTROL, mxcsr: SSE_CONTROL, ..kvm_fpu::default() };
        vcpu.set_fpu(&fpu).map_err(refused("set the FPU"))
    }
}

fn refused(step: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> ProcessorError {
    move |source| ProcessorError::Kvm { step, source }
}

/// One by one: a host may refuse some, and a guest can start without any of them.
fn write_boot_msrs(vcpu: &VcpuFd) {
    for (index, bits) in msr::BOOT {
        let mut one = Msrs::from_entries(&[kvm_msr_entry { index, ..kvm_msr_entry::default() }])
            .expect("one register fits into a list");
        // What is there is kept: it tells a guest what it does not have.
        let is_read = matches!(vcpu.get_msrs(&mut one), Ok(1));
        one.as_mut_slice()[0].data |= bits;
        if !is_read || !matches!(vcpu.set_msrs(&one), Ok(1)) {
            tracing::debug!(msr = format_args!("{index:#x}"), "the host refuses a boot MSR");
        }
    }
}

/// The wiring of a PC: the interrupt controller's output on LINT0, NMI on LINT1.
fn route_local_interrupts(vcpu: &VcpuFd) -> Result<(), ProcessorError> {
    let mut apic = vcpu.get_lapic().map_err(refused("read the local APIC"))?;
    for (register, delivery) in [(APIC_LVT_LINT0, APIC_DELIVERY_EXTINT), (APIC_LVT_LINT1, APIC_DELIVERY_NMI)]
    {
        let bytes: Vec<u8> =
            apic.regs[register..register + 4].iter().map(|byte| byte.cast_unsigned()).collect();
        let old = u32::from_le_bytes(bytes.try_into().expect("a register is four bytes"));
        let new = old & !APIC_DELIVERY_MASK | delivery;
        for (target, byte) in apic.regs[register..register + 4].iter_mut().zip(new.to_le_bytes()) {
            *target = byte.cast_signed();
        }
    }
    vcpu.set_lapic(&apic).map_err(refused("set the local APIC"))
}

fn set_start_registers(vcpu: &VcpuFd, entry: EntryPoint) -> Result<(), ProcessorError> {
    let mut regs = kvm_regs { rflags: RFLAGS_NONE, ..kvm_regs::default() };
    match entry {
        EntryPoint::Long { rip } => {
            regs.rip = rip.0;
            (regs.rsp, regs.rbp) = (layout::BOOT_STACK, layout::BOOT_STACK);
            regs.rsi = layout::ZERO_PAGE.0;
        }
        EntryPoint::Pvh { eip } => {
            regs.rip = eip.0;
            regs.rbx = layout::PVH_START_INFO.0;
        }
    }
    vcpu.set_regs(&regs).map_err(refused("set registers"))
}

fn set_start_system_registers(
    vcpu: &VcpuFd,
    ram: &GuestRam,
    entry: EntryPoint,
) -> Result<(), ProcessorError> {
    let mode = match entry {
        EntryPoint::Long { .. } => Mode::Long,
        EntryPoint::Pvh { .. } => Mode::Protected,
    };
    let gdt = segments::gdt(mode);
    for (descriptor, offset) in gdt.iter().zip((0..).step_by(8)) {
        ram.write_obj(*descriptor, GuestAddress(layout::BOOT_GDT.0 + offset))?;
    }
    ram.write_obj(0_u64, layout::BOOT_IDT)?;

    let mut sregs = vcpu.get_sregs().map_err(refused("read system registers"))?;
    segments::load(&mut sregs, mode);
    sregs.gdt.base = layout::BOOT_GDT.0;
    sregs.gdt.limit = u16::try_from(size_of_val(&gdt) - 1).expect("a boot GDT is small");
    sregs.idt.base = layout::BOOT_IDT.0;
    sregs.idt.limit = 7;
    sregs.cr0 = CR0_PE | CR0_ET;
    sregs.cr4 = 0;
    if mode == Mode::Long {
        write_identity_map(ram)?;
        sregs.cr0 |= CR0_PG;
        sregs.cr3 = layout::PAGE_TABLES.0;
        sregs.cr4 = CR4_PAE;
        sregs.efer = EFER_LME_LMA;
    }
    vcpu.set_sregs(&sregs).map_err(refused("set system registers"))
}

/// Maps the first 4 GiB onto themselves, in pages of 2 MiB: all low RAM, wherever in it the kernel is.
fn write_identity_map(ram: &GuestRam) -> Result<(), GuestMemoryError> {
    const PAGE_BYTES: u64 = 4096;
    let table = |index: u64| GuestAddress(layout::PAGE_TABLES.0 + index * PAGE_BYTES);
    ram.write_obj(table(1).0 | PAGE_PRESENT_WRITABLE, table(0))?;
    for gib in 0..4_u64 {
        let directory = table(2 + gib);
        ram.write_obj(directory.0 | PAGE_PRESENT_WRITABLE, GuestAddress(table(1).0 + gib * 8))?;
        let entries: Vec<u8> = (gib * 512..(gib + 1) * 512)
            .flat_map(|page| (page << 21 | PAGE_PRESENT_WRITABLE | PAGE_2M).to_le_bytes())
            .collect();
        ram.write_slice(&entries, directory)?;
    }
    Ok(())
}
