use super::*;
use crate::source::PageRequest;

const LIMITS: Limits = Limits {
    in_flight_pages_max: 16,
    demand_pages_max: 8,
    prefetch_ranges_max: 4,
    attempts_max: 3,
    answer_ticks_max: 50,
};

fn pages(start: u64, count: u64) -> PageRange {
    PageRange { start: PageIndex(start), count }
}

fn ask(scheduler: &mut Scheduler) -> Vec<PageRequest> {
    ask_at(scheduler, 0)
}

fn ask_at(scheduler: &mut Scheduler, now: u64) -> Vec<PageRequest> {
    let mut requests = Vec::new();
    scheduler.next(now, |_| true, &mut requests);
    requests
}

fn expire(scheduler: &mut Scheduler, now: u64) -> Vec<(PageRange, Priority)> {
    let mut expired = Vec::new();
    scheduler.expire(now, |run, priority| expired.push((run, priority)));
    expired
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
    let mut scheduler = Scheduler::new(LIMITS, PageSize::Base4K);
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
    let mut scheduler = Scheduler::new(LIMITS, PageSize::Base4K);
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
    let mut scheduler = Scheduler::new(LIMITS, PageSize::Base4K);
    scheduler.demand(PageIndex(1));
    assert!(answer(&mut scheduler, pages(0, 4)).is_empty(), "it was not asked for yet");
    ask(&mut scheduler);
    assert_eq!(answer(&mut scheduler, pages(0, 4)), [(pages(1, 1), Priority::Demand)]);
    assert!(answer(&mut scheduler, pages(0, 4)).is_empty());
}

#[test]
fn what_is_removed_is_forgotten_wherever_it_was() {
    let mut scheduler = Scheduler::new(LIMITS, PageSize::Base4K);
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
    let mut scheduler = Scheduler::new(LIMITS, PageSize::Base4K);
    scheduler.prefetch(pages(0, 100));
    assert_eq!(ask(&mut scheduler), [request(pages(0, 16), Priority::Prefetch)]);
    scheduler.demand(PageIndex(50));
    assert_eq!(ask(&mut scheduler), [request(pages(50, 1), Priority::Demand)]);
    assert!(!scheduler.has_more(), "there is no room");
    answer(&mut scheduler, pages(0, 8));
    assert!(scheduler.has_more());
    assert_eq!(ask(&mut scheduler), [request(pages(16, 8), Priority::Prefetch)]);
}

#[test]
fn failures_are_tried_again_ever_later_and_given_up() {
    let mut scheduler = Scheduler::new(LIMITS, PageSize::Base4K);
    let page = PageIndex(7);
    scheduler.demand(page);
    let mut now = 100;
    for wait in [2, 4] {
        assert_eq!(ask_at(&mut scheduler, now).len(), 1);
        assert_eq!(scheduler.failed(page, now), Failure::RetryAt(now + wait));
        assert_eq!(scheduler.failed(page, now + 1), Failure::RetryAt(now + wait), "twice is not later");
        assert_eq!(scheduler.wake_deferred(now), Some(now + wait));
        assert!(ask(&mut scheduler).is_empty(), "not before its tick");
        now += wait;
        scheduler.wake_deferred(now);
    }
    assert_eq!(ask(&mut scheduler).len(), 1);
    assert_eq!(scheduler.failed(page, now), Failure::GivenUp);
    assert!(scheduler.is_idle());
    assert_eq!(scheduler.failed(page, now), Failure::Unwanted);
}

