use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

const LIMITS: Limits =
    Limits { in_flight_pages_max: 16, demand_pages_max: 8, prefetch_ranges_max: 4, attempts_max: 3 };

fn pages(start: u64, count: u64) -> PageRange {
    PageRange { start: PageIndex(start), count }
}

fn ask(scheduler: &mut Scheduler) -> Vec<PageRequest> {
    let mut requests = Vec::new();
    scheduler.next(|_| true, &mut requests);
    requests
}

fn answer(scheduler: &mut Scheduler, range: PageRange) -> Vec<(PageRange, Priority)> {
    let mut wanted = Vec::new();
    scheduler.answered(range, |run, priority| wanted.push((run, priority)));
    wanted
}

fn request(range: PageRange, priority: Priority) -> PageRequest {
    PageRequest { range, priority }
}

#[test]
fn demand_goes_first_and_each_page_once() {
    let mut scheduler = Scheduler::new(LIMITS);
    scheduler.prefetch(pages(0, 8));
    assert!(scheduler.demand(PageIndex(3)));
    assert!(!scheduler.demand(PageIndex(3)), "a second thread on the page is no second request");
    let expected = [
        request(pages(3, 1), Priority::Demand),
        request(pages(0, 3), Priority::Prefetch),
        request(pages(4, 4), Priority::Prefetch),
    ];
    assert_eq!(ask(&mut scheduler), expected);
    assert!(ask(&mut scheduler).is_empty());
}

#[test]
fn a_fault_on_what_is_prefetched_waits_for_that_answer() {
    let mut scheduler = Scheduler::new(LIMITS);
    scheduler.prefetch(pages(0, 4));
    assert_eq!(ask(&mut scheduler).len(), 1);
    assert!(scheduler.demand(PageIndex(2)));
    assert!(ask(&mut scheduler).is_empty());
    let wanted = answer(&mut scheduler, pages(0, 4));
    let expected = [
        (pages(2, 1), Priority::Demand),
        (pages(0, 2), Priority::Prefetch),
        (pages(3, 1), Priority::Prefetch),
    ];
    assert_eq!(wanted, expected);
    assert!(scheduler.is_idle());
}

#[test]
fn answers_nobody_asked_for_and_second_answers_are_unwanted() {
    let mut scheduler = Scheduler::new(LIMITS);
    scheduler.demand(PageIndex(1));
    assert!(answer(&mut scheduler, pages(0, 4)).is_empty(), "it was not asked for yet");
    ask(&mut scheduler);
    assert_eq!(answer(&mut scheduler, pages(0, 4)), [(pages(1, 1), Priority::Demand)]);
    assert!(answer(&mut scheduler, pages(0, 4)).is_empty());
}

#[test]
fn what_is_removed_is_forgotten_wherever_it_was() {
    let mut scheduler = Scheduler::new(LIMITS);
    scheduler.prefetch(pages(0, 4));
    scheduler.demand(PageIndex(10));
    ask(&mut scheduler);
    scheduler.demand(PageIndex(11));
    scheduler.prefetch(pages(20, 4));
    scheduler.remove(pages(1, 2));
    scheduler.remove(pages(10, 2));
    scheduler.remove(pages(21, 1));
    assert_eq!(
        answer(&mut scheduler, pages(0, 12)),
        [(pages(0, 1), Priority::Prefetch), (pages(3, 1), Priority::Prefetch)]
    );
    let expected = [request(pages(20, 1), Priority::Prefetch), request(pages(22, 2), Priority::Prefetch)];
    assert_eq!(ask(&mut scheduler), expected);
}

#[test]
fn prefetch_has_a_limit_and_demand_does_not_wait_for_it() {
    let mut scheduler = Scheduler::new(LIMITS);
    scheduler.prefetch(pages(0, 100));
    assert_eq!(ask(&mut scheduler), [request(pages(0, 16), Priority::Prefetch)]);
    scheduler.demand(PageIndex(50));
    assert_eq!(ask(&mut scheduler), [request(pages(50, 1), Priority::Demand)]);
    answer(&mut scheduler, pages(0, 8));
    assert_eq!(ask(&mut scheduler), [request(pages(16, 8), Priority::Prefetch)]);
}

#[test]
fn failures_are_tried_again_ever_later_and_given_up() {
    let mut scheduler = Scheduler::new(LIMITS);
    let page = PageIndex(7);
    scheduler.demand(page);
    let mut now = 100;
    for wait in [2, 4] {
        assert_eq!(ask(&mut scheduler).len(), 1);
        assert_eq!(scheduler.failed(page, now), Failure::RetryAt(now + wait));
        assert_eq!(scheduler.wake_deferred(now), Some(now + wait));
        assert!(ask(&mut scheduler).is_empty(), "not before its tick");
        now += wait;
        assert_eq!(scheduler.wake_deferred(now), None);
    }
    assert_eq!(ask(&mut scheduler).len(), 1);
    assert_eq!(scheduler.failed(page, now), Failure::GivenUp);
    assert!(scheduler.is_idle());
    assert_eq!(scheduler.failed(page, now), Failure::Unwanted);
}

