//! The scheduler against a model of it, with base pages and with huge ones: whatever happens in whatever order, nobody
//! waits for ever, nothing is asked for twice, and no claim is left behind.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::source::PageRequest;

const LIMITS: Limits = Limits {
    in_flight_pages_max: 16,
    demand_pages_max: 8,
    prefetch_ranges_max: 4,
    attempts_max: 3,
    answer_ticks_max: 50,
};

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

/// How many granules the guest has.
const GRANULES: u64 = 40;

fn step() -> impl Strategy<Value = Step> {
    let range = || (0..GRANULES).prop_flat_map(|start| (Just(start), 0..=GRANULES - start));
    prop_oneof![
        3 => (0..GRANULES).prop_map(Step::Demand),
        2 => range().prop_map(|(start, count)| Step::Prefetch(start, count)),
        1 => range().prop_map(|(start, count)| Step::Remove(start, count)),
        4 => Just(Step::Next),
        3 => range().prop_map(|(start, count)| Step::Answer(start, count)),
        1 => (0..GRANULES).prop_map(Step::Fail),
        1 => (0..40_u64).prop_map(Step::Tick),
    ]
}

type Granules = BTreeSet<u64>;

/// A scheduler, and what has to be true of it, told by sets of granules.
struct Model {
    scheduler: Scheduler,
    granule: PageSize,
    now: u64,
    /// Somebody waits for them.
    waiting: Granules,
    /// The source was asked for them, and has time left.
    asked: Granules,
    /// They were asked for as demand at some time, so an answer is welcome while somebody waits.
    asked_before: Granules,
    /// Who asks for a page claims it, as the engine does in the map.
    claimed: Granules,
}

impl Model {
    fn new(granule: PageSize) -> Self {
        let in_flight_pages_max = LIMITS.in_flight_pages_max * granule.base_pages();
        Self {
            scheduler: Scheduler::new(Limits { in_flight_pages_max, ..LIMITS }, granule),
            granule,
            now: 0,
            waiting: Granules::new(),
            asked: Granules::new(),
            asked_before: Granules::new(),
            claimed: Granules::new(),
        }
    }

    fn pages(&self, start: u64, count: u64) -> PageRange {
        let pages = self.granule.base_pages();
        PageRange { start: PageIndex(start * pages), count: count * pages }
    }

    /// Some page of a granule.
    fn page(&self, granule: u64) -> PageIndex {
        PageIndex((granule + 1) * self.granule.base_pages() - 1)
    }

    fn granules(&self, range: PageRange) -> impl Iterator<Item = u64> + use<> {
        let pages = self.granule.base_pages();
        assert!(range.is_whole(self.granule) && !range.is_empty());
        range.start.0 / pages..range.end().0 / pages
    }

    fn demand(&mut self, granule: u64) {
        if !self.scheduler.has_room() {
            assert!(self.waiting.len() >= LIMITS.demand_pages_max);
            return;
        }
        self.claimed.insert(granule);
        assert_eq!(self.scheduler.demand(self.page(granule)), self.waiting.insert(granule));
        if self.asked.contains(&granule) {
            self.asked_before.insert(granule);
        }
    }

    fn remove(&mut self, start: u64, count: u64) {
        self.scheduler.remove(self.pages(start, count));
        for granule in start..start + count {
            self.waiting.remove(&granule);
            self.asked.remove(&granule);
            self.asked_before.remove(&granule);
            self.claimed.remove(&granule);
        }
    }

    fn next(&mut self) {
        let mut requests: Vec<PageRequest> = Vec::new();
        let mut said_yes = Granules::new();
        let claimed = &mut self.claimed;
        let pages = self.granule.base_pages();
        // Every seventh granule is somebody else's.
        let is_missing = |page: PageIndex| {
            let granule = page.0 / pages;
            assert!(page.0.is_multiple_of(pages), "a granule is named by its first page");
            assert!(!claimed.contains(&granule), "granule {granule} is claimed already");
            let is_missing = !granule.is_multiple_of(7);
            assert!(!is_missing || claimed.insert(granule) && said_yes.insert(granule));
            is_missing
        };
        self.scheduler.next(self.now, is_missing, &mut requests);
        assert!(requests.is_sorted_by(|one, other| one.priority >= other.priority), "demand comes first");
        for request in requests {
            for granule in self.granules(request.range) {
                assert!(self.asked.insert(granule), "granule {granule} is asked for twice");
                let is_demand = request.priority == Priority::Demand;
                assert_eq!(self.waiting.contains(&granule), is_demand);
                if is_demand {
                    self.asked_before.insert(granule);
                } else {
                    assert!(said_yes.remove(&granule), "granule {granule} is asked for and not claimed");
                }
            }
        }
        assert!(said_yes.is_empty(), "claimed and not asked for: {said_yes:?}");
        let ahead = self.asked.difference(&self.waiting).count() as u64;
        assert!(ahead <= LIMITS.in_flight_pages_max, "{ahead} are prefetched");
    }

