//! A distribution's kernel as it is: a bzImage, which unpacks itself.

use std::fs::File;

use linux_loader::loader::KernelLoader;
use linux_loader::loader::bzimage::BzImage;
use memory::GuestRam;
use vm_memory::GuestAddress;

use super::{EntryPoint, Image, Kernel, PayloadError, read_at};
use crate::arch::x86_64::layout;

/// Offsets in the setup header, from the start of the file (Documentation/arch/x86/boot.rst, "The Real-Mode Kernel
/// Header").
const SETUP_SECTS: usize = 0x1f1;
const SYSSIZE: usize = 0x1f4;
const HEADER_MAGIC: usize = 0x202;
/// Enough of the file to hold the header.
const HEADER_BYTES: usize = 0x268;
const MAGIC: [u8; 4] = *b"HdrS";
/// Version 2.12 of the protocol.
const VERSION_WITH_XLOADFLAGS: u16 = 0x020c;
/// `xloadflags`: the kernel has a 64-bit entry at offset 0x200.
const XLF_KERNEL_64: u16 = 1;
/// The offset of that entry from where the kernel is loaded.
const ENTRY_64_OFFSET: u64 = 0x200;
const SECTOR_BYTES: u64 = 512;

pub(super) fn is_bzimage(file: &File) -> Result<bool, PayloadError> {
    let mut header = [0; HEADER_BYTES];
    read_at(file, &mut header, 0)?;
    Ok(header[HEADER_MAGIC..HEADER_MAGIC + 4] == MAGIC)
}

pub(super) fn load(ram: &GuestRam, file: &mut File, image: Image) -> Result<Kernel, PayloadError> {
    check_complete(file, image)?;
    // Room for the packed kernel comes first: the library cannot tell "too large" from "cannot read".
    image.check_fits(layout::HIGH_MEMORY.0.saturating_add(image.file_bytes))?;
    let loaded = BzImage::load(ram, Some(layout::HIGH_MEMORY), file, Some(layout::HIGH_MEMORY))?;
    let header = loaded.setup_header.expect("the loader of bzImages reads their header");
    // Before 2.12 there were other things where `xloadflags` is.
    if header.version < VERSION_WITH_XLOADFLAGS || header.xloadflags & XLF_KERNEL_64 == 0 {
        return Err(PayloadError::Not64Bit);
    }
    // The kernel unpacks itself at its preferred address, or at where it was loaded, rounded up, if that is higher.
    let alignment = u64::from(header.kernel_alignment).max(1);
    let loaded_at = loaded.kernel_load.0.checked_next_multiple_of(alignment).unwrap_or(u64::MAX);
    let end = loaded_at.max(header.pref_address).saturating_add(u64::from(header.init_size));
    image.check_fits(end)?;
    Ok(Kernel {
        entry: EntryPoint::Long { rip: GuestAddress(loaded.kernel_load.0 + ENTRY_64_OFFSET) },
        end,
        initrd_end_max: u64::from(header.initrd_addr_max) + 1,
        header: Some(header),
    })
}

/// The header tells how long the packed kernel is, in units of 16 bytes.
fn check_complete(file: &File, image: Image) -> Result<(), PayloadError> {
    let mut header = [0; HEADER_BYTES];
    read_at(file, &mut header, 0)?;
    image.check_complete(HEADER_BYTES as u64)?;
    let setup_sectors = match header[SETUP_SECTS] {
        0 => 4,
        count => u64::from(count),
    };
    let paragraphs = u32::from_le_bytes(header[SYSSIZE..SYSSIZE + 4].try_into().expect("four bytes"));
    image.check_complete((setup_sectors + 1) * SECTOR_BYTES + u64::from(paragraphs) * 16)
}
