//! A guest of four instructions that shows what this host's KVM can run.
//!
//! Hardware runs a guest's kernel code as it is. A KVM without hardware interprets it, and its interpreter lacks
//! instructions that a stock Linux uses before it says its first word; `CMPXCHG16B` is one of them.

use kvm_ioctls::{Kvm, VcpuExit, VmFd};
use memory::{Backing, GuestRam, RamError};
use vm_memory::{Bytes, GuestMemoryError};

use crate::arch::host::{EntryPoint, Processor, ProcessorError, ProcessorTopology, layout, platform};
use crate::machine::vm::{self, MemorySlotError};

/// `lock cmpxchg16b [rsi]; mov al, 0x5a; out 0x80, al; hlt`. RSI is the zero page's address at a 64-bit entry.
const CODE: [u8; 10] = [0xf0, 0x48, 0x0f, 0xc7, 0x0e, 0xb0, 0x5a, 0xe6, 0x80, 0xf4];
const PORT: u16 = 0x80;
const SIGN: u8 = 0x5a;
const RAM_BYTES: u64 = 2 << 20;

/// How far the trial guest came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// To its end.
    Finished,
    /// To an instruction that KVM does not emulate.
    NotEmulated,
}

/// Why there was no trial.
#[derive(Debug, thiserror::Error)]
pub(super) enum TrialError {
    #[error("{0}")]
    Kvm(#[from] kvm_ioctls::Error),
    #[error("{0}")]
    Platform(#[from] platform::PlatformError),
    #[error("{0}")]
    Processor(#[from] ProcessorError),
    #[error("{0}")]
    Ram(#[from] RamError),
    #[error("{0}")]
    Memory(#[from] GuestMemoryError),
    #[error("{0}")]
    Slot(#[from] MemorySlotError),
    #[error("it left with {0}")]
    Exit(String),
}

pub(super) fn run(kvm: &Kvm) -> Result<Outcome, TrialError> {
    let ram =
        GuestRam::new(&layout::ram_ranges(RAM_BYTES), Backing::Anonymous { transparent_huge_pages: false })?;
    ram.write_slice(&CODE, layout::HIGH_MEMORY)?;
    let vm: VmFd = kvm.create_vm()?;
    vm::map_ram(&vm, &ram)?;
    platform::create(&vm)?;
    let mut vcpu = vm.create_vcpu(0)?;
    Processor::new(kvm, ProcessorTopology { vcpu_count: 1, smt: false })?.identify(&vcpu, 0)?;
    Processor::set_entry(&vcpu, &ram, EntryPoint::Long { rip: layout::HIGH_MEMORY })?;
    match vcpu.run()? {
        VcpuExit::IoOut(PORT, [SIGN]) => Ok(Outcome::Finished),
        VcpuExit::InternalError => Ok(Outcome::NotEmulated),
        other => Err(TrialError::Exit(format!("{other:?}"))),
    }
}
