//! RAM that no engine serves, and that is without one again afterwards.

use std::fs::File;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use vm_memory::{Bytes, GuestAddress};

use super::guest::*;
use crate::capture::{Capture, PresentError, ReleaseError, serve_present};
use crate::fault::StartError;
use crate::ram::{Backing, GuestRam, RamRange, Sharing};
use crate::threads::scarce::with_threads;
use crate::uffd::tests::machine::HugePages;
use crate::uffd::{Feature, Modes, Registered, open, probe};

/// A guest that was booted: some of its pages were touched.
fn booted(backing: Backing) -> GuestRam {
    let ram = ram(backing);
    touched(&ram);
    ram
}

fn touched(ram: &GuestRam) {
    for page in pages(600, 1500).pages() {
        ram.write_slice(&vec![u8::try_from(page.0 % 251).unwrap(); 4096], GuestAddress(page.offset()))
            .unwrap();
    }
}

fn memory_of(ram: &GuestRam) -> Vec<u8> {
    let mut memory = vec![0; usize::try_from(ram.size_bytes()).unwrap()];
    ram.read_pages(ram.pages(), &mut memory).unwrap();
    memory
}

fn check(ram: GuestRam) {
    let backing = ram.backing();
    let mut memory = vec![0; usize::try_from(ram.size_bytes()).unwrap()];
    let present = serve_present(ram.clone()).unwrap();
    // Read page by page where it is known that somebody touched it: reading all would fill the memory.
    ram.read_pages(pages(600, 1500), &mut memory[600 * 4096..2100 * 4096]).unwrap();
    let capture = Capture::begin(Arc::clone(present.engine())).unwrap();
    let writer = {
        let ram = ram.clone();
        std::thread::spawn(move || {
            for page in (0..ram.pages().count).step_by(7) {
                ram.write_slice(&[0xee; 8], GuestAddress(page * 4096 + 9)).unwrap();
            }
        })
    };
    check_saved(capture, Some(&mut present.untouched()), &memory);
    writer.join().unwrap();
    let back = present.release().unwrap();
    let mut after = memory;
    for page in (0..ram.pages().count).step_by(7) {
        let start = usize::try_from(page * 4096 + 9).unwrap();
        after[start..start + 8].fill(0xee);
    }
    assert!(memory_of(&back) == after, "{backing:?}");
    // Nothing of a userfaultfd is left: another one can have it.
    let modes = Modes { missing: true, ..Modes::default() };
    Registered::new(open(probe().unwrap().features).unwrap(), back, modes).unwrap().unregister().unwrap();
}

#[test]
fn a_booted_guest_is_captured_and_has_its_memory_back() {
    let is_whole = probe().unwrap().has(Feature::WRITE_PROTECT_UNPOPULATED);
    for backing in [ANONYMOUS, THP, MEMFD, Backing::MemfdPrivate] {
        if is_whole || backing != Backing::MemfdPrivate {
            check(booted(backing));
        }
    }
    if is_whole {
        let base = booted(MEMFD);
        let memfd = base.memfd().unwrap().try_clone_to_owned().unwrap();
        let ranges = [RamRange { gpa: GuestAddress(0), size_bytes: SIZE_MIB << 20 }];
        check(GuestRam::over_memfd(&ranges, memfd, Sharing::Private).unwrap());
    }
}

#[test]
fn a_booted_guest_of_huge_pages_is_captured() {
    let Some(_pool) = HugePages::take(SIZE_MIB / 2 + 2) else { return };
    check(booted(Backing::Hugetlb2M));
    check(booted(Backing::HugetlbMemfd { sharing: Sharing::Shared }));
    check(booted(Backing::HugetlbMemfd { sharing: Sharing::Private }));
}

#[test]
fn pages_that_were_never_touched_stay_untouched() {
    let ram = booted(ANONYMOUS);
    let known = |ram: &GuestRam| {
        let mut count = 0;
        let pagemap = crate::uffd::Pagemap::open().unwrap();
        pagemap.known(ram, ram.pages(), &mut |range| count += range.count).unwrap();
        count
    };
    let present = serve_present(ram.clone()).unwrap();
    let armed = Capture::prepare(Arc::clone(present.engine())).unwrap();
    let file = tempfile::tempfile().unwrap();
    let capture = armed.begin().unwrap();
    let contents = capture.save(&file, Some(&mut present.untouched()), &Default::default()).unwrap();
    assert_eq!((contents.data_pages(), known(&ram)), (1500 - 5 - 1, 1500));
}

#[test]
fn it_is_given_back_only_when_no_capture_is_under_way_and_by_being_dropped() {
    let ram = booted(ANONYMOUS);
    let present = serve_present(ram.clone()).unwrap();
    assert!(matches!(serve_present(ram.clone()), Err(PresentError::Start(StartError::Register(_)))));
    let engine = Arc::clone(present.engine());
    let error = present.release().unwrap_err();
    let ReleaseError::Busy(again) = error else { panic!("{error}") };
    drop(engine);
    assert!(Arc::into_inner(again).is_some());
    let ram = booted(ANONYMOUS);
    drop(serve_present(ram.clone()).unwrap());
    assert_eq!(memory_of(&ram).len() as u64, ram.size_bytes());
    drop(serve_present(ram).unwrap());
}

#[test]
fn memory_over_a_saved_file_is_refused_with_what_to_do() {
    let file: File = tempfile::tempfile().unwrap();
    file.set_len(4 << 20).unwrap();
    let ranges = [RamRange { gpa: GuestAddress(0), size_bytes: 4 << 20 }];
    let error = serve_present(GuestRam::over_file(&ranges, file).unwrap()).err().unwrap();
    assert!(matches!(error, PresentError::File) && error.to_string().contains("Lazy"), "{error}");
}

#[test]
fn where_the_host_gives_no_thread_the_memory_is_as_it_was() {
    let is_whole = probe().unwrap().has(Feature::WRITE_PROTECT_UNPOPULATED);
    for backing in [ANONYMOUS, THP, MEMFD, Backing::MemfdPrivate] {
        if !is_whole && backing == Backing::MemfdPrivate {
            continue;
        }
        let ram = booted(backing);
        let refused = with_threads(0, || serve_present(ram.clone())).err();
        assert!(
            matches!(refused, Some(PresentError::Start(StartError::Host(_)))),
            "{backing:?}: {refused:?}"
        );
        assert_untouched_is_zero(&ram);
        drop(serve_present(ram).unwrap());
    }
}

#[test]
fn an_engine_that_outlives_its_owner_lets_go_of_the_memory_in_the_end() {
    let ram = booted(ANONYMOUS);
    let present = serve_present(ram.clone()).unwrap();
    let capture = Capture::begin(Arc::clone(present.engine())).unwrap();
    drop(present);
    drop(capture);
    assert_untouched_is_zero(&ram);
}

/// Touches pages that nobody touched before, which takes no time.
fn assert_untouched_is_zero(ram: &GuestRam) {
    let (sender, receiver) = channel();
    let untouched = ram.clone();
    std::thread::spawn(move || {
        let mut bytes = vec![1; 8 * 4096];
        untouched.read_pages(pages(3000, 8), &mut bytes).unwrap();
        sender.send(bytes).unwrap();
    });
    let bytes = receiver.recv_timeout(Duration::from_secs(10)).expect("nobody waits for a page");
    assert!(bytes.iter().all(|byte| *byte == 0));
}
