mod discard;
mod file;
mod memfd;

use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryRegion, MemoryRegionAddress, Permissions};

use super::*;

const MIB: u64 = 1 << 20;
const ANONYMOUS: Backing = Backing::Anonymous { transparent_huge_pages: true };
const MEMFD: Backing = Backing::Memfd { transparent_huge_pages: true };

fn range(gpa: u64, size_bytes: u64) -> RamRange {
    RamRange { gpa: GuestAddress(gpa), size_bytes }
}

#[test]
fn two_regions_are_one_aligned_mapping() {
    for backing in [ANONYMOUS, MEMFD] {
        let ram = GuestRam::new(&[range(0, 6 * MIB), range(4 << 30, 3 * MIB)], backing).unwrap();
        let [low, high] = ram.regions() else { panic!("two regions were asked for") };
        assert!(PageSize::Huge2M.divides(low.hva()), "{backing:?}");
        assert_eq!(high.hva() - low.hva(), 6 * MIB);
        assert_eq!((low.offset_in_file(), high.offset_in_file()), (0, 6 * MIB));
        assert_eq!(ram.size_bytes(), 9 * MIB);

        ram.write_obj(0x1122_3344_u32, GuestAddress(6 * MIB - 4)).unwrap();
        ram.write_obj(0x5566_7788_u32, GuestAddress(4 << 30)).unwrap();
        assert_eq!(ram.read_obj::<u32>(GuestAddress(6 * MIB - 4)).unwrap(), 0x1122_3344);
        assert_eq!(ram.read_obj::<u32>(GuestAddress(4 << 30)).unwrap(), 0x5566_7788);
        assert_eq!(ram.read_obj::<u32>(GuestAddress(0)).unwrap(), 0, "fresh RAM is zero");
    }
}

#[test]
fn accesses_outside_fail_and_do_not_wrap() {
    let ram = GuestRam::new(&[range(0, 2 * MIB)], ANONYMOUS).unwrap();
    let read = Permissions::Read;
    assert!(GuestMemory::check_range(&ram, GuestAddress(0), 2 << 20, read));
    assert!(!GuestMemory::check_range(&ram, GuestAddress(1), 2 << 20, read));
    assert!(ram.write_obj(1_u64, GuestAddress(2 * MIB - 4)).is_err(), "half of it is outside");
    assert!(ram.read_obj::<u8>(GuestAddress(2 * MIB)).is_err());
    assert!(ram.read_obj::<u64>(GuestAddress(u64::MAX - 3)).is_err());
    let region = &ram.regions()[0];
    assert!(region.get_slice(MemoryRegionAddress(u64::MAX), 2).is_err());
    assert!(region.get_host_address(MemoryRegionAddress(2 * MIB)).is_err());
}

#[test]
fn clones_share_the_memory_and_keep_it_alive() {
    let ram = GuestRam::new(&[range(0, 2 * MIB)], MEMFD).unwrap();
    assert!(ram.memfd().is_some());
    let clone = ram.clone();
    ram.write_obj(7_u8, GuestAddress(9)).unwrap();
    drop(ram);
    assert_eq!(clone.read_obj::<u8>(GuestAddress(9)).unwrap(), 7);
}

#[test]
fn memfd_cannot_be_shrunk_under_the_guest() {
    let ram = GuestRam::new(&[range(0, 2 * MIB)], MEMFD).unwrap();
    let file = std::fs::File::from(ram.memfd().unwrap().try_clone_to_owned().unwrap());
    assert_eq!(file.set_len(0).unwrap_err().raw_os_error(), Some(libc::EPERM));
    assert_eq!(file.metadata().unwrap().len(), 2 * MIB);
}

#[test]
fn layouts_that_cannot_be_are_refused() {
    let new = |ranges: &[RamRange], backing| GuestRam::new(ranges, backing).map(|_| ()).unwrap_err();
    assert!(matches!(new(&[], ANONYMOUS), RamError::Empty));
    assert!(matches!(new(&[range(0, 0)], ANONYMOUS), RamError::Empty));
    assert!(matches!(new(&[range(4096, MIB)], ANONYMOUS), RamError::Unaligned { .. }));
    assert!(matches!(new(&[range(0, 100)], ANONYMOUS), RamError::Unaligned { .. }));
    assert!(matches!(new(&[range(0, 3 * MIB)], Backing::Hugetlb2M), RamError::Unaligned { .. }));
    let overlapping = [range(0, 4 * MIB), range(2 * MIB, 4 * MIB)];
    assert!(matches!(new(&overlapping, ANONYMOUS), RamError::Layout { .. }));
    let first_ends_off_a_huge_page = [range(0, MIB), range(2 * MIB, MIB)];
    assert!(matches!(new(&first_ends_off_a_huge_page, ANONYMOUS), RamError::Layout { .. }));
    let past_the_end = [range(u64::MAX - 2 * MIB + 1, 4 * MIB)];
    assert!(matches!(new(&past_the_end, ANONYMOUS), RamError::Layout { .. }));
}

#[test]
fn more_than_the_host_has_is_refused_with_both_numbers() {
    let error = GuestRam::new(&[range(0, 1 << 50)], ANONYMOUS).unwrap_err();
    assert!(matches!(error, RamError::MoreThanHost { wanted_mib, .. } if wanted_mib == 1 << 30), "{error}");
}

#[test]
fn hugetlb_without_a_pool_names_the_command() {
    // More pages than any pool here, yet less than the host's memory: the kernel refuses the reservation.
    let half = (mapping::host_ram_bytes() / 2) & !(2 * MIB - 1);
    match GuestRam::new(&[range(0, half)], Backing::Hugetlb2M) {
        Err(error @ RamError::NoHugePages { .. }) => {
            assert!(error.to_string().contains("vm.nr_hugepages"), "{error}");
        }
        other => panic!("a pool of half the memory is not expected on a test machine: {other:?}"),
    }
}
