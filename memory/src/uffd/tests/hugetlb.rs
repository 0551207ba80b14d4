use super::machine::HugePages;
use super::*;

const CHUNK: PageRange = PageRange { start: PageIndex(512), count: 512 };
const SHARED: Backing = Backing::HugetlbMemfd { sharing: Sharing::Shared };
const PRIVATE: Backing = Backing::HugetlbMemfd { sharing: Sharing::Private };

#[test]
fn huge_pages_are_missed_and_copied_in_whole() {
    let Some(_pool) = HugePages::take(6) else { return };
    for backing in [Backing::Hugetlb2M, SHARED, PRIVATE] {
        let memory = registered(backing, 4, MISSING);
        let reader = touch(&memory, 700, None);
        let fault = next_fault(&memory);
        assert_eq!((fault.page, fault.kind), (PageIndex(512), FaultKind::Missing), "{backing:?}");
        assert_eq!(memory.copy(CHUNK, &bytes(0xa5, 512), false, Wake::Now), done(512), "{backing:?}");
        assert_eq!(reader.recv_timeout(BUDGET).unwrap(), 0xa5);
        assert_eq!(memory.copy(CHUNK, &bytes(1, 512), false, Wake::Now), stopped(0, Stop::Exists));
    }
}

#[test]
fn parts_of_huge_pages_and_verbs_that_huge_pages_lack_are_told() {
    let Some(_pool) = HugePages::take(6) else { return };
    let memory = registered(Backing::Hugetlb2M, 4, MISSING_WP);
    let unsupported = stopped(0, Stop::Unsupported);
    for part in [page(512), pages(0, 511), pages(1, 512), pages(256, 512)] {
        assert_eq!(memory.copy(part, &bytes(1, part.count), false, Wake::Now), unsupported, "{part}");
        assert_eq!(memory.poison(part, Wake::Now), unsupported, "{part}");
        assert_eq!(memory.protect(part), unsupported, "{part}");
        let error = memory.ram().discard(part).unwrap_err();
        assert!(error.to_string().contains("multiples of 512 pages"), "{error}");
    }
    assert_eq!(memory.zero(CHUNK, Wake::Now), unsupported);
    let mut staging = Staging::new(1).unwrap();
    staging.bytes_mut().fill(1);
    assert_eq!(memory.move_in(CHUNK, &mut staging, Wake::Now), unsupported);
    assert_eq!(staging.bytes_mut()[4096], 1, "what could not be moved stays");
}

#[test]
fn a_huge_page_placed_protected_faults_at_its_first_write() {
    let Some(_pool) = HugePages::take(6) else { return };
    for backing in [Backing::Hugetlb2M, SHARED] {
        let memory = registered(backing, 4, MISSING_WP);
        let writer = touch(&memory, 700, Some(0x11));
        assert_eq!(next_fault(&memory).kind, FaultKind::Missing);
        assert_eq!(memory.copy(CHUNK, &bytes(0x77, 512), true, Wake::Now), done(512));
        let fault = next_fault(&memory);
        assert_eq!((fault.page, fault.kind), (PageIndex(512), FaultKind::WriteProtected), "{backing:?}");
        assert_eq!(content(&memory, 700), 0x77);
        assert_eq!(memory.unprotect(CHUNK), done(512));
        assert_eq!(writer.recv_timeout(BUDGET).unwrap(), 0x11);
        assert_eq!((content(&memory, 700), content(&memory, 701)), (0x11, 0x77));
    }
}

#[test]
fn huge_pages_of_a_memfd_are_mapped_from_its_cache() {
    let Some(_pool) = HugePages::take(6) else { return };
    let template = ram_of(SHARED, 4);
    template.write_obj(0x42_u8, GuestAddress(PageIndex(700).offset())).unwrap();
    let memfd = template.memfd().unwrap().try_clone_to_owned().unwrap();
    let ranges = [RamRange { gpa: GuestAddress(0), size_bytes: 4 << 20 }];
    let ram = GuestRam::over_memfd(&ranges, memfd, Sharing::Shared).unwrap();
    assert_eq!(ram.backing(), SHARED);
    let memory = register(ram, Modes { minor: true, ..MISSING });
    let reader = touch(&memory, 700, None);
    assert_eq!(next_fault(&memory).kind, FaultKind::Minor);
    assert_eq!(memory.map_cached(CHUNK, false, Wake::Now), done(512));
    assert_eq!(reader.recv_timeout(BUDGET).unwrap(), 0x42);
    let error = template.write_cached(CHUNK, &bytes(1, 512)).unwrap_err();
    assert!(error.to_string().contains("copy whole pages in"), "{error}");
    let mut cached = bytes(0, 512);
    template.read_cached(CHUNK, &mut cached).unwrap();
    assert_eq!(cached[188 * 4096], 0x42);
}

#[test]
fn a_removed_huge_page_is_told_and_comes_again_as_zero() {
    let Some(_pool) = HugePages::take(6) else { return };
    for backing in [Backing::Hugetlb2M, SHARED] {
        let memory = registered(backing, 4, MISSING);
        assert_eq!(memory.copy(CHUNK, &bytes(1, 512), false, Wake::Now), done(512));
        let ram = memory.ram().clone();
        let remover = thread::spawn(move || ram.discard(CHUNK));
        assert_eq!(next_event(&memory), Event::Removed(CHUNK), "{backing:?}");
        remover.join().unwrap().unwrap();
        let reader = touch(&memory, 513, None);
        assert_eq!(next_fault(&memory).kind, FaultKind::Missing);
        assert_eq!(memory.copy(CHUNK, &bytes(0, 512), false, Wake::Now), done(512));
        assert_eq!(reader.recv_timeout(BUDGET).unwrap(), 0);
    }
}

#[test]
fn clones_share_a_huge_page_until_one_writes_it() {
    let Some(_pool) = HugePages::take(6) else { return };
    let template = ram_of(SHARED, 4);
    template.write_obj(0x42_u8, GuestAddress(PageIndex(700).offset())).unwrap();
    let clone = || {
        let memfd = template.memfd().unwrap().try_clone_to_owned().unwrap();
        let ranges = [RamRange { gpa: GuestAddress(0), size_bytes: 4 << 20 }];
        let ram = GuestRam::over_memfd(&ranges, memfd, Sharing::Private).unwrap();
        assert_eq!(ram.backing(), PRIVATE);
        register(ram, Modes { minor: true, ..MISSING })
    };
    let clones = [clone(), clone()];
    for clone in &clones {
        let reader = touch(clone, 700, None);
        assert_eq!(next_fault(clone).kind, FaultKind::Minor);
        assert_eq!(clone.map_cached(CHUNK, false, Wake::Now), done(512));
        assert_eq!(reader.recv_timeout(BUDGET).unwrap(), 0x42);
    }
    assert_eq!(touch(&clones[0], 700, Some(0x43)).recv_timeout(BUDGET).unwrap(), 0x43);
    assert_eq!(clones.each_ref().map(|clone| content(clone, 700)), [0x43, 0x42]);
    assert_eq!(template.read_obj::<u8>(GuestAddress(PageIndex(700).offset())).unwrap(), 0x42);
}
