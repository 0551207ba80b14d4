use std::io::Write;

use memory::Backing;

use super::*;

const MIB: u64 = 1 << 20;

fn ram(mib: u64) -> GuestRam {
    let backing = Backing::Anonymous { transparent_huge_pages: false };
    GuestRam::new(&layout::ram_ranges(mib * MIB), backing).unwrap()
}

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn command_line(text: &str) -> Cmdline {
    Cmdline::try_from(text, layout::COMMAND_LINE_BYTES_MAX).unwrap()
}

fn put(image: &mut [u8], offset: usize, bytes: &[u8]) {
    image[offset..offset + bytes.len()].copy_from_slice(bytes);
}

/// An ELF64 of one segment of `file_size` bytes at 1 MiB, taking `memory_size` bytes there, entered at its start.
fn elf(file_size: u64, memory_size: u64, with_pvh_note: bool) -> Vec<u8> {
    let count = if with_pvh_note { 2_u16 } else { 1 };
    let mut image = vec![0; 0x200 + usize::try_from(file_size).unwrap()];
    put(&mut image, 0, b"\x7fELF\x02\x01\x01");
    put(&mut image, 16, &2_u16.to_le_bytes());
    put(&mut image, 18, &62_u16.to_le_bytes());
    put(&mut image, 20, &1_u32.to_le_bytes());
    put(&mut image, 24, &0x10_0000_u64.to_le_bytes());
    put(&mut image, 32, &64_u64.to_le_bytes());
    put(&mut image, 52, &64_u16.to_le_bytes());
    put(&mut image, 54, &56_u16.to_le_bytes());
    put(&mut image, 56, &count.to_le_bytes());
    put(&mut image, 64, &1_u32.to_le_bytes());
    for (offset, value) in [(8, 0x200), (24, 0x10_0000), (32, file_size), (40, memory_size)] {
        put(&mut image, 64 + offset, &u64::to_le_bytes(value));
    }
    if with_pvh_note {
        // XEN_ELFNOTE_PHYS32_ENTRY (18) of the owner "Xen", whose value is the entry.
        put(&mut image, 120, &4_u32.to_le_bytes());
        for (offset, value) in [(8, 0x100), (32, 20), (40, 20), (48, 4)] {
            put(&mut image, 120 + offset, &u64::to_le_bytes(value));
        }
        for (offset, value) in [(0, 4_u32), (4, 4), (8, 18), (16, 0x10_0040)] {
            put(&mut image, 0x100 + offset, &value.to_le_bytes());
        }
        put(&mut image, 0x10c, b"Xen\0");
    }
    image
}

/// A bzImage of `packed` bytes that unpacks to `init_size` bytes at 16 MiB.
fn bzimage(packed: u32, init_size: u32, xloadflags: u16) -> Vec<u8> {
    let mut image = vec![0x90; 1024 + packed as usize];
    image[..1024].fill(0);
    image[0x1f1] = 1;
    put(&mut image, 0x1f4, &(packed / 16).to_le_bytes());
    put(&mut image, 0x202, b"HdrS");
    put(&mut image, 0x206, &0x020f_u16.to_le_bytes());
    image[0x211] = 1;
    put(&mut image, 0x214, &0x10_0000_u32.to_le_bytes());
    put(&mut image, 0x22c, &0x7fff_ffff_u32.to_le_bytes());
    put(&mut image, 0x230, &0x20_0000_u32.to_le_bytes());
    put(&mut image, 0x236, &xloadflags.to_le_bytes());
    put(&mut image, 0x258, &0x100_0000_u64.to_le_bytes());
    put(&mut image, 0x260, &init_size.to_le_bytes());
    image
}

fn load(ram: &GuestRam, kernel: &[u8], initrd: Option<&[u8]>) -> Result<Payload, PayloadError> {
    let mut initrd = initrd.map(file);
    Payload::load(ram, &mut file(kernel), initrd.as_mut(), &command_line("quiet"))
}

#[test]
fn an_elf_is_entered_in_64_bit_mode_or_by_its_note() {
    let ram = ram(8);
    let plain = load(&ram, &elf(4096, 8192, false), None).unwrap();
    assert_eq!(plain.entry(), EntryPoint::Long { rip: GuestAddress(0x10_0000) });
    assert_eq!(plain.kernel.end, 0x10_2000, "the end counts what is zeroed, too");
    let noted = load(&ram, &elf(4096, 8192, true), None).unwrap();
    assert_eq!(noted.entry(), EntryPoint::Pvh { eip: GuestAddress(0x10_0040) });
}

#[test]
fn a_bzimage_is_entered_past_its_32_bit_code() {
    let ram = ram(64);
    let payload = load(&ram, &bzimage(0x8000, 0x20_0000, 1), None).unwrap();
    assert_eq!(payload.entry(), EntryPoint::Long { rip: GuestAddress(0x10_0200) });
    assert_eq!(payload.kernel.end, 0x120_0000);
    assert_eq!(ram.read_obj::<u8>(GuestAddress(0x10_0000)).unwrap(), 0x90);
}

