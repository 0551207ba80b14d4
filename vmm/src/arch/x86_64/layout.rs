//! Where things are in an x86_64 guest's physical address space.
//!
//! ```text
//!        0x500  boot GDT, IDT                     0x7000  zero page (Linux) or start info and memory map (PVH)
//!       0x9000  boot page tables, six pages      0x20000  command line
//!      0x9fc00  end of conventional memory       0xde000  VMClock, and on the next page the generation ID
//!      0xe0000  RSDP and the other ACPI tables
//!     0x100000  kernel, and above it the initrd, as high as it may go
//!   0xc0000000  end of low RAM: the hole for devices, the boot timer in its first page
//!   0xd0000000    virtio-mmio devices, one page each
//!   0xfec00000    I/O APIC      0xfee00000  local APICs
//!   0xfffbc000    KVM's identity map page and task state, which old Intel processors need
//!  0x100000000  the rest of RAM
//! ```

use memory::RamRange;
use vm_memory::GuestAddress;

/// Boot GDT.
pub const BOOT_GDT: GuestAddress = GuestAddress(0x500);
/// Boot IDT, empty.
pub const BOOT_IDT: GuestAddress = GuestAddress(0x540);
/// The Linux boot protocol's zero page.
pub const ZERO_PAGE: GuestAddress = GuestAddress(0x7000);
/// The PVH start info; its module list and memory map follow in the same page.
pub const PVH_START_INFO: GuestAddress = GuestAddress(0x7000);
/// The PVH module list, of one entry.
pub const PVH_MODULES: GuestAddress = GuestAddress(0x7040);
/// The PVH memory map.
pub const PVH_MEMORY_MAP: GuestAddress = GuestAddress(0x7100);
/// Top of the stack that a kernel finds at its 64-bit entry.
pub const BOOT_STACK: u64 = 0x8ff0;
/// Boot page tables: one PML4, one PDPT, and four page directories, in consecutive pages.
pub const PAGE_TABLES: GuestAddress = GuestAddress(0x9000);
/// The kernel command line.
pub const COMMAND_LINE: GuestAddress = GuestAddress(0x20000);
/// The longest command line, its NUL included: `COMMAND_LINE_SIZE` of Linux on x86.
pub const COMMAND_LINE_BYTES_MAX: usize = 2048;
/// End of conventional memory; what follows, up to 1 MiB, is reserved for firmware.
pub const CONVENTIONAL_MEMORY_END: u64 = 0x9_fc00;
/// The VMClock's page. It is in firmware's memory, which a guest neither uses nor maps uncached (UAPI.13, "Discovery via
/// ACPI").
pub const VM_CLOCK: GuestAddress = GuestAddress(0xd_e000);
/// The generation ID, on a page of its own for the same reasons. Linux takes 0x55 and 0xaa at a multiple of 2 KiB for an
/// adapter's ROM (`arch/x86/kernel/probe_roms.c`), and this random number is at none.
pub const VM_GENERATION_ID: GuestAddress = GuestAddress(0xd_f010);
/// The RSDP, and right after it the tables it leads to.
pub const ACPI_TABLES: GuestAddress = GuestAddress(0xe_0000);
/// End of the room for ACPI tables.
pub const ACPI_TABLES_END: u64 = 0x10_0000;
/// Where RAM for a kernel starts.
pub const HIGH_MEMORY: GuestAddress = GuestAddress(0x10_0000);

/// End of low RAM, and start of the hole for devices.
pub const DEVICE_HOLE: u64 = 0xc000_0000;
/// Start of the RAM that does not fit below the hole.
pub const RAM_ABOVE_HOLE: u64 = 0x1_0000_0000;
/// Firecracker's boot timer.
pub const BOOT_TIMER: u64 = DEVICE_HOLE;
/// The first virtio-mmio device.
pub const VIRTIO_MMIO: u64 = 0xd000_0000;
/// The room each virtio-mmio device has.
pub const VIRTIO_MMIO_STRIDE: u64 = 0x1000;
/// I/O APIC registers.
pub const IO_APIC: u32 = 0xfec0_0000;
/// Local APIC registers.
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// One page for KVM's identity map.
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
/// Three pages for KVM's task state segment.
pub const KVM_TSS: usize = 0xfffb_d000;

