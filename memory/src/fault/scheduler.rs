//! What to ask a source for next. Pure: no I/O, no clock, no kernel.
//!
//! ```text
//!   fault ──▶ demand ──┐
//!                      ├──▶ next ──▶ in flight ──▶ answered: what of it is still wanted
//!   prefetch ──────────┘                 │
//!                                        └─ failed ──▶ deferred ──▶ demand again, once its tick has come
//! ```
//!
//! Invariants:
//!
//! - Demand goes strictly before prefetch.
//! - A page is asked for once at a time, however many threads want it.
//! - At most [`Limits::in_flight_pages_max`] prefetched pages are in flight; a demanded page waits for none of them.
//! - What was removed is neither asked for nor waited for: an answer that comes all the same is unwanted.
//! - A page that fails is tried again at most [`Limits::attempts_max`] times, each time after twice as many ticks.

use std::collections::{BTreeMap, VecDeque};

use crate::page::{PageIndex, PageRange};
use crate::source::{PageRequest, Priority};

/// Bounds on what is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How many pages of prefetch may be in flight.
    pub in_flight_pages_max: u64,
    /// How many demanded pages may be known at a time: more faults are left with the kernel until there is room.
    pub demand_pages_max: usize,
    /// How many ranges may wait to be prefetched: the oldest give way.
    pub prefetch_ranges_max: usize,
    /// How often a page is asked for before it is given up.
    pub attempts_max: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { in_flight_pages_max: 2048, demand_pages_max: 1024, prefetch_ranges_max: 64, attempts_max: 6 }
    }
}

/// How a page goes on that could not be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// It is asked for again, at this tick or later.
    RetryAt(u64),
    /// It was asked for often enough.
    GivenUp,
    /// Nobody waits for it.
    Unwanted,
}

/// Where a demanded page is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// In the queue.
    Queued,
    /// With the source.
    InFlight,
    /// Waiting for its tick.
    Deferred(u64),
}

#[derive(Debug, Clone, Copy)]
struct Demand {
    stage: Stage,
    /// How often it was asked for.
    attempts: u32,
}

/// What is wanted, what is in flight, and what has to be tried again.
#[derive(Debug)]
pub struct Scheduler {
    limits: Limits,
    /// Every demanded page that is not placed yet.
    demand: BTreeMap<PageIndex, Demand>,
    /// Demanded pages to be asked for, in the order in which they were wanted. It may name pages that were removed
    /// since; `demand` is what counts.
    queue: VecDeque<PageIndex>,
    prefetch: VecDeque<PageRange>,
    /// Prefetched ranges that are with the source: few, and disjoint.
    prefetching: Vec<PageRange>,
}

