//! The payload of a VM: a kernel, an initrd, a command line, and the boot protocol that introduces them.
//!
//! ```text
//!   ELF with a PVH note ──▶ 32-bit entry, `hvm_start_info`      (the Xen project's docs/misc/pvh.pandoc)
//!   ELF without one     ──▶ 64-bit entry, zero page             (Linux, Documentation/arch/x86/boot.rst)
//!   bzImage             ──▶ 64-bit entry at +0x200, zero page   (the same; the kernel unpacks itself)
//! ```

mod bzimage;
mod elf;
mod parameters;

use std::fs::File;
use std::io::{self, Seek, SeekFrom};

use linux_loader::cmdline::Cmdline;
use linux_loader::loader::bootparam::setup_header;
use memory::GuestRam;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::layout;
use crate::boot::CommandLineError;

/// Where and how the first vCPU starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryPoint {
    /// 64-bit mode, paged, the zero page's address in RSI.
    Long {
        /// The first instruction.
        rip: GuestAddress,
    },
    /// 32-bit protected mode, unpaged, the start info's address in EBX.
    Pvh {
        /// The first instruction.
        eip: GuestAddress,
    },
}

/// Why a payload could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum PayloadError {
    /// The file is neither an ELF nor a bzImage.
    #[error("the kernel is neither a 64-bit x86 ELF (vmlinux) nor a bzImage (vmlinuz): give one of these")]
    NotAKernel,
    /// The file is a bzImage of a kernel that cannot be entered in 64-bit mode.
    #[error("the kernel is a bzImage without a 64-bit entry: only x86_64 kernels can be booted")]
    Not64Bit,
    /// The file says that it is longer than it is.
    #[error(
        "the kernel is truncated: its headers promise {promised_bytes} bytes and the file has {file_bytes}"
    )]
    Truncated {
        /// How long the headers say it is.
        promised_bytes: u64,
        /// How long it is.
        file_bytes: u64,
    },
    /// The kernel wants to be where the structures are that it is started with.
    #[error("the kernel wants to be loaded at {paddr:#x}: link it to 1 MiB or higher")]
    TooLow {
        /// The lowest address it wants.
        paddr: u64,
    },
    /// The kernel, unpacked, reaches past the end of low RAM.
    #[error(
        "the kernel needs guest memory up to {needed_mib} MiB and the guest has {ram_mib} MiB: give it more"
    )]
    KernelTooLarge {
        /// How far it reaches, in MiB, rounded up.
        needed_mib: u64,
        /// The size of low RAM, in MiB.
        ram_mib: u64,
    },
    /// There is no room for the initrd above the kernel.
    #[error(
        "the initrd of {initrd_kib} KiB does not fit above the kernel into {ram_mib} MiB of guest memory"
    )]
    InitrdTooLarge {
        /// The size of the initrd, in KiB, rounded up.
        initrd_kib: u64,
        /// The size of low RAM, in MiB.
        ram_mib: u64,
    },
    /// The initrd is empty.
    #[error("the initrd is an empty file")]
    InitrdEmpty,
    /// The command line cannot be passed on.
    #[error("the kernel command line is invalid")]
    CommandLine(#[from] CommandLineError),
    /// A file could not be read.
    #[error("cannot read the {what}")]
    Read {
        /// Which one.
        what: &'static str,
        /// The host's answer.
        source: io::Error,
    },
    /// The library that places kernels refused this one.
    #[error("the kernel cannot be loaded")]
    Loader(#[from] linux_loader::loader::Error),
    /// Guest memory ended before the payload did.
    #[error("guest memory is too small for the payload")]
    Memory(#[from] GuestMemoryError),
}

/// An initrd in guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Initrd {
    address: u64,
    size_bytes: u64,
}

/// A kernel in guest memory, and what its boot protocol needs to know.
#[derive(Debug)]
struct Kernel {
    entry: EntryPoint,
    /// The first address that the kernel, unpacked, leaves free.
    end: u64,
    /// The last address an initrd may reach, plus one.
    initrd_end_max: u64,
    /// The setup header of a bzImage, which is handed back to it.
    header: Option<setup_header>,
}

/// A payload in guest memory, ready to be introduced to the kernel.
#[derive(Debug)]
pub struct Payload {
    kernel: Kernel,
    initrd: Option<Initrd>,
    command_line_bytes: u32,
}

impl Payload {
    /// Reads kernel and initrd into `ram` and writes the command line.
    ///
    /// # Errors
    ///
    /// [`PayloadError`]: for files that are no kernel, cut short, or too large for `ram`, and for a command line
    /// that is too long or not plain ASCII.
    pub fn load(
        ram: &GuestRam,
        kernel: &mut File,
        initrd: Option<&mut File>,
        command_line: &Cmdline,
    ) -> Result<Self, PayloadError> {
        let kernel = load_kernel(ram, kernel)?;
        let initrd = initrd.map(|file| load_initrd(ram, file, &kernel)).transpose()?;
        let text = command_line.as_cstring().map_err(CommandLineError::from)?;
        ram.write_slice(text.as_bytes_with_nul(), layout::COMMAND_LINE)?;
        let command_line_bytes =
            u32::try_from(text.as_bytes().len()).expect("a command line is bounded by its capacity");
        Ok(Self { kernel, initrd, command_line_bytes })
    }

    /// Where the first vCPU starts.
    #[must_use]
    pub fn entry(&self) -> EntryPoint {
        self.kernel.entry
    }

    /// Writes the parameters that the kernel's boot protocol wants, with the address of the ACPI tables.
    ///
    /// # Errors
    ///
    /// [`PayloadError::Memory`] where guest memory is too small.
    pub fn introduce(&self, ram: &GuestRam, rsdp: GuestAddress) -> Result<(), PayloadError> {
        match self.kernel.entry {
            EntryPoint::Long { .. } => parameters::write_zero_page(self, ram, rsdp)?,
            EntryPoint::Pvh { .. } => parameters::write_start_info(self, ram, rsdp)?,
        }
        Ok(())
    }
}

fn load_kernel(ram: &GuestRam, file: &mut File) -> Result<Kernel, PayloadError> {
    let file_bytes =
        file.seek(SeekFrom::End(0)).map_err(|source| PayloadError::Read { what: "kernel", source })?;
    let image = Image { file_bytes, low_ram_bytes: low_ram_bytes(ram) };
    if elf::is_elf(file)? {
        elf::load(ram, file, image)
    } else if bzimage::is_bzimage(file)? {
        bzimage::load(ram, file, image)
    } else {
        Err(PayloadError::NotAKernel)
    }
}

/// How large a kernel file and the RAM it goes to are.
#[derive(Debug, Clone, Copy)]
struct Image {
    file_bytes: u64,
    low_ram_bytes: u64,
}

impl Image {
    fn check_complete(self, promised_bytes: u64) -> Result<(), PayloadError> {
        if promised_bytes > self.file_bytes {
            return Err(PayloadError::Truncated { promised_bytes, file_bytes: self.file_bytes });
        }
        Ok(())
    }

    fn check_fits(self, end: u64) -> Result<(), PayloadError> {
        if end > self.low_ram_bytes {
            let (needed_mib, ram_mib) = (end.div_ceil(1 << 20), self.low_ram_bytes >> 20);
            return Err(PayloadError::KernelTooLarge { needed_mib, ram_mib });
        }
        Ok(())
    }
}

fn low_ram_bytes(ram: &GuestRam) -> u64 {
    ram.regions().first().map_or(0, |region| region.range().size_bytes)
}

/// Reads up to `buffer.len()` bytes at `offset`; what the file does not have stays as it was.
fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> Result<usize, PayloadError> {
    use std::os::unix::fs::FileExt;
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => return Err(PayloadError::Read { what: "kernel", source }),
        }
    }
    Ok(done)
}

/// Reads the initrd as high as it may go, so that the kernel finds room to unpack below it.
fn load_initrd(ram: &GuestRam, file: &mut File, kernel: &Kernel) -> Result<Initrd, PayloadError> {
    let read = |source| PayloadError::Read { what: "initrd", source };
    let size_bytes = file.seek(SeekFrom::End(0)).map_err(read)?;
    file.rewind().map_err(read)?;
    let end_max = low_ram_bytes(ram).min(kernel.initrd_end_max);
    let address = end_max.checked_sub(size_bytes).map(|address| address & !0xfff);
    let too_large = || PayloadError::InitrdTooLarge {
        initrd_kib: size_bytes.div_ceil(1 << 10),
        ram_mib: low_ram_bytes(ram) >> 20,
    };
    let address = address.filter(|&address| address >= kernel.end).ok_or_else(too_large)?;
    if size_bytes == 0 {
        return Err(PayloadError::InitrdEmpty);
    }
    let count = usize::try_from(size_bytes).map_err(|_| too_large())?;
    ram.read_exact_volatile_from(GuestAddress(address), file, count)?;
    Ok(Initrd { address, size_bytes })
}

#[cfg(test)]
mod tests;