/// The first interrupt line (GSI) for virtio devices; those below belong to legacy devices.
pub const VIRTIO_GSI_FIRST: u32 = 5;
/// The last pin of the I/O APIC that KVM emulates.
pub const GSI_LAST: u32 = 23;
/// How many virtio devices there are lines for.
pub const VIRTIO_DEVICES_MAX: usize = (GSI_LAST - VIRTIO_GSI_FIRST + 1) as usize;

/// The line that tells of a new generation: COM2's, which no guest of ours has.
pub const GENERATION_GSI: u32 = 3;
/// COM1.
pub const SERIAL_PORT: u16 = 0x3f8;
/// How many ports a 16550 has.
pub const SERIAL_PORTS: u16 = 8;
/// COM1's line.
pub const SERIAL_GSI: u32 = 4;
/// The CMOS clock's index port; its data port follows.
pub const RTC_PORT: u16 = 0x70;
/// The keyboard controller's data port.
pub const I8042_PORT: u16 = 0x60;
/// How many ports it spans, its command port 0x64 included.
pub const I8042_PORTS: u16 = 5;
/// The keyboard's line.
pub const I8042_GSI: u32 = 1;
/// The ACPI sleep control register; the reset register follows.
pub const SLEEP_CONTROL_PORT: u16 = 0x600;
/// The ACPI reset register.
pub const RESET_PORT: u16 = 0x601;
/// The ACPI sleep status register.
pub const SLEEP_STATUS_PORT: u16 = 0x602;
/// How many ports the ACPI registers span.
pub const POWER_PORTS: u16 = 3;

/// The guest's RAM: below the hole, and what does not fit there above it.
#[must_use]
pub fn ram_ranges(size_bytes: u64) -> Vec<RamRange> {
    let low = RamRange { gpa: GuestAddress(0), size_bytes: size_bytes.min(DEVICE_HOLE) };
    let mut ranges = vec![low];
    if size_bytes > DEVICE_HOLE {
        ranges.push(RamRange { gpa: GuestAddress(RAM_ABOVE_HOLE), size_bytes: size_bytes - DEVICE_HOLE });
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_goes_around_the_device_hole() {
        let sizes = |bytes| ram_ranges(bytes).iter().map(|r| (r.gpa.0, r.size_bytes)).collect::<Vec<_>>();
        assert_eq!(sizes(1 << 20), [(0, 1 << 20)]);
        assert_eq!(sizes(3 << 30), [(0, 3 << 30)]);
        assert_eq!(sizes((3 << 30) + (1 << 20)), [(0, 3 << 30), (4 << 30, 1 << 20)]);
    }

    #[test]
    fn devices_fit_into_the_hole() {
        assert!(VIRTIO_MMIO + VIRTIO_DEVICES_MAX as u64 * VIRTIO_MMIO_STRIDE <= u64::from(IO_APIC));
    }

    #[test]
    fn generation_is_in_memory_that_a_guest_keeps_out_of() {
        let clock_end = VM_CLOCK.0 + u64::from(devices::generation::CLOCK_PAGE_BYTES);
        let id_end = VM_GENERATION_ID.0 + devices::generation::ID_BYTES as u64;
        assert!(CONVENTIONAL_MEMORY_END <= VM_CLOCK.0 && clock_end <= VM_GENERATION_ID.0);
        assert!(id_end <= ACPI_TABLES.0);
        assert_ne!(VM_GENERATION_ID.0 % 2048, 0);
    }

    #[test]
    fn every_device_has_a_line_of_its_own() {
        let lines = [I8042_GSI, GENERATION_GSI, SERIAL_GSI, VIRTIO_GSI_FIRST];
        assert!(lines.is_sorted_by(|line, next| line < next), "{lines:?}");
    }
}
