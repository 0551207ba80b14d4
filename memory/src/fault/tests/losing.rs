//! Sources that fail, lie, hang and die; kernels that lack something.

use std::collections::BTreeMap;
use std::io;
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use vm_memory::{Bytes, GuestAddress};

use super::harness::*;
use crate::fault::ServedMemory;
use crate::fault::{Failure, FaultEngine, Limits, Options, Status};
use crate::map::PageState;
use crate::page::{PageIndex, PageRange};
use crate::ram::{Backing, GuestRam, RamRange};
use crate::source::pattern::PatternReader;
use crate::source::scripted::{Rest, Script, ScriptedSource, Trouble};
use crate::source::{Checked, Checksums, Content, PageReader, PageSource, Reading, SourceError};
use crate::uffd::tests::machine::HugePages;
use crate::uffd::{Feature, Features, probe};

const BACKINGS: [Backing; 4] = [ANONYMOUS, HUGE, MEMFD, Backing::MemfdPrivate];

/// Has the kernel read a page, as it does for a device: a lost page is an error then, and no signal.
fn kernel_reader(ram: &GuestRam, index: u64) -> Receiver<io::Result<()>> {
    let (sender, receiver) = channel();
    let ram = ram.clone();
    thread::spawn(move || {
        let mut sink = tempfile::tempfile().unwrap();
        let address = GuestAddress(PageIndex(index).offset());
        let written = ram.write_all_volatile_to(address, &mut sink, 4096);
        // The test may have ended.
        drop(sender.send(written.map_err(|error| io::Error::other(error.to_string()))));
    });
    receiver
}

fn trouble(page: u64, trouble: Trouble) -> Script {
    Script { troubles: BTreeMap::from([(PageIndex(page), trouble)]), ..well_behaved() }
}

fn failure(engine: &FaultEngine) -> Failure {
    until("the failure is told", || matches!(engine.status(), Status::Failed(_)));
    match engine.status() {
        Status::Failed(failure) => failure,
        other => unreachable!("it is {other:?}"),
    }
}

fn hasty() -> Options {
    let limits = Limits { answer_ticks_max: 20, attempts_max: 3, ..Limits::default() };
    Options { limits, ..on_demand() }
}

#[test]
fn a_page_that_is_lost_now_and_then_is_asked_for_again() {
    for backing in BACKINGS {
        let ram = ram(backing, 4);
        let (engine, source) = scripted(&ram, trouble(5, Trouble::LostTimes(3)), &on_demand());
        assert!(is_original(5, &content(&ram, 5)), "{backing:?}");
        assert_eq!((source.asked(PageIndex(5)), engine.report().counts.retried), (4, 3), "{backing:?}");
        assert_serving(&engine);
    }
}

#[test]
fn a_page_that_is_lost_for_good_is_a_memory_error_and_told() {
    let poisons = probe().unwrap().has(Feature::POISON);
    for backing in BACKINGS {
        let ram = ram(backing, 4);
        let (engine, _) = scripted(&ram, trouble(5, Trouble::Lost), &hasty());
        let reader = kernel_reader(&ram, 5);
        let failure = failure(&engine);
        assert_eq!((failure.pages, failure.is_guest_told), (page(5), poisons), "{backing:?}");
        assert!(failure.cause.contains("pages 5..6 of guest memory are lost"), "{failure}");
        if poisons {
            assert!(reader.recv_timeout(patience()).unwrap().is_err(), "{backing:?}");
        } else {
            assert_waiting(&reader);
        }
        assert_eq!(engine.report().counts.lost, 1);
        // The others are served, for whoever looks into what happened.
        assert!(is_original(6, &content(&ram, 6)));
    }
}

#[test]
fn without_poison_whoever_wants_a_lost_page_waits_for_a_better_source() {
    let there = probe().unwrap().features.without(Features::NONE.with(Feature::POISON));
    let ram = ram(ANONYMOUS, 4);
    let memory = ServedMemory::with(there, ram.clone(), false).unwrap();
    let (source, _) = ScriptedSource::new(trouble(5, Trouble::Lost), ram.pages().count).unwrap();
    let engine = FaultEngine::resume(memory, Box::new(source), None, &hasty()).unwrap();
    let reader = reader(&ram, 5);
    let failure = failure(&engine);
    assert!(!failure.is_guest_told && failure.to_string().contains("end the VM"), "{failure}");
    assert_waiting(&reader);
    let memory = engine.stop().memory;
    let _engine = FaultEngine::resume(memory, good_source(&ram), None, &on_demand()).unwrap();
    assert!(is_original(5, &reader.recv_timeout(patience()).unwrap()));
}

#[test]
fn a_source_that_never_answers_is_given_up() {
    let ram = ram(ANONYMOUS, 4);
    let (engine, source) = scripted(&ram, trouble(5, Trouble::Never), &hasty());
    let _reader = kernel_reader(&ram, 5);
    let failure = failure(&engine);
    assert!(failure.cause.contains("has not answered for pages 5..6 in time"), "{failure}");
    assert_eq!(source.asked(PageIndex(5)), 3);
}

