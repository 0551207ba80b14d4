//! What the loader told: the command line and the memory map, out of either of the two boot protocols' structures.

use core::ffi::CStr;

const E820_RAM: u32 = 1;
/// `struct boot_params` (Linux, arch/x86/include/uapi/asm/bootparam.h).
const ACPI_RSDP_ADDR: u64 = 0x70;
const E820_ENTRIES: u64 = 0x1e8;
const CMD_LINE_PTR: u64 = 0x228;
const E820_TABLE: u64 = 0x2d0;
const E820_ENTRY_BYTES: u64 = 20;
/// `struct hvm_start_info` (Xen, public/arch-x86/hvm/start_info.h).
const CMDLINE_PADDR: u64 = 24;
const RSDP_PADDR: u64 = 32;
const MEMMAP_PADDR: u64 = 40;
const MEMMAP_ENTRIES: u64 = 48;
const MEMMAP_ENTRY_BYTES: u64 = 24;

pub struct BootInfo {
    pvh: bool,
    command_line: &'static [u8],
    rsdp: u64,
    map_address: u64,
    map_entries: u64,
    map_entry_bytes: u64,
}

/// RAM from `start` up to `end`, in bytes.
#[derive(Clone, Copy)]
pub struct Ram {
    pub start: u64,
    pub end: u64,
}

/// SAFETY: `address` must be mapped, and hold a `T`.
unsafe fn read<T: Copy>(address: u64) -> T {
    // SAFETY: the caller's promise.
    unsafe { (address as *const T).read_unaligned() }
}

impl BootInfo {
    /// SAFETY: a `hvm_start_info` (`pvh`) or a `boot_params` must be at `address`, and all it points at below 4 GiB.
    pub unsafe fn at(address: u64, pvh: bool) -> Self {
        // SAFETY: the caller's promise; the fields are where the two protocols put them.
        unsafe {
            let (command_line, rsdp, map_address, map_entries, map_entry_bytes) = if pvh {
                let entries: u32 = read(address + MEMMAP_ENTRIES);
                (
                    read(address + CMDLINE_PADDR),
                    read(address + RSDP_PADDR),
                    read(address + MEMMAP_PADDR),
                    entries as u64,
                    MEMMAP_ENTRY_BYTES,
                )
            } else {
                let command_line: u32 = read(address + CMD_LINE_PTR);
                let entries: u8 = read(address + E820_ENTRIES);
                (
                    command_line as u64,
                    read(address + ACPI_RSDP_ADDR),
                    address + E820_TABLE,
                    entries as u64,
                    E820_ENTRY_BYTES,
                )
            };
            let command_line = match command_line {
                0 => &[],
                pointer => CStr::from_ptr(pointer as *const _).to_bytes(),
            };
            Self { pvh, command_line, rsdp, map_address, map_entries, map_entry_bytes }
        }
    }

    pub fn is_pvh(&self) -> bool {
        self.pvh
    }

    pub fn command_line(&self) -> &'static [u8] {
        self.command_line
    }

    /// The address of the ACPI tables' root.
    pub fn rsdp(&self) -> u64 {
        self.rsdp
    }

    /// The map's RAM, in its order. Both protocols' entries begin alike: address, size, type.
    pub fn ram(&self) -> impl Iterator<Item = Ram> + '_ {
        (0..self.map_entries).filter_map(|index| {
            let entry = self.map_address + index * self.map_entry_bytes;
            // SAFETY: the map has so many entries of this size, as `at` read from the loader's structure.
            let (start, size, kind): (u64, u64, u32) =
                unsafe { (read(entry), read(entry + 8), read(entry + 16)) };
            (kind == E820_RAM).then_some(Ram { start, end: start + size })
        })
    }

    pub fn ram_bytes(&self) -> u64 {
        self.ram().map(|ram| ram.end - ram.start).sum()
    }

    pub fn ram_end(&self) -> u64 {
        self.ram().map(|ram| ram.end).max().unwrap_or(0)
    }
}