    fn answer(&mut self, start: u64, count: u64) {
        let mut runs = Vec::new();
        self.scheduler.answered(self.pages(start, count), |run, priority| runs.push((run, priority)));
        for (run, priority) in runs {
            for granule in self.granules(run) {
                let was_asked = self.asked.remove(&granule) | self.asked_before.remove(&granule);
                assert!(was_asked, "granule {granule} was not asked for");
                assert!(self.claimed.remove(&granule), "granule {granule} is handed over twice");
                assert_eq!(self.waiting.remove(&granule), priority == Priority::Demand);
            }
        }
        let left =
            self.asked.union(&self.asked_before).any(|granule| (start..start + count).contains(granule));
        assert!(!left, "an answer was lost");
    }

    fn fail(&mut self, granule: u64) {
        if !self.asked.remove(&granule) {
            return;
        }
        match self.scheduler.failed(self.page(granule), self.now) {
            Failure::RetryAt(tick) => assert!(tick > self.now && self.waiting.contains(&granule)),
            Failure::GivenUp => {
                assert!(self.waiting.remove(&granule) && self.claimed.remove(&granule));
                self.asked_before.remove(&granule);
            }
            Failure::Unwanted => panic!("granule {granule} was asked for"),
            Failure::Dropped => {
                assert!(!self.waiting.contains(&granule) && self.claimed.remove(&granule));
            }
        }
    }

    /// Lets time pass as an engine does: whatever is due by then is done, and nothing waits for longer.
    fn tick(&mut self, ticks: u64) {
        self.now += ticks;
        let mut expired = Vec::new();
        self.scheduler.expire(self.now, |run, priority| expired.push((run, priority)));
        for (run, priority) in expired {
            for granule in self.granules(run) {
                if priority == Priority::Demand {
                    self.fail(granule);
                } else {
                    assert!(self.asked.remove(&granule) && !self.waiting.contains(&granule));
                    assert!(self.claimed.remove(&granule));
                }
            }
        }
        let nearest = self.scheduler.wake_deferred(self.now);
        assert!(nearest.is_none_or(|tick| tick > self.now), "the engine would not sleep");
        assert!(nearest.is_some() || self.asked.is_empty(), "the engine would not wake");
        assert!(nearest.is_none_or(|tick| tick <= self.now + LIMITS.answer_ticks_max.max(8)));
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Demand(granule) => self.demand(granule),
            Step::Prefetch(start, count) => self.scheduler.prefetch(self.pages(start, count)),
            Step::Remove(start, count) => self.remove(start, count),
            Step::Next => self.next(),
            Step::Answer(start, count) => self.answer(start, count),
            Step::Fail(granule) => self.fail(granule),
            Step::Tick(ticks) => self.tick(ticks),
        }
        let pages = self.granule.base_pages();
        let waiting: Granules = self.scheduler.demanded().map(|page| page.0 / pages).collect();
        assert_eq!(waiting, self.waiting);
        let claims: Granules = self.waiting.union(&self.asked).copied().collect();
        assert_eq!(claims, self.claimed, "a claim was lost, or is left");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn nobody_waits_for_ever_and_nothing_is_asked_for_twice(
        steps in proptest::collection::vec(step(), 0..80),
        granule in prop_oneof![Just(PageSize::Base4K), Just(PageSize::Huge2M)],
    ) {
        let mut model = Model::new(granule);
        for step in &steps {
            model.step(step);
        }
        // Whoever still waits is served once time passes and the source answers.
        for _ in 0..GRANULES {
            model.step(&Step::Tick(1 << 10));
            model.step(&Step::Next);
            model.step(&Step::Answer(0, GRANULES));
        }
        prop_assert!(model.scheduler.is_idle() && model.claimed.is_empty());
        prop_assert_eq!(model.scheduler.next_tick(), None);
    }

    #[test]
    fn a_source_that_never_answers_holds_nothing_for_ever(
        steps in proptest::collection::vec(step(), 0..80),
        granule in prop_oneof![Just(PageSize::Base4K), Just(PageSize::Huge2M)],
    ) {
        let mut model = Model::new(granule);
        for step in steps.iter().filter(|step| !matches!(step, Step::Answer(..))) {
            model.step(step);
        }
        for _ in 0..GRANULES {
            model.step(&Step::Tick(1 << 10));
            model.step(&Step::Next);
        }
        model.step(&Step::Tick(1 << 10));
        prop_assert!(model.scheduler.is_idle() && model.claimed.is_empty());
    }
}