#[test]
fn prefetch_that_is_never_answered_is_let_go_and_asked_for_when_it_is_wanted() {
    let ram = ram(ANONYMOUS, 4);
    let script = Script { troubles: BTreeMap::from([(PageIndex(5), Trouble::Never)]), ..well_behaved() };
    let (engine, _) = scripted(&ram, script, &hasty());
    engine.prefetch(pages(4, 4));
    until("the page is let go", || {
        engine.map().count(PageState::Present) == 3 && engine.map().count(PageState::Requested) == 0
    });
    assert_serving(&engine);
}

#[test]
fn a_source_that_dies_loses_what_is_waited_for_and_the_next_serves_the_rest() {
    let ram = ram(ANONYMOUS, 4);
    let (engine, _) = scripted(&ram, Script { dies_after: Some(2), ..well_behaved() }, &hasty());
    assert_content(&ram, FULL, pages(0, 2));
    let reader = kernel_reader(&ram, 2);
    assert!(failure(&engine).cause.contains("the source is gone"), "{:?}", engine.status());
    drop(reader);
    let memory = engine.stop().memory;
    let _engine = FaultEngine::resume(memory, good_source(&ram), None, &on_demand()).unwrap();
    assert_content(&ram, FULL, pages(3, 8));
}

#[test]
fn answers_for_pages_nobody_asked_or_twice_or_short_place_nothing_wrong() {
    let scripts = [
        ("uninvited", Script { uninvited_percent: 100, ..well_behaved() }),
        ("twice", Script { twice_percent: 100, ..well_behaved() }),
        ("short", Script { short_percent: 100, rest: Rest::Later, ..well_behaved() }),
        ("short for good", Script { short_percent: 100, rest: Rest::Never, ..well_behaved() }),
        ("split", Script { split_percent: 100, ..well_behaved() }),
        ("reordered", Script { reorders: true, delay_ticks: 0..=3, ..well_behaved() }),
    ];
    for (name, script) in scripts {
        let ram = ram(ANONYMOUS, 4);
        let options =
            Options { limits: Limits { answer_ticks_max: 20, ..Limits::default() }, ..Options::default() };
        let (engine, _) = scripted(&ram, script, &options);
        assert_content(&ram, FULL, pages(0, 300));
        assert_serving(&engine);
        if matches!(name, "uninvited" | "twice") {
            assert!(engine.report().counts.unwanted > 0, "{name}");
        }
    }
}

#[test]
fn rough_sources_are_served_from_for_any_seed() {
    for seed in 0..8 {
        for backing in [ANONYMOUS, MEMFD] {
            let ram = ram(backing, 2);
            let script = Script { pattern: MIXED, ..Script::rough(seed) };
            let limits = Limits { answer_ticks_max: 100, ..Limits::default() };
            let (engine, _) = scripted(&ram, script, &Options { limits, ..Options::default() });
            assert_content(&ram, MIXED, ram.pages());
            assert_serving(&engine);
        }
    }
}

/// Says of one page that it is zero, which it is not.
struct Lying(PatternReader);

impl PageReader for Lying {
    fn name(&self) -> &'static str {
        "lying"
    }

    fn read(&mut self, range: PageRange, into: &mut [u8]) -> Result<Content, SourceError> {
        if range == page(5) { Ok(Content::Zero) } else { self.0.read(range, into) }
    }
}

#[test]
fn a_lie_about_zero_is_found_by_its_checksum_and_never_placed() {
    let ram = ram(ANONYMOUS, 4);
    let mut honest = PatternReader { pattern: FULL, pages: ram.pages().count };
    let checksums = Checksums::of(&mut honest, ram.pages().count).unwrap();
    let source = Box::new(Reading::new(Checked::new(Lying(honest), checksums)));
    let engine = FaultEngine::start(ram.clone(), source, None, &hasty()).unwrap();
    assert!(is_original(4, &content(&ram, 4)));
    let reader = kernel_reader(&ram, 5);
    let failure = failure(&engine);
    assert!(failure.cause.contains("is not what was saved: restore from another copy"), "{failure}");
    drop(reader);
}

/// A source that gives fewer bytes than it says.
struct Stingy(Vec<PageRange>);

impl PageSource for Stingy {
    fn name(&self) -> &'static str {
        "stingy"
    }

    fn submit(&mut self, requests: &[crate::source::PageRequest]) -> Result<(), SourceError> {
        self.0.extend(requests.iter().map(|request| request.range));
        Ok(())
    }

    fn complete(&mut self, sink: &mut dyn FnMut(crate::source::PageReply<'_>)) -> Result<(), SourceError> {
        self.0.drain(..).for_each(|range| sink(crate::source::PageReply::Bytes(range, &[1; 100])));
        Ok(())
    }

    fn readiness(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        None
    }
}