#[test]
fn the_zero_page_names_the_initrd_the_command_line_and_the_memory() {
    let ram = ram(64);
    let payload = load(&ram, &bzimage(0x8000, 0x20_0000, 1), Some(&[7; 5000])).unwrap();
    payload.introduce(&ram, layout::ACPI_TABLES).unwrap();
    let word = |offset: u64| ram.read_obj::<u32>(GuestAddress(layout::ZERO_PAGE.0 + offset)).unwrap();
    assert_eq!(word(0x070), 0xe_0000, "acpi_rsdp_addr");
    assert_eq!(word(0x218), 64 * 0x10_0000 - 8192, "ramdisk_image: as high as it goes");
    assert_eq!(word(0x21c), 5000, "ramdisk_size");
    assert_eq!(word(0x228), 0x2_0000, "cmd_line_ptr");
    let mut text = [0; 6];
    ram.read_slice(&mut text, layout::COMMAND_LINE).unwrap();
    assert_eq!(&text, b"quiet\0");
    assert_eq!(word(0x1e8) & 0xff, 3, "e820_entries: below, reserved, above 1 MiB");
    assert_eq!((word(0x2d0 + 40), word(0x2d0 + 48)), (0x10_0000, 63 * 0x10_0000));
}

#[test]
fn the_start_info_names_them_too() {
    let ram = ram(8);
    let payload = load(&ram, &elf(4096, 4096, true), Some(&[7; 5000])).unwrap();
    payload.introduce(&ram, layout::ACPI_TABLES).unwrap();
    let word = |base: GuestAddress, offset| ram.read_obj::<u32>(GuestAddress(base.0 + offset)).unwrap();
    assert_eq!(word(layout::PVH_START_INFO, 0), 0x336e_c578);
    assert_eq!(word(layout::PVH_START_INFO, 12), 1, "one module");
    assert_eq!(word(layout::PVH_START_INFO, 32), 0xe_0000, "rsdp");
    assert_eq!(word(layout::PVH_MODULES, 8), 5000);
    assert_eq!(word(layout::PVH_MEMORY_MAP, 48), 0x10_0000, "the third entry is RAM above 1 MiB");
}

#[test]
fn what_is_no_kernel_is_refused() {
    let ram = ram(8);
    for bytes in [&b""[..], b"#!/bin/sh\n", &[0; 4096]] {
        assert!(matches!(load(&ram, bytes, None), Err(PayloadError::NotAKernel)));
    }
    let mut arm = elf(4096, 4096, false);
    put(&mut arm, 18, &183_u16.to_le_bytes());
    assert!(matches!(load(&ram, &arm, None), Err(PayloadError::NotAKernel)));
    let bzimage_32bit = bzimage(0x1000, 0x1000, 0);
    assert!(matches!(load(&ram, &bzimage_32bit, None), Err(PayloadError::Not64Bit)));
}

#[test]
fn a_kernel_that_would_overwrite_its_own_parameters_is_refused() {
    let mut low = elf(4096, 4096, false);
    put(&mut low, 64 + 24, &0x8000_u64.to_le_bytes());
    assert!(matches!(load(&ram(8), &low, None), Err(PayloadError::TooLow { paddr: 0x8000 })));
}

#[test]
fn a_header_older_than_its_flags_is_not_believed() {
    let mut old = bzimage(0x1000, 0x1000, 1);
    put(&mut old, 0x206, &0x020b_u16.to_le_bytes());
    assert!(matches!(load(&ram(64), &old, None), Err(PayloadError::Not64Bit)));
}

#[test]
fn a_truncated_kernel_is_refused_wherever_it_was_cut() {
    let ram = ram(64);
    for (image, step) in [(elf(4096, 4096, false), 97), (bzimage(0x8000, 0x1000, 1), 1021)] {
        for length in (4..image.len()).step_by(step) {
            let error = load(&ram, &image[..length], None).unwrap_err();
            let expected = matches!(error, PayloadError::Truncated { .. } | PayloadError::NotAKernel);
            assert!(expected, "cut to {length} of {}: {error}", image.len());
        }
    }
}

#[test]
fn a_kernel_larger_than_ram_is_refused_with_both_sizes() {
    let too_large =
        |kernel: &[u8]| matches!(load(&ram(8), kernel, None), Err(PayloadError::KernelTooLarge { .. }));
    assert!(too_large(&elf(4096, 16 * MIB, false)), "what is zeroed does not fit");
    assert!(too_large(&elf(4096, u64::MAX, false)), "a size that wraps");
    assert!(too_large(&bzimage(0x8000, 0x20_0000, 1)), "what it unpacks to does not fit");
    assert!(too_large(&bzimage(9 << 20, 0x20_0000, 1)), "not even packed");
}

#[test]
fn an_initrd_that_does_not_fit_is_refused() {
    let kernel = elf(4096, 4 * MIB, false);
    let initrd = |bytes: usize| load(&ram(8), &kernel, Some(&vec![1; bytes]));
    assert!(initrd(3 << 20).is_ok());
    assert!(
        matches!(initrd((3 << 20) + 1), Err(PayloadError::InitrdTooLarge { .. })),
        "it would overlap the kernel"
    );
    assert!(matches!(initrd(9 << 20), Err(PayloadError::InitrdTooLarge { .. })), "it is larger than RAM");
    assert!(matches!(initrd(0), Err(PayloadError::InitrdEmpty)));
}

#[test]
fn guest_memory_of_one_mebibyte_is_too_small_and_says_so() {
    assert!(matches!(load(&ram(1), &elf(4096, 4096, false), None), Err(PayloadError::KernelTooLarge { .. })));
}
