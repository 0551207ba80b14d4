//! Writes to protected pages: the multi-retry path, with the content looked at before each step.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use super::harness::*;
use crate::fault::{FaultEngine, FillOptions, Options, Verb, Verdict, WriteObserver};
use crate::fault::{ServedMemory, StartError};
use crate::map::PageState;
use crate::page::{PageIndex, PageRange, PageSize};
use crate::ram::{Backing, GuestRam};
use crate::source::pattern::{PatternReader, range_is};
use crate::source::scripted::Script;
use crate::uffd::tests::machine::HugePages;
use crate::uffd::tests::swap::{Swap, page_out};
use crate::uffd::{Feature, Features, Stop, probe};

/// What was there before each write, by the first page of what it concerned, and how often it was told.
type PreImages = Arc<Mutex<BTreeMap<u64, (Vec<u8>, u32)>>>;

/// Notes what it is told.
struct Notes {
    pre_images: PreImages,
    verdict: Verdict,
}

impl WriteObserver for Notes {
    fn before_write(&mut self, page: PageRange, content: io::Result<&[u8]>) -> Verdict {
        let content = content.unwrap();
        let mut pre_images = self.pre_images.lock().unwrap();
        let note = pre_images.entry(page.start.0).or_insert_with(|| (content.to_vec(), 0));
        note.1 += 1;
        self.verdict
    }
}

fn notes(verdict: Verdict) -> (Box<Notes>, PreImages) {
    let pre_images = PreImages::default();
    (Box::new(Notes { pre_images: Arc::clone(&pre_images), verdict }), pre_images)
}

fn protectable() -> Options {
    Options { write_protect: true, ..on_demand() }
}

fn noted(pre_images: &PreImages) -> Vec<u64> {
    pre_images.lock().unwrap().keys().copied().collect()
}

const BACKINGS: [Backing; 4] = [ANONYMOUS, HUGE, MEMFD, Backing::MemfdPrivate];

#[test]
fn a_page_that_is_there_is_seen_before_it_is_written() {
    for backing in protected(&BACKINGS) {
        let ram = ram(backing, 4);
        let (engine, _) = scripted(&ram, well_behaved(), &protectable());
        assert_content(&ram, FULL, pages(0, 4));
        let (observer, pre_images) = notes(Verdict::Allow);
        engine.protect(observer).unwrap();
        assert!(is_original(2, &content(&ram, 2)), "{backing:?}: reading is free");
        let after = writer(&ram, 1, 0xee).recv_timeout(patience()).unwrap();
        assert_eq!((noted(&pre_images), after[0]), (vec![1], 0xee), "{backing:?}");
        assert!(is_original(1, &pre_images.lock().unwrap()[&1].0), "{backing:?}");
        assert!(after[1..] == pre_images.lock().unwrap()[&1].0[1..], "{backing:?}: the rest stays");
        write(&ram, 1, 0xef);
        assert_eq!(noted(&pre_images), [1], "{backing:?}: it is told once");
        assert!(engine.unprotect().is_some());
        write(&ram, 2, 0xee);
        assert_eq!(noted(&pre_images), [1], "{backing:?}: nothing is told any more");
        assert_serving(&engine);
    }
}

#[test]
fn a_write_that_misses_its_page_faults_twice_and_sees_it_in_between() {
    for backing in protected(&BACKINGS) {
        let ram = ram(backing, 4);
        let (engine, source) = scripted(&ram, Script { pattern: MIXED, ..well_behaved() }, &protectable());
        let (observer, pre_images) = notes(Verdict::Allow);
        engine.protect(observer).unwrap();
        source.hold();
        // 3 is a zero page, whose zeros come protected, too. Two writers meet on 5 while it is missing.
        let writers = [writer(&ram, 3, 0xee), writer(&ram, 5, 0xee), writer(&ram, 5, 0xee)];
        until_faults(&engine, 3);
        assert_eq!(noted(&pre_images), [0_u64; 0], "{backing:?}: nothing is there to be written yet");
        source.release();
        for (index, writer) in [3_u64, 5, 5].iter().zip(&writers) {
            let after = writer.recv_timeout(patience()).unwrap();
            let before = pre_images.lock().unwrap()[index].0.clone();
            assert!(range_is(MIXED, page(*index), &before), "{backing:?}, page {index}");
            assert!(after[0] == 0xee && after[1..] == before[1..], "{backing:?}, page {index}");
        }
        assert_eq!(noted(&pre_images), [3, 5], "{backing:?}");
    }
}