#[test]
fn fewer_bytes_than_pages_are_no_page() {
    let ram = ram(ANONYMOUS, 4);
    let engine = FaultEngine::start(ram.clone(), Box::new(Stingy(vec![])), None, &hasty()).unwrap();
    let _reader = kernel_reader(&ram, 5);
    assert!(failure(&engine).cause.contains("truncated"), "{:?}", engine.status());
}

#[test]
fn memory_of_any_whole_number_of_pages_is_served_to_its_end() {
    for backing in [ANONYMOUS, HUGE, MEMFD] {
        let size_bytes = (4 << 20) + 5 * 4096;
        let ram = GuestRam::new(&[RamRange { gpa: GuestAddress(0), size_bytes }], backing).unwrap();
        let reader = PatternReader { pattern: FULL, pages: ram.pages().count };
        let fills: [Option<Box<dyn PageReader>>; 2] = [None, Some(Box::new(reader))];
        for filler in fills {
            let ram = GuestRam::new(&[RamRange { gpa: GuestAddress(0), size_bytes }], backing).unwrap();
            let engine =
                FaultEngine::start(ram.clone(), good_source(&ram), filler, &Options::default()).unwrap();
            engine.prefetch(ram.pages());
            assert_content(&ram, FULL, ram.pages());
            assert_serving(&engine);
        }
    }
}

#[test]
fn what_is_asked_for_outside_of_memory_is_left_out() {
    let ram = ram(ANONYMOUS, 4);
    let (engine, _) = scripted(&ram, well_behaved(), &on_demand());
    for range in [pages(1020, 100), pages(5000, 1), pages(u64::MAX, 1), pages(0, u64::MAX), pages(3, 0)] {
        engine.prefetch(range);
        engine.allow_writes(range);
    }
    assert_content(&ram, FULL, pages(1020, 4));
    assert_serving(&engine);
}

#[test]
fn kernels_without_move_minor_or_protection_are_served_the_next_best_way() {
    let all = probe().unwrap().features;
    let old = Feature::ALL.iter().fold(all, |left, feature| {
        let is_basic = [Feature::EVENT_REMOVE, Feature::MISSING_SHMEM, Feature::THREAD_ID].contains(feature);
        if is_basic { left } else { left.without(Features::NONE.with(*feature)) }
    });
    for backing in [ANONYMOUS, HUGE, MEMFD] {
        let ram = ram(backing, 4);
        let memory = ServedMemory::with(old, ram.clone(), false).unwrap();
        let reader = PatternReader { pattern: MIXED, pages: ram.pages().count };
        let source = Box::new(Reading::new(reader));
        let engine =
            FaultEngine::resume(memory, source, Some(Box::new(reader)), &Options::default()).unwrap();
        assert_content(&ram, MIXED, ram.pages());
        ram.discard(pages(7, 3)).unwrap();
        assert!(is_zero(&content(&ram, 8)), "{backing:?}");
        let moved = engine.report().latencies.iter().any(|(_, verb, _)| *verb == crate::fault::Verb::Move);
        assert!(!moved, "{backing:?}");
        assert_serving(&engine);
    }
}

#[test]
fn huge_pages_are_served_from_sources_that_answer_in_pieces() {
    let Some(_pages) = HugePages::take(4) else { return };
    for seed in 0..4 {
        let ram = ram(Backing::Hugetlb2M, 8);
        let script = Script { pattern: MIXED, ..Script::rough(seed) };
        let (engine, _) = scripted(&ram, script, &Options::default());
        assert_content(&ram, MIXED, ram.pages());
        assert_serving(&engine);
        drop(engine);
    }
    let ram = ram(Backing::Hugetlb2M, 8);
    let reader = PatternReader { pattern: MIXED, pages: ram.pages().count };
    let source = Box::new(Reading::new(reader));
    let engine = FaultEngine::start(ram.clone(), source, None, &Options::default()).unwrap();
    assert_content(&ram, MIXED, ram.pages());
    assert_serving(&engine);
}

#[test]
fn memory_is_given_back_when_all_of_it_is_there_and_not_before() {
    let ram = ram(ANONYMOUS, 4);
    let (engine, _) = scripted(&ram, well_behaved(), &on_demand());
    assert_content(&ram, FULL, pages(0, 9));
    let (memory, error) = engine.stop().memory.release().expect_err("pages are missing");
    assert!(error.is_none());
    let engine = FaultEngine::resume(memory, good_source(&ram), None, &on_demand()).unwrap();
    engine.prefetch(ram.pages());
    until("all of it is there", || engine.map().count(PageState::Present) == ram.pages().count);
    let released = engine.stop().memory.release().map_err(|(_, error)| error).unwrap();
    assert_content(&released, FULL, ram.pages());
}
