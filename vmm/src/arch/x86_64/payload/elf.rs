//! An uncompressed kernel: `vmlinux`, or anything built like one.

use std::fs::File;

use linux_loader::loader::KernelLoader;
use linux_loader::loader::elf::{Elf, PvhBootCapability};
use memory::GuestRam;

use super::{EntryPoint, Image, Kernel, PayloadError, read_at};
use crate::arch::x86_64::layout;

/// `EI_MAG`, `ELFCLASS64`, `ELFDATA2LSB`.
const IDENT: [u8; 6] = [0x7f, b'E', b'L', b'F', 2, 1];
const EM_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
/// The size of an ELF64 file header and of a program header, in bytes.
const FILE_HEADER_BYTES: usize = 64;
const PROGRAM_HEADER_BYTES: usize = 56;
/// More than any kernel has, and a bound on what a forged file makes us read.
const PROGRAM_HEADERS_MAX: u16 = 64;
/// The highest address an initrd may reach where the kernel does not say: `initrd_addr_max` of the boot protocol
/// since 2.03.
const INITRD_END_MAX: u64 = 0x3800_0000;

pub(super) fn is_elf(file: &File) -> Result<bool, PayloadError> {
    let mut ident = [0; 4];
    Ok(read_at(file, &mut ident, 0)? == ident.len() && ident == IDENT[..4])
}

pub(super) fn load(ram: &GuestRam, file: &mut File, image: Image) -> Result<Kernel, PayloadError> {
    let end = check_segments(file, image)?;
    let loaded = Elf::load(ram, None, file, Some(layout::HIGH_MEMORY))?;
    let entry = match loaded.pvh_boot_cap {
        PvhBootCapability::PvhEntryPresent(eip) => EntryPoint::Pvh { eip },
        PvhBootCapability::PvhEntryNotPresent | PvhBootCapability::PvhEntryIgnored => {
            EntryPoint::Long { rip: loaded.kernel_load }
        }
    };
    Ok(Kernel { entry, end, initrd_end_max: INITRD_END_MAX, header: None })
}

/// Checks every segment against the file and the RAM, before any of it is placed; gives the end of the last one.
fn check_segments(file: &File, image: Image) -> Result<u64, PayloadError> {
    let mut header = [0; FILE_HEADER_BYTES];
    let read = read_at(file, &mut header, 0)?;
    if read < header.len() {
        image.check_complete(FILE_HEADER_BYTES as u64)?;
    }
    let entry_bytes = usize::from(u16_at(&header, 54));
    let count = u16_at(&header, 56);
    let machine = u16_at(&header, 18);
    if header[..6] != IDENT || machine != EM_X86_64 || entry_bytes != PROGRAM_HEADER_BYTES {
        return Err(PayloadError::NotAKernel);
    }
    if count == 0 || count > PROGRAM_HEADERS_MAX {
        return Err(PayloadError::NotAKernel);
    }
    let table_start = u64_at(&header, 32);
    let mut table = vec![0; usize::from(count) * PROGRAM_HEADER_BYTES];
    image.check_complete(table_start.saturating_add(table.len() as u64))?;
    read_at(file, &mut table, table_start)?;
    let mut end = 0;
    for segment in table.chunks_exact(PROGRAM_HEADER_BYTES).filter(|segment| u32_at(segment, 0) == PT_LOAD) {
        let (offset, paddr) = (u64_at(segment, 8), u64_at(segment, 24));
        let (file_size, memory_size) = (u64_at(segment, 32), u64_at(segment, 40));
        image.check_complete(offset.saturating_add(file_size))?;
        // Below are the structures the kernel is started with.
        if memory_size > 0 && paddr < layout::HIGH_MEMORY.0 {
            return Err(PayloadError::TooLow { paddr });
        }
        let segment_end = paddr.saturating_add(memory_size.max(file_size));
        image.check_fits(segment_end)?;
        end = end.max(segment_end);
    }
    Ok(end)
}

fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes(bytes[offset..offset + 2].try_into().expect("two bytes"))
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(bytes[offset..offset + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(bytes[offset..offset + 8].try_into().expect("eight bytes"))
}