impl Scheduler {
    /// One that nothing is wanted of.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            demand: BTreeMap::new(),
            queue: VecDeque::new(),
            prefetch: VecDeque::new(),
            prefetching: Vec::new(),
        }
    }

    /// Whether another demanded page can be taken. Where not, faults are to be left with the kernel.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.demand.len() < self.limits.demand_pages_max
    }

    /// Somebody waits for `page`. Says whether that is news.
    pub fn demand(&mut self, page: PageIndex) -> bool {
        if self.demand.contains_key(&page) {
            return false;
        }
        // With the source already: its answer will serve.
        let stage = if self.is_prefetching(page) { Stage::InFlight } else { Stage::Queued };
        self.demand.insert(page, Demand { stage, attempts: u32::from(stage == Stage::InFlight) });
        if stage == Stage::Queued {
            self.queue.push_back(page);
        }
        true
    }

    /// Somebody may want `range` soon.
    pub fn prefetch(&mut self, range: PageRange) {
        if self.prefetch.len() == self.limits.prefetch_ranges_max {
            self.prefetch.pop_front();
        }
        if !range.is_empty() {
            self.prefetch.push_back(range);
        }
    }

    /// Pages were thrown away: nobody wants them any more.
    pub fn remove(&mut self, range: PageRange) {
        self.demand.retain(|page, _| !range.contains(*page));
        self.queue.retain(|page| !range.contains(*page));
        self.prefetch = self.prefetch.drain(..).flat_map(|queued| without(queued, range)).collect();
        self.prefetching = self.prefetching.drain(..).flat_map(|asked| without(asked, range)).collect();
    }

    /// What to ask for now: all that is demanded, then prefetch as far as its limit goes. `is_missing` says of a page
    /// whether it is still to be had: others may have placed it meanwhile.
    pub fn next(&mut self, mut is_missing: impl FnMut(PageIndex) -> bool, requests: &mut Vec<PageRequest>) {
        while let Some(page) = self.queue.pop_front() {
            if let Some(demand) = self.demand.get_mut(&page) {
                *demand = Demand { stage: Stage::InFlight, attempts: demand.attempts + 1 };
                requests.push(PageRequest { range: page.alone(), priority: Priority::Demand });
            }
        }
        while let Some(range) = self.prefetch.pop_front() {
            let room = self.limits.in_flight_pages_max.saturating_sub(self.prefetching_pages());
            if room == 0 {
                return self.prefetch.push_front(range);
            }
            let (now, later) = range.split_at(room);
            if !later.is_empty() {
                self.prefetch.push_front(later);
            }
            self.ask_ahead(now, &mut is_missing, requests);
        }
    }

    /// Asks for those pages of `range` that nobody asks for yet, in runs as long as they go.
    fn ask_ahead(
        &mut self,
        range: PageRange,
        is_missing: &mut impl FnMut(PageIndex) -> bool,
        requests: &mut Vec<PageRequest>,
    ) {
        let mut run = PageRange { start: range.start, count: 0 };
        for page in range.pages() {
            let is_asked_for = self.demand.contains_key(&page) || self.is_prefetching(page);
            if !is_asked_for && is_missing(page) {
                run.count += 1;
                continue;
            }
            self.ask_ahead_run(run, requests);
            run = PageRange { start: PageIndex(page.0 + 1), count: 0 };
        }
        self.ask_ahead_run(run, requests);
    }

    fn ask_ahead_run(&mut self, run: PageRange, requests: &mut Vec<PageRequest>) {
        if !run.is_empty() {
            self.prefetching.push(run);
            requests.push(PageRequest { range: run, priority: Priority::Prefetch });
        }
    }

    /// The source has answered for `range`. Hands those runs of it to `wanted` that were asked for and are still
    /// wanted, with whether somebody waits for a page of the run; each page belongs to one run. What is not handed
    /// over was not asked for, was answered before, or was removed.
    pub fn answered(&mut self, range: PageRange, mut wanted: impl FnMut(PageRange, Priority)) {
        for page in range.pages() {
            let is_demanded = self.demand.get(&page).is_some_and(|demand| demand.stage == Stage::InFlight);
            if is_demanded {
                self.demand.remove(&page);
                self.cut_prefetching(page.alone());
                wanted(page.alone(), Priority::Demand);
            }
        }
        let ahead: Vec<_> = self.prefetching.iter().map(|asked| asked.intersection(range)).collect();
        self.cut_prefetching(range);
        for run in ahead.into_iter().filter(|run| !run.is_empty()) {
            wanted(run, Priority::Prefetch);
        }
    }

    /// `page` could not be had, or not be placed, at tick `now`.
    pub fn failed(&mut self, page: PageIndex, now: u64) -> Failure {
        self.cut_prefetching(page.alone());
        let Some(demand) = self.demand.get_mut(&page) else { return Failure::Unwanted };
        if demand.attempts >= self.limits.attempts_max {
            self.demand.remove(&page);
            return Failure::GivenUp;
        }
        let tick = now.saturating_add(1 << demand.attempts.min(62));
        demand.stage = Stage::Deferred(tick);
        Failure::RetryAt(tick)
    }

    /// Queues what is due at tick `now`; gives the tick of what is not due yet, the nearest first.
    pub fn wake_deferred(&mut self, now: u64) -> Option<u64> {
        let mut nearest = None;
        for (page, demand) in &mut self.demand {
            match demand.stage {
                Stage::Deferred(tick) if tick <= now => {
                    demand.stage = Stage::Queued;
                    self.queue.push_back(*page);
                }
                Stage::Deferred(tick) => {
                    nearest = Some(nearest.map_or(tick, |nearest: u64| nearest.min(tick)))
                }
                Stage::Queued | Stage::InFlight => {}
            }
        }
        nearest
    }

    /// Whether nothing is wanted and nothing in flight.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.demand.is_empty() && self.prefetch.is_empty() && self.prefetching.is_empty()
    }

    /// Every page that somebody waits for.
    pub fn demanded(&self) -> impl Iterator<Item = PageIndex> {
        self.demand.keys().copied()
    }

    fn is_prefetching(&self, page: PageIndex) -> bool {
        self.prefetching.iter().any(|asked| asked.contains(page))
    }

    fn prefetching_pages(&self) -> u64 {
        self.prefetching.iter().map(|asked| asked.count).sum()
    }

    fn cut_prefetching(&mut self, range: PageRange) {
        if self.prefetching.iter().any(|asked| !asked.intersection(range).is_empty()) {
            self.prefetching = self.prefetching.drain(..).flat_map(|asked| without(asked, range)).collect();
        }
    }
}

/// What of `range` is not in `cut`: up to two pieces.
fn without(range: PageRange, cut: PageRange) -> impl Iterator<Item = PageRange> {
    let cut = cut.intersection(range);
    let pieces = if cut.is_empty() {
        [range, PageRange { start: range.end(), count: 0 }]
    } else {
        [PageRange::between(range.start, cut.start), PageRange::between(cut.end(), range.end())]
    };
    pieces.into_iter().filter(|piece| !piece.is_empty())
}

#[cfg(test)]
mod tests;