#[test]
fn every_page_of_a_running_guest_is_seen_once_as_it_was() {
    for backing in protected(&BACKINGS) {
        let ram = ram(backing, 8);
        let all = ram.pages();
        let reader = PatternReader { pattern: MIXED, pages: all.count };
        let source = Box::new(crate::source::Reading::new(reader));
        let fill = FillOptions { everything: true, ..FillOptions::default() };
        let options = Options { fill, write_protect: true, ..Options::default() };
        let engine = FaultEngine::start(ram.clone(), source, Some(Box::new(reader)), &options).unwrap();
        let (observer, pre_images) = notes(Verdict::Allow);
        // Some pages are there and some are not, and the filler goes on meanwhile.
        engine.protect(observer).unwrap();
        let lanes = (0..4_u64).map(|lane| {
            let ram = ram.clone();
            std::thread::spawn(move || {
                (lane..all.count).step_by(4).for_each(|index| write(&ram, index, 0xee))
            })
        });
        lanes.collect::<Vec<_>>().into_iter().for_each(|lane| lane.join().unwrap());
        let pre_images = pre_images.lock().unwrap();
        assert_eq!(pre_images.len() as u64, all.count, "{backing:?}");
        let is_right = |(index, (before, _)): (&u64, &(Vec<u8>, u32))| range_is(MIXED, page(*index), before);
        assert!(pre_images.iter().all(is_right), "{backing:?}");
        assert!((0..all.count).all(|index| content(&ram, index)[0] == 0xee), "{backing:?}");
        assert_serving(&engine);
    }
}

#[test]
fn a_writer_waits_as_long_as_it_is_told_to() {
    let ram = ram(ANONYMOUS, 4);
    let (engine, _) = scripted(&ram, well_behaved(), &protectable());
    let (observer, pre_images) = notes(Verdict::Wait);
    engine.protect(observer).unwrap();
    let (first, second) = (writer(&ram, 1, 0xee), writer(&ram, 2, 0xee));
    until("both are told of", || noted(&pre_images) == [1, 2]);
    assert_waiting(&first);
    assert!(is_original(1, &content(&ram, 1)), "the write has not landed");
    engine.allow_writes(page(1));
    assert_eq!(first.recv_timeout(patience()).unwrap()[0], 0xee);
    assert_waiting(&second);
    engine.unprotect();
    assert_eq!(second.recv_timeout(patience()).unwrap()[0], 0xee);
}

#[test]
fn one_access_survives_missing_protected_and_swapped_out() {
    let Some(_swap) = Swap::take() else { return };
    for backing in protected(&[ANONYMOUS, MEMFD, Backing::MemfdPrivate]) {
        let ram = ram(backing, 4);
        let (engine, _) = scripted(&ram, well_behaved(), &protectable());
        let (observer, pre_images) = notes(Verdict::Wait);
        engine.protect(observer).unwrap();
        let writer = writer(&ram, 5, 0xee);
        until("the write is told of", || noted(&pre_images) == [5]);
        assert!(is_original(5, &pre_images.lock().unwrap()[&5].0), "{backing:?}");
        page_out(&ram, 5);
        let mut after = Vec::new();
        until("the write lands", || {
            // A page that is mapped again is protected again, and the write told of again.
            engine.allow_writes(page(5));
            after = writer.try_recv().unwrap_or_default();
            !after.is_empty()
        });
        assert!(after[0] == 0xee && after[1..] == pre_images.lock().unwrap()[&5].0[1..], "{backing:?}");
        assert_serving(&engine);
    }
}

#[test]
fn a_page_that_the_host_unmapped_from_a_memfd_is_mapped_again() {
    let Some(_swap) = Swap::take() else { return };
    for backing in [MEMFD, Backing::MemfdPrivate] {
        let ram = ram(backing, 4);
        let (engine, source) = scripted(&ram, well_behaved(), &on_demand());
        assert!(is_original(5, &content(&ram, 5)));
        page_out(&ram, 5);
        assert!(is_original(5, &content(&ram, 5)), "{backing:?}");
        assert_eq!(source.asked(PageIndex(5)), 1, "{backing:?}");
        assert_serving(&engine);
    }
}

#[test]
fn what_is_written_to_a_discarded_page_outlasts_the_swap() {
    let Some(_swap) = Swap::take() else { return };
    for backing in protected(&[ANONYMOUS, MEMFD, Backing::MemfdPrivate]) {
        for protects in [false, true] {
            let ram = ram(backing, 4);
            let (engine, _) = scripted(&ram, well_behaved(), &protectable());
            assert!(is_original(5, &content(&ram, 5)));
            ram.discard(page(5)).unwrap();
            let (observer, _) = notes(Verdict::Allow);
            if protects {
                engine.protect(observer).unwrap();
            }
            write(&ram, 5, 0xee);
            page_out(&ram, 5);
            assert_eq!(content(&ram, 5)[0], 0xee, "{backing:?}, protected: {protects}");
            assert_serving(&engine);
        }
    }
}

