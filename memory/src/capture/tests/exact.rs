//! What is saved is what was there at the moment, whatever the guest does meanwhile.

use std::sync::Arc;

use super::guest::*;
use crate::capture::Capture;
use crate::fault::FaultEngine;
use crate::map::PageState;
use crate::ram::{Backing, GuestRam, Sharing};
use crate::source::PageReader;
use crate::uffd::tests::machine::HugePages;
use crate::uffd::{Feature, probe};

const BACKINGS: [Backing; 4] = [ANONYMOUS, THP, MEMFD, Backing::MemfdPrivate];

/// Those that this kernel can protect.
fn protectable() -> impl Iterator<Item = Backing> {
    let is_whole = probe().unwrap().has(Feature::WRITE_PROTECT_UNPOPULATED);
    BACKINGS.into_iter().filter(move |backing| is_whole || *backing != Backing::MemfdPrivate)
}

/// Captures a guest of so many writers, prepared or not, and sees to it that it goes on afterwards.
fn capture(engine: Arc<FaultEngine>, writers: u64, prepares: bool, reads_source: bool) {
    let ram: GuestRam = engine.ram().clone();
    let discards = ram.backing().page_size() == crate::PageSize::Base4K;
    let guest = Guest::run(&ram, MIXED, writers, discards, seed());
    guest.goes_on();
    let armed = prepares.then(|| Capture::prepare(Arc::clone(&engine)).unwrap());
    if prepares {
        guest.goes_on();
    }
    let (capture, memory) = guest.standing(|| match armed {
        Some(armed) => armed.begin().unwrap(),
        None => Capture::begin(Arc::clone(&engine)).unwrap(),
    });
    let mut reader = reader_of(&ram);
    let missing: Option<&mut dyn PageReader> = if reads_source { Some(&mut reader) } else { None };
    let contents = check_saved(capture, missing, &memory);
    assert!(contents.data_pages() > 0);
    guest.goes_on();
    let left = guest.standing(|| protected(&ram)).0;
    assert_eq!(left, 0, "nothing stays protected of {:?}", ram.backing());
    guest.end();
}

#[test]
fn memory_that_is_all_there_is_saved_as_it_was() {
    for backing in protectable() {
        for (writers, prepares) in [(1, false), (4, true)] {
            let ram = ram(backing);
            let engine = served(&ram, false);
            touch(&ram, ram.pages());
            capture(engine, writers, prepares, true);
        }
    }
}

#[test]
fn memory_that_is_being_restored_is_saved_as_it_was_and_not_restored_by_it() {
    for backing in protectable() {
        for (writers, prepares) in [(2, true), (3, false)] {
            let ram = ram(backing);
            let engine = served(&ram, false);
            touch(&ram, pages(0, ram.pages().count / 2));
            capture(engine, writers, prepares, true);
        }
    }
    let ram = ram(ANONYMOUS);
    let engine = served(&ram, false);
    touch(&ram, pages(0, 1000));
    let before = engine.map().count(PageState::Missing);
    let capture = Capture::begin(Arc::clone(&engine)).unwrap();
    let mut memory = vec![0; usize::try_from(ram.size_bytes()).unwrap()];
    crate::source::pattern::fill_range(MIXED, ram.pages(), &mut memory);
    check_saved(capture, Some(&mut reader_of(&ram)), &memory);
    assert_eq!(engine.map().count(PageState::Missing), before, "what was missing is left where it is");
}

#[test]
fn memory_that_is_being_filled_is_saved_as_it_was() {
    for backing in protectable() {
        for (reads_source, prepares) in [(true, true), (true, false)] {
            let ram = ram(backing);
            capture(served(&ram, true), 2, prepares, reads_source);
        }
    }
}

#[test]
fn without_a_reader_what_is_missing_comes_as_it_does_for_the_guest() {
    for backing in protectable() {
        let ram = ram(backing);
        let engine = served(&ram, false);
        touch(&ram, pages(100, 100));
        let capture = Capture::begin(Arc::clone(&engine)).unwrap();
        let mut memory = vec![0; usize::try_from(ram.size_bytes()).unwrap()];
        crate::source::pattern::fill_range(MIXED, ram.pages(), &mut memory);
        check_saved(capture, None, &memory);
        assert_eq!(engine.map().count(PageState::Missing), 0, "{backing:?}");
        assert_eq!(protected(&ram), 0);
    }
}

#[test]
fn huge_pages_of_a_pool_are_saved_as_they_were() {
    let Some(_pool) = HugePages::take(SIZE_MIB / 2 + 2) else { return };
    let kinds = [Backing::Hugetlb2M, Backing::HugetlbMemfd { sharing: Sharing::Shared }];
    for (backing, prepares) in kinds.into_iter().zip([true, false]) {
        let ram = ram(backing);
        let engine = served(&ram, false);
        touch(&ram, pages(0, ram.pages().count / 2));
        capture(engine, 2, prepares, true);
    }
}

#[test]
fn pages_that_were_thrown_away_are_not_brought_back() {
    let ram = ram(ANONYMOUS);
    let engine = served(&ram, false);
    touch(&ram, ram.pages());
    let gone = pages(512, 1024);
    ram.discard(gone).unwrap();
    vm_memory::Bytes::write_slice(&ram, &[5; 10], vm_memory::GuestAddress(700 * 4096)).unwrap();
    let mut memory = vec![0; usize::try_from(ram.size_bytes()).unwrap()];
    crate::source::pattern::fill_range(MIXED, ram.pages(), &mut memory);
    memory[512 * 4096..1536 * 4096].fill(0);
    memory[700 * 4096..700 * 4096 + 10].fill(5);
    let known = |ram: &GuestRam| {
        let mut count = 0;
        let pagemap = crate::uffd::Pagemap::open().unwrap();
        pagemap.known(ram, gone, &mut |range| count += range.count).unwrap();
        count
    };
    let before = known(&ram);
    let capture = Capture::begin(Arc::clone(&engine)).unwrap();
    check_saved(capture, None, &memory);
    assert_eq!(known(&ram), before);
}
