use super::*;

#[test]
fn one_access_faults_as_missing_and_again_as_protected() {
    for backing in [ANONYMOUS, MEMFD, Backing::MemfdPrivate] {
        let registered = registered(backing, 2, MISSING_WP);
        let writer = touch(&registered, 5, Some(0x11));
        let first = next_fault(&registered);
        assert_eq!((first.kind, first.access), (FaultKind::Missing, Access::Write), "{backing:?}");
        assert_eq!(registered.copy(page(5), &bytes(0x77, 1), true, Wake::Now), done(1));
        let second = next_fault(&registered);
        assert_eq!((second.kind, second.page), (FaultKind::WriteProtected, PageIndex(5)), "{backing:?}");
        assert_eq!(content(&registered, 5), 0x77, "the handler sees what was there before the write");
        assert_eq!(registered.unprotect(page(5)), done(1));
        assert_eq!(writer.recv_timeout(BUDGET).unwrap(), 0x11);
        assert_eq!(content(&registered, 5), 0x11);
    }
}

#[test]
fn protecting_populated_and_unpopulated_pages_catches_the_first_write() {
    let registered = registered(ANONYMOUS, 2, MISSING_WP);
    assert_eq!(registered.copy(page(0), &bytes(1, 1), false, Wake::Now), done(1));
    assert_eq!(registered.protect(registered.ram().pages()).stop, None);
    let writer = touch(&registered, 0, Some(2));
    assert_eq!(next_fault(&registered).kind, FaultKind::WriteProtected);
    assert_eq!(registered.unprotect(page(0)), done(1));
    assert_eq!(writer.recv_timeout(BUDGET).unwrap(), 2);

    // A page that is not there has a marker now: it is missing first, and ZEROPAGE cannot replace the marker.
    let writer = touch(&registered, 9, Some(3));
    assert_eq!(next_fault(&registered).kind, FaultKind::Missing);
    if machine::kernel_has(Feature::WRITE_PROTECT_UNPOPULATED) {
        assert_eq!(registered.zero(page(9), Wake::Now), stopped(0, Stop::Exists));
    }
    assert_eq!(registered.copy(page(9), &bytes(0, 1), true, Wake::Now), done(1));
    assert_eq!(next_fault(&registered).kind, FaultKind::WriteProtected);
    assert_eq!(registered.unprotect(page(9)), done(1));
    assert_eq!(writer.recv_timeout(BUDGET).unwrap(), 3);
}

#[test]
fn written_pages_are_found_without_a_fault() {
    let wanted = Features::NONE
        .with(Feature::WRITE_PROTECT)
        .with(Feature::WRITE_PROTECT_UNPOPULATED)
        .with(Feature::WRITE_PROTECT_ASYNC);
    let uffd = match open(wanted) {
        Ok(uffd) => uffd,
        Err(error @ OpenError::Lacks { .. }) => {
            return assert!(error.to_string().contains("wp_async (Linux 6.7)"), "{error}");
        }
        Err(error) => panic!("{error}"),
    };
    let ram = GuestRam::new(&[RamRange { gpa: GuestAddress(0), size_bytes: 2 << 20 }], ANONYMOUS).unwrap();
    let modes = Modes { write_protect: true, ..Modes::default() };
    let registered = Registered::new(uffd, ram, modes).unwrap();
    let whole = registered.ram().pages();
    assert_eq!(registered.protect(whole).stop, None);
    let scan = PagemapScan::open().unwrap();
    let written = || {
        let mut found = Vec::new();
        scan.take_written(registered.ram(), whole, &mut |range| found.push(range)).unwrap();
        found
    };
    assert_eq!(written(), []);
    for index in [3, 4, 200] {
        registered.ram().write_obj(1_u8, GuestAddress(PageIndex(index).offset())).unwrap();
    }
    assert_eq!(written(), [pages(3, 2), page(200)]);
    assert_eq!(written(), [], "they are protected again");
    registered.ram().write_obj(1_u8, GuestAddress(PageIndex(4).offset())).unwrap();
    assert_eq!(written(), [page(4)]);
}