#[test]
fn a_discarded_page_is_written_as_zeros() {
    for backing in protected(&BACKINGS) {
        let ram = ram(backing, 4);
        let (engine, _) = scripted(&ram, well_behaved(), &protectable());
        assert_content(&ram, FULL, pages(0, 4));
        let (observer, _) = notes(Verdict::Allow);
        engine.protect(observer).unwrap();
        ram.discard(pages(1, 2)).unwrap();
        let after = writer(&ram, 1, 0xee).recv_timeout(patience()).unwrap();
        assert!(after[0] == 0xee && is_zero(&after[1..]), "{backing:?}");
        engine.unprotect();
        let after = writer(&ram, 2, 0xee).recv_timeout(patience()).unwrap();
        assert!(after[0] == 0xee && is_zero(&after[1..]), "{backing:?}");
        assert_serving(&engine);
    }
}

#[test]
fn huge_pages_are_missed_seen_and_written_whole() {
    let Some(_pages) = HugePages::take(4) else { return };
    let ram = ram(Backing::Hugetlb2M, 8);
    let (engine, _) = scripted(&ram, Script { pattern: MIXED, ..well_behaved() }, &protectable());
    let (observer, pre_images) = notes(Verdict::Allow);
    engine.protect(observer).unwrap();
    let after = writer(&ram, 700, 0xee).recv_timeout(patience()).unwrap();
    let before = pre_images.lock().unwrap()[&512].0.clone();
    assert!(range_is(MIXED, PageIndex(700).containing(PageSize::Huge2M), &before));
    assert!(after[0] == 0xee && range_is(MIXED, page(701), &content(&ram, 701)));
    assert_content(&ram, MIXED, pages(0, 512));
    ram.discard(pages(512, 512)).unwrap();
    assert!(is_zero(&content(&ram, 700)));
    assert_eq!(engine.map().get(PageIndex(512)), PageState::Removed);
    assert_serving(&engine);
}

#[test]
fn memory_that_needs_no_source_is_protected_all_the_same() {
    let ram = ram(ANONYMOUS, 4);
    write(&ram, 1, 0x11);
    let memory = ServedMemory::new(ram.clone(), true).unwrap();
    memory.assume_present(ram.pages());
    let engine = FaultEngine::resume(memory, good_source(&ram), None, &protectable()).unwrap();
    let (observer, pre_images) = notes(Verdict::Allow);
    engine.protect(observer).unwrap();
    write(&ram, 1, 0xee);
    assert_eq!(pre_images.lock().unwrap()[&1].0[0], 0x11);
    until("its latency is recorded", || {
        engine.report().latencies.iter().any(|(_, verb, _)| *verb == Verb::Unprotect)
    });
}

#[test]
fn what_cannot_be_mapped_protected_is_copied_in() {
    let there = probe().unwrap().features;
    let before_6_4 = there.without(Features::NONE.with(Feature::WRITE_PROTECT_UNPOPULATED));
    let ram = ram(MEMFD, 4);
    let memory = ServedMemory::with(before_6_4, ram.clone(), true).unwrap();
    let engine = FaultEngine::resume(memory, good_source(&ram), None, &protectable()).unwrap();
    assert!(is_original(1, &content(&ram, 1)));
    let (observer, pre_images) = notes(Verdict::Allow);
    engine.protect(observer).unwrap();
    for index in [1, 2] {
        let after = writer(&ram, index, 0xee).recv_timeout(patience()).unwrap();
        let before = pre_images.lock().unwrap()[&index].0.clone();
        assert!(is_original(index, &before) && after[0] == 0xee && after[1..] == before[1..], "page {index}");
    }
    assert_serving(&engine);
}

#[test]
fn protection_that_cannot_be_had_is_refused_with_its_reason() {
    let there = probe().unwrap().features;
    let without = there.without(Features::NONE.with(Feature::WRITE_PROTECT_SHARED));
    let refused = |ram: GuestRam| ServedMemory::with(without, ram, true).unwrap_err();
    let error = refused(ram(MEMFD, 4));
    assert!(matches!(error, StartError::NoWriteProtect { .. }));
    assert!(error.to_string().contains("wp_hugetlbfs_shmem (Linux 5.19)"), "{error}");
    let before_6_4 = there.without(Features::NONE.with(Feature::WRITE_PROTECT_UNPOPULATED));
    let error = ServedMemory::with(before_6_4, ram(Backing::MemfdPrivate, 4), true).unwrap_err();
    assert!(error.to_string().contains("(Linux 6.4)"), "{error}");
    let without = without.without(Features::NONE.with(Feature::WRITE_PROTECT_UNPOPULATED));
    let ram = ram(ANONYMOUS, 4);
    assert!(
        ServedMemory::with(without, ram.clone(), true).is_ok(),
        "anonymous memory needs no more than 5.7"
    );
    let (engine, _) = scripted(&self::ram(ANONYMOUS, 4), well_behaved(), &on_demand());
    let (observer, _) = notes(Verdict::Allow);
    assert_eq!(engine.protect(observer), Err(Stop::NotRegistered), "it was not asked for at the start");
}