#[test]
fn what_is_not_answered_in_time_is_failed_or_let_go() {
    let mut scheduler = Scheduler::new(LIMITS, PageSize::Base4K);
    assert_eq!(scheduler.next_tick(), None);
    scheduler.prefetch(pages(0, 16));
    scheduler.demand(PageIndex(100));
    ask_at(&mut scheduler, 10);
    scheduler.demand(PageIndex(3));
    scheduler.demand(PageIndex(101));
    ask_at(&mut scheduler, 20);
    assert_eq!(scheduler.next_tick(), Some(60));
    assert!(expire(&mut scheduler, 59).is_empty());
    let expected = [
        (pages(3, 1), Priority::Demand),
        (pages(100, 1), Priority::Demand),
        (pages(0, 3), Priority::Prefetch),
        (pages(4, 12), Priority::Prefetch),
    ];
    assert_eq!(expire(&mut scheduler, 60), expected);
    assert_eq!(scheduler.failed(PageIndex(3), 60), Failure::RetryAt(62));
    assert_eq!(scheduler.next_tick(), Some(62));
    assert_eq!(answer(&mut scheduler, pages(4, 12)), [], "nobody waits for it");
    assert_eq!(answer(&mut scheduler, pages(3, 1)), [(pages(3, 1), Priority::Demand)], "late, but welcome");
    scheduler.prefetch(pages(200, 16));
    assert_eq!(
        ask_at(&mut scheduler, 61),
        [request(pages(200, 16), Priority::Prefetch)],
        "the limit is free again"
    );
}

#[test]
fn what_nobody_fails_is_told_of_again() {
    let mut scheduler = Scheduler::new(LIMITS, PageSize::Base4K);
    scheduler.demand(PageIndex(1));
    ask_at(&mut scheduler, 0);
    for now in [50, 100, 150] {
        assert_eq!(scheduler.next_tick(), Some(now));
        assert_eq!(expire(&mut scheduler, now), [(pages(1, 1), Priority::Demand)]);
    }
    answer(&mut scheduler, pages(1, 1));
    assert_eq!(scheduler.next_tick(), None);
}

#[test]
fn huge_pages_are_asked_for_and_answered_whole() {
    let mut scheduler = Scheduler::new(LIMITS, PageSize::Huge2M);
    assert!(scheduler.demand(PageIndex(700)));
    assert!(!scheduler.demand(PageIndex(600)), "it is of the same huge page");
    scheduler.prefetch(pages(1000, 100));
    let expected =
        [request(pages(512, 512), Priority::Demand), request(pages(1024, 512), Priority::Prefetch)];
    assert_eq!(ask(&mut scheduler), expected, "one is prefetched whatever the limit is");
    assert!(answer(&mut scheduler, pages(512, 511)).is_empty(), "a part of one cannot be placed");
    scheduler.remove(pages(512, 511));
    let expected = [(pages(512, 512), Priority::Demand), (pages(1024, 512), Priority::Prefetch)];
    assert_eq!(answer(&mut scheduler, pages(500, 2000)), expected, "what is removed in part is still wanted");
    scheduler.demand(PageIndex(5));
    scheduler.remove(pages(0, 512));
    assert!(scheduler.is_idle() && ask(&mut scheduler).is_empty());
}

#[test]
fn removals_do_not_make_more_ranges_to_prefetch_than_there_may_be() {
    let mut scheduler = Scheduler::new(LIMITS, PageSize::Base4K);
    for _ in 0..LIMITS.prefetch_ranges_max {
        scheduler.prefetch(pages(0, 100));
    }
    for page in 0..50 {
        scheduler.remove(pages(page * 2, 1));
    }
    assert!(scheduler.prefetch.len() <= LIMITS.prefetch_ranges_max);
}

#[test]
fn what_is_answered_late_and_wanted_again_is_asked_for_once() {
    let mut scheduler = Scheduler::new(LIMITS, PageSize::Base4K);
    scheduler.demand(PageIndex(1));
    ask(&mut scheduler);
    scheduler.failed(PageIndex(1), 0);
    scheduler.wake_deferred(10);
    assert_eq!(answer(&mut scheduler, pages(1, 1)), [(pages(1, 1), Priority::Demand)]);
    assert!(scheduler.demand(PageIndex(1)), "it was thrown away again, say");
    assert_eq!(ask(&mut scheduler), [request(pages(1, 1), Priority::Demand)]);
}

#[test]
fn a_limit_that_is_no_whole_number_of_huge_pages_loses_none() {
    let limits = Limits { in_flight_pages_max: 1300, ..LIMITS };
    let mut scheduler = Scheduler::new(limits, PageSize::Huge2M);
    scheduler.prefetch(pages(0, 2048));
    assert_eq!(ask(&mut scheduler), [request(pages(0, 1024), Priority::Prefetch)]);
    answer(&mut scheduler, pages(0, 1024));
    assert_eq!(ask(&mut scheduler), [request(pages(1024, 1024), Priority::Prefetch)]);
}
