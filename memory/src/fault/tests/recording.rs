//! What an engine records, and that what was recorded can be placed ahead.

use super::harness::*;
use crate::fault::{FaultEngine, FillOptions, Options, RecordLimits};
use crate::map::PageState;
use crate::ram::GuestRam;
use crate::source::pattern::PatternReader;
use crate::working_set::WorkingSet;

fn recording(ram: &GuestRam, options: &Options) -> FaultEngine {
    let options = Options { record: Some(RecordLimits::default()), ..*options };
    let reader = PatternReader { pattern: FULL, pages: ram.pages().count };
    FaultEngine::start(ram.clone(), good_source(ram), Some(Box::new(reader)), &options).unwrap()
}

#[test]
fn what_is_wanted_is_recorded_in_order_with_what_is_fetched_around_it() {
    for (options, expected) in [
        (on_demand(), vec![page(700), page(3), page(1500)]),
        (Options::default(), vec![pages(688, 16), pages(0, 16), pages(1488, 16)]),
    ] {
        let ram = ram(ANONYMOUS, 8);
        let engine = recording(&ram, &options);
        for index in [700, 3, 1500] {
            content(&ram, index);
        }
        assert_eq!(engine.take_record(), expected);
        content(&ram, 1000);
        assert!(engine.take_record().is_empty(), "it has ended");
        assert_serving(&engine);
    }
}

#[test]
fn nothing_is_recorded_unasked() {
    let ram = ram(ANONYMOUS, 4);
    let engine = FaultEngine::start(ram.clone(), good_source(&ram), None, &on_demand()).unwrap();
    content(&ram, 5);
    assert!(engine.take_record().is_empty());
}

#[test]
fn what_was_recorded_is_placed_ahead_and_wanted_no_more() {
    for backing in [ANONYMOUS, HUGE] {
        let first = ram(backing, 16);
        let engine = recording(&first, &Options::default());
        let wanted = [pages(4 * 512, 512), pages(700, 3), pages(9, 1)];
        wanted.iter().for_each(|range| assert_content(&first, FULL, *range));
        let set = WorkingSet::empty(first.pages().count).grown(&engine.take_record());
        assert!(set.page_count() >= 516);
        drop(engine);
        let second = ram(backing, 16);
        let engine = recording(&second, &Options::default());
        let plan = set.plan(engine.moves_chunks());
        plan.iter().for_each(|range| engine.prefetch(*range));
        let planned: u64 = plan.iter().map(|range| range.count).sum();
        until("all of it is there", || engine.map().count(PageState::Present) == planned);
        wanted.iter().for_each(|range| assert_content(&second, FULL, *range));
        assert_eq!(engine.report().counts.faults, 0, "{backing:?}");
        assert_eq!(set.grown(&engine.take_record()), set);
    }
}

#[test]
fn the_rest_is_filled_once_it_is_told_to_be() {
    let ram = ram(HUGE, 16);
    let engine = recording(
        &ram,
        &Options {
            fill: FillOptions { everything: true, waits: true, ..FillOptions::default() },
            ..on_demand()
        },
    );
    engine.prefetch(pages(512, 100));
    until("what is wanted is there", || engine.map().count(PageState::Present) == 100);
    assert!(!engine.is_filled());
    engine.fill();
    until("all is there", || engine.is_filled() && engine.map().count(PageState::Requested) == 0);
    assert_content(&ram, FULL, ram.pages());
    assert_eq!(engine.report().counts.filled, ram.pages().count);
}
