//! What a kernel is told before its first instruction: the zero page of Linux, or the start info of PVH.
//!
//! `unsafe` is here for one reason: structures of C are written into guest memory, and that they are plain data must
//! be asserted.
#![expect(unsafe_code, reason = "the boot protocols' structures are asserted to be plain data")]

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use memory::GuestRam;
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryError};

use super::Payload;
use crate::arch::x86_64::layout;

/// `boot_flag` and `header` of a setup header.
const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = u32::from_le_bytes(*b"HdrS");
/// A boot loader without an assigned number.
const LOADER_UNDEFINED: u8 = 0xff;
/// The alignment that is claimed for an ELF, which brings no header.
const KERNEL_ALIGNMENT: u32 = 0x100_0000;
/// `XEN_HVM_START_MAGIC_VALUE`.
const PVH_MAGIC: u32 = 0x336e_c578;
/// The version of the start info that has a memory map.
const PVH_VERSION: u32 = 1;

/// A piece of the guest's memory map, with the numbers that E820 and PVH share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct MapEntry {
    start: u64,
    end: u64,
    kind: u32,
}

const MAP_RAM: u32 = 1;
const MAP_RESERVED: u32 = 2;

/// A structure of C, wrapped so that it can be written into guest memory.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Plain<T>(T);

// SAFETY: `boot_params` holds integers and arrays of them, in C's layout and packed, so every byte is initialized.
unsafe impl ByteValued for Plain<boot_params> {}
// SAFETY: `hvm_start_info` holds integers whose sizes leave no padding.
unsafe impl ByteValued for Plain<hvm_start_info> {}
// SAFETY: as above.
unsafe impl ByteValued for Plain<hvm_modlist_entry> {}
// SAFETY: as above.
unsafe impl ByteValued for Plain<hvm_memmap_table_entry> {}

fn memory_map(ram: &GuestRam) -> Vec<MapEntry> {
    let mut map = vec![
        MapEntry { start: 0, end: layout::CONVENTIONAL_MEMORY_END, kind: MAP_RAM },
        MapEntry { start: layout::CONVENTIONAL_MEMORY_END, end: layout::HIGH_MEMORY.0, kind: MAP_RESERVED },
    ];
    for region in ram.regions() {
        let range = region.range();
        let start = range.gpa.0.max(layout::HIGH_MEMORY.0);
        let end = range.gpa.0 + range.size_bytes;
        if start < end {
            map.push(MapEntry { start, end, kind: MAP_RAM });
        }
    }
    map
}

pub(super) fn write_zero_page(
    payload: &Payload,
    ram: &GuestRam,
    rsdp: GuestAddress,
) -> Result<(), GuestMemoryError> {
    let mut header = payload.kernel.header.unwrap_or(setup_header {
        boot_flag: BOOT_FLAG,
        header: HEADER_MAGIC,
        kernel_alignment: KERNEL_ALIGNMENT,
        ..setup_header::default()
    });
    header.type_of_loader = LOADER_UNDEFINED;
    header.cmd_line_ptr = low_address(layout::COMMAND_LINE.0);
    header.cmdline_size = payload.command_line_bytes;
    if let Some(initrd) = payload.initrd {
        header.ramdisk_image = low_address(initrd.address);
        header.ramdisk_size = low_address(initrd.size_bytes);
    }
    let mut page = boot_params { hdr: header, acpi_rsdp_addr: rsdp.0, ..boot_params::default() };
    let map = memory_map(ram);
    page.e820_entries = u8::try_from(map.len()).expect("a map of few entries");
    let mut table = page.e820_table;
    for (target, entry) in table.iter_mut().zip(&map) {
        *target = boot_e820_entry { addr: entry.start, size: entry.end - entry.start, r#type: entry.kind };
    }
    page.e820_table = table;
    ram.write_obj(Plain(page), layout::ZERO_PAGE)
}

pub(super) fn write_start_info(
    payload: &Payload,
    ram: &GuestRam,
    rsdp: GuestAddress,
) -> Result<(), GuestMemoryError> {
    let map = memory_map(ram);
    let mut info = hvm_start_info {
        magic: PVH_MAGIC,
        version: PVH_VERSION,
        cmdline_paddr: layout::COMMAND_LINE.0,
        rsdp_paddr: rsdp.0,
        memmap_paddr: layout::PVH_MEMORY_MAP.0,
        memmap_entries: u32::try_from(map.len()).expect("a map of few entries"),
        ..hvm_start_info::default()
    };
    if let Some(initrd) = payload.initrd {
        info.nr_modules = 1;
        info.modlist_paddr = layout::PVH_MODULES.0;
        let module = hvm_modlist_entry {
            paddr: initrd.address,
            size: initrd.size_bytes,
            ..hvm_modlist_entry::default()
        };
        ram.write_obj(Plain(module), layout::PVH_MODULES)?;
    }
    ram.write_obj(Plain(info), layout::PVH_START_INFO)?;
    for (entry, offset) in map.iter().zip((0..).step_by(size_of::<hvm_memmap_table_entry>())) {
        let entry = hvm_memmap_table_entry {
            addr: entry.start,
            size: entry.end - entry.start,
            type_: entry.kind,
            reserved: 0,
        };
        ram.write_obj(Plain(entry), GuestAddress(layout::PVH_MEMORY_MAP.0 + offset))?;
    }
    Ok(())
}

/// Addresses and sizes in low RAM, which the protocol holds in 32 bits.
fn low_address(value: u64) -> u32 {
    u32::try_from(value).expect("low RAM ends below 4 GiB")
}
