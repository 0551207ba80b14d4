//! Every way to place pages, from every kind of source, byte by byte.

use super::harness::*;
use crate::fault::{FaultEngine, FillOptions, Options, Verb};
use crate::map::PageState;
use crate::ram::Backing;
use crate::source::Reading;
use crate::source::pattern::{Pattern, PatternReader};

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
        assert_eq!(engine.map().count(PageState::Present), all);
    }
}

#[test]
fn a_walk_is_served_in_huge_pages() {
    let engine = patterned(HUGE, FULL, &Options::default(), true);
    assert_content(engine.ram(), FULL, engine.ram().pages());
    let counts = engine.report().counts;
    assert!(counts.filled >= 512, "{counts:?}");
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