#[derive(Debug, Clone)]
enum Step {
    Demand(u64),
    Prefetch(u64, u64),
    Remove(u64, u64),
    Next,
    Answer(u64, u64),
    Fail(u64),
    Tick(u64),
}

const PAGES: u64 = 40;

fn step() -> impl Strategy<Value = Step> {
    let range = || (0..PAGES).prop_flat_map(|start| (Just(start), 0..=PAGES - start));
    prop_oneof![
        3 => (0..PAGES).prop_map(Step::Demand),
        2 => range().prop_map(|(start, count)| Step::Prefetch(start, count)),
        1 => range().prop_map(|(start, count)| Step::Remove(start, count)),
        4 => Just(Step::Next),
        3 => range().prop_map(|(start, count)| Step::Answer(start, count)),
        1 => (0..PAGES).prop_map(Step::Fail),
        1 => (0..40_u64).prop_map(Step::Tick),
    ]
}

/// What has to be true, told by sets: who waits, and what the source was asked for and has not answered.
#[derive(Debug, Default)]
struct Model {
    waiting: BTreeSet<u64>,
    asked: BTreeSet<u64>,
    attempts: BTreeMap<u64, u32>,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn nobody_waits_for_ever_and_nothing_is_asked_for_twice(steps in proptest::collection::vec(step(), 0..80)) {
        let mut scheduler = Scheduler::new(LIMITS);
        let mut model = Model::default();
        let mut now = 0;
        for step in steps {
            match step {
                Step::Demand(page) => {
                    if scheduler.has_room() {
                        prop_assert_eq!(scheduler.demand(PageIndex(page)), model.waiting.insert(page));
                    } else {
                        prop_assert!(model.waiting.len() >= LIMITS.demand_pages_max);
                    }
                }
                Step::Prefetch(start, count) => scheduler.prefetch(pages(start, count)),
                Step::Remove(start, count) => {
                    scheduler.remove(pages(start, count));
                    for page in start..start + count {
                        model.waiting.remove(&page);
                        model.asked.remove(&page);
                        model.attempts.remove(&page);
                    }
                }
                Step::Next => {
                    let mut last = Priority::Demand;
                    for request in ask(&mut scheduler) {
                        prop_assert!(request.priority <= last, "demand comes first");
                        last = request.priority;
                        for page in request.range.pages() {
                            prop_assert!(model.asked.insert(page.0), "page {} is asked for twice", page.0);
                        }
                    }
                }
                Step::Answer(start, count) => {
                    let mut placed = BTreeSet::new();
                    for (run, priority) in answer(&mut scheduler, pages(start, count)) {
                        for page in run.pages() {
                            prop_assert!(model.asked.remove(&page.0), "page {} was not asked for", page.0);
                            prop_assert!(placed.insert(page.0), "page {} is handed over twice", page.0);
                            let was_waited_for = model.waiting.remove(&page.0);
                            prop_assert_eq!(was_waited_for, priority == Priority::Demand);
                        }
                    }
                    prop_assert!(model.asked.range(start..start + count).next().is_none(), "an answer was lost");
                }
                Step::Fail(page) if model.asked.contains(&page) => {
                    model.asked.remove(&page);
                    match scheduler.failed(PageIndex(page), now) {
                        Failure::RetryAt(tick) => prop_assert!(tick > now && model.waiting.contains(&page)),
                        Failure::GivenUp => prop_assert!(model.waiting.remove(&page)),
                        Failure::Unwanted => prop_assert!(!model.waiting.contains(&page)),
                    }
                }
                Step::Fail(_) => {}
                Step::Tick(ticks) => {
                    now += ticks;
                    scheduler.wake_deferred(now);
                }
            }
            let waiting: BTreeSet<_> = scheduler.demanded().map(|page| page.0).collect();
            prop_assert_eq!(&waiting, &model.waiting);
        }
        // Whoever still waits is served once time passes and the source answers.
        for _ in 0..LIMITS.attempts_max + 1 {
            now += 1 << 20;
            scheduler.wake_deferred(now);
            for request in ask(&mut scheduler) {
                answer(&mut scheduler, request.range);
            }
            answer(&mut scheduler, pages(0, PAGES));
        }
        prop_assert_eq!(scheduler.demanded().count(), 0);
    }
}
