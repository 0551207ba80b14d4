//! Every way to place pages, from every kind of source, byte by byte.

use super::harness::*;
use crate::fault::{FaultEngine, FillOptions, Options, Verb};
use crate::map::PageState;
use crate::ram::{Backing, GuestRam, RamRange, Sharing};
use crate::source::pattern::{Pattern, PatternReader, fill_page};
use crate::source::{InPlaceSource, Reading, ZeroSource};
use crate::uffd::Feature;
use crate::uffd::tests::machine::kernel_has;
use vm_memory::GuestAddress;

fn patterned(backing: Backing, pattern: Pattern, options: &Options, fills: bool) -> FaultEngine {
    let ram = ram(backing, 8);
    let reader = PatternReader { pattern, pages: ram.pages().count };
    let filler = fills.then(|| Box::new(reader) as _);
    FaultEngine::start(ram, Box::new(Reading::new(reader)), filler, options).unwrap()
}

#[test]
fn every_page_is_what_its_source_says() {
    for backing in [ANONYMOUS, HUGE, MEMFD] {
        let engine = patterned(backing, MIXED, &Options::default(), false);
        assert_content(engine.ram(), MIXED, engine.ram().pages());
        assert_serving(&engine);
        let counts = engine.report().counts;
        let all = engine.ram().pages().count;
        assert_eq!(counts.demanded + counts.prefetched, all, "{backing:?}: {counts:?}");
        // Whoever waits is woken before that is noted.
        until("all is noted", || engine.map().count(PageState::Present) == all);
    }
}

#[test]
fn a_walk_is_served_in_huge_pages() {
    let engine = patterned(HUGE, FULL, &Options::default(), true);
    assert_content(engine.ram(), FULL, engine.ram().pages());
    let counts = engine.report().counts;
    assert_eq!(counts.filled >= 512, kernel_has(Feature::MOVE), "{counts:?}");
    assert_serving(&engine);
}

#[test]
fn all_is_filled_though_nobody_asks() {
    let fill = FillOptions { everything: true, ..FillOptions::default() };
    for (backing, pattern) in [(HUGE, FULL), (HUGE, MIXED), (MEMFD, MIXED), (ANONYMOUS, FULL)] {
        let engine = patterned(backing, pattern, &Options { fill, ..on_demand() }, true);
        until("all is present", || engine.map().count(PageState::Present) == engine.ram().pages().count);
        let stopped = engine.stop();
        let ram = stopped.memory.release().map_err(drop).unwrap();
        assert_content(&ram, pattern, ram.pages());
    }
}

#[test]
fn demanded_pages_are_counted_by_source_and_verb() {
    let engine = patterned(ANONYMOUS, MIXED, &on_demand(), false);
    assert_content(engine.ram(), MIXED, pages(0, 9));
    until("nine latencies are recorded", || {
        engine.report().latencies.iter().map(|(_, _, latency)| latency.count).sum::<u64>() == 9
    });
    let report = engine.report();
    let counts: Vec<_> =
        report.latencies.iter().map(|(source, verb, it)| (*source, *verb, it.count)).collect();
    assert_eq!(counts, [("pattern", Verb::Copy, 6), ("pattern", Verb::Zero, 3)]);
    assert_eq!(report.counts.zero, 3);
}

#[test]
fn clones_share_what_none_of_them_wrote_and_keep_what_they_did() {
    let golden = ram(MEMFD, 4);
    let memfd = || golden.memfd().unwrap().try_clone_to_owned().unwrap();
    let mut bytes = vec![0; 4096];
    for page in golden.pages().pages().take(1000) {
        fill_page(page, 7, &mut bytes);
        golden.write_cached(page.alone(), &bytes).unwrap();
    }
    let clone = || {
        let ranges = [RamRange { gpa: GuestAddress(0), size_bytes: 4 << 20 }];
        let ram = GuestRam::over_memfd(&ranges, memfd(), Sharing::Private).unwrap();
        let write_protect = kernel_has(Feature::WRITE_PROTECT_UNPOPULATED);
        let options = Options { write_protect, ..Options::default() };
        let source = Box::new(InPlaceSource::new(memfd()));
        (FaultEngine::start(ram.clone(), source, None, &options).unwrap(), ram)
    };
    let clones = [clone(), clone()];
    for (index, (engine, ram)) in (1_u8..).zip(&clones) {
        assert_content(ram, FULL, pages(0, 1000));
        assert!((1000..1024).all(|page| is_zero(&content(ram, page))), "what the memfd has not is zero");
        write(ram, 3, index);
        ram.discard(page(9)).unwrap();
        assert_serving(engine);
        let verbs: Vec<_> = engine.report().latencies.iter().map(|(_, verb, _)| *verb).collect();
        assert!(verbs.contains(&Verb::Continue) && !verbs.contains(&Verb::Copy), "{verbs:?}");
    }
    for (index, (_, ram)) in (1_u8..).zip(&clones) {
        assert_eq!(content(ram, 3)[0], index);
        assert!(is_zero(&content(ram, 9)), "a discarded page does not come back");
    }
    let mut saved = vec![0; 4096];
    golden.read_cached(page(3), &mut saved).unwrap();
    assert!(is_original(3, &saved), "the memfd is as it was");
}

#[test]
fn a_prefetch_of_more_than_may_be_in_flight_goes_on_by_itself() {
    // The source answers at once, and has nothing to wake the engine with afterwards.
    let ram = ram(ANONYMOUS, 32);
    assert!(ram.pages().count > 3 * Options::default().limits.in_flight_pages_max);
    let engine =
        FaultEngine::start(ram.clone(), Box::new(ZeroSource::default()), None, &on_demand()).unwrap();
    engine.prefetch(ram.pages());
    until("all is there", || engine.map().count(PageState::Present) == ram.pages().count);
    assert_serving(&engine);
}
