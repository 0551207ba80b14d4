//! What to ask a source for next. Pure: no I/O, no clock, no kernel.
//!
//! ```text
//!   fault ──▶ demand ──┐
//!                      ├──▶ next ──▶ in flight ──▶ answered: what of it is still wanted
//!   prefetch ──────────┘                 │
//!                                        ├─ failed ──▶ deferred ──▶ demand again, once its tick has come
//!                                        └─ expire: what was not answered in time, to be failed or let go
//! ```
//!
//! It works by *granule*, the page size of what backs the RAM. A granule is asked for, answered, failed and removed
//! whole, and named by any of its pages. An answer for a part of one is ignored, as nothing can be placed with it: the
//! granule stays in flight until all of it comes, or its time is over. A granule of which a part is removed is still
//! wanted, as somebody may wait for the rest.
//!
//! The engine claims pages in the [map](crate::map) when they are asked for, so that no two threads ask for one: what is
//! demanded before [`Scheduler::demand`], what is prefetched in the closure of [`Scheduler::next`]. Each claim comes back
//! once: in `answered`, with a failure that is not tried again, in `expire` as prefetch, or by the removal.
//!
//! Invariants:
//!
//! - Demand goes strictly before prefetch.
//! - A granule is asked for once at a time, however many threads want it.
//! - At most [`Limits::in_flight_pages_max`] prefetched pages are in flight; a demanded one waits for none of them. One
//!   that is demanded while it is prefetched is demand from then on, and is asked for as that if its time runs out.
//! - What was removed is neither asked for nor waited for: an answer that comes all the same is unwanted.
//! - A granule that fails is tried again at most [`Limits::attempts_max`] times, each time after twice as many ticks. An
//!   answer that comes after all, in between, is welcome.
//! - Nothing is in flight for longer than [`Limits::answer_ticks_max`].

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};

use crate::page::{PageIndex, PageRange, PageSize};
use crate::source::Priority;

mod ahead;
mod ask;
mod ticks;

use ahead::Ahead;

/// Bounds on what is asked for. A tick is what the engine counts time in: the defaults mean milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How many pages of prefetch may be in flight; one granule may always be.
    pub in_flight_pages_max: u64,
    /// How many demanded granules may be known at a time: more faults are left with the kernel until there is room.
    pub demand_pages_max: usize,
    /// How many ranges may wait to be prefetched: the oldest give way.
    pub prefetch_ranges_max: usize,
    /// How often a granule is asked for before it is given up.
    pub attempts_max: u32,
    /// How many ticks a source has for an answer.
    pub answer_ticks_max: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            in_flight_pages_max: 2048,
            demand_pages_max: 1024,
            prefetch_ranges_max: 64,
            attempts_max: 6,
            answer_ticks_max: 5_000,
        }
    }
}

/// How a granule goes on that could not be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// It is asked for again, at this tick or later.
    RetryAt(u64),
    /// It was asked for often enough.
    GivenUp,
    /// Nobody waits for it. It was asked for all the same, and is no longer: its claim is to be given back.
    Dropped,
    /// Nobody waits for it, and it was not asked for.
    Unwanted,
}

/// Where a demanded granule is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// In the queue.
    Queued,
    /// With the source, since this tick.
    InFlight(u64),
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
    granule: PageSize,
    /// Every demanded granule that is not placed yet, by its first page.
    demand: BTreeMap<PageIndex, Demand>,
    /// Demanded granules to be asked for, in the order in which they were wanted. It may name some that were removed or
    /// answered since; `demand` is what counts.
    queue: VecDeque<PageIndex>,
    prefetch: VecDeque<PageRange>,
    /// What is prefetched and with the source, without what is in `demand`.
    ahead: Ahead,
    /// No deferred granule is due before this tick. Looking at all of them can wait until then.
    deferred_due: u64,
    /// Nothing that is in flight is out of time before this tick.
    answer_due: u64,
}

impl Scheduler {
    /// One that nothing is wanted of. RAM is backed by pages of size `granule`.
    #[must_use]
    pub fn new(limits: Limits, granule: PageSize) -> Self {
        let in_flight_pages_max = limits.in_flight_pages_max.max(granule.base_pages());
        let answer_ticks_max = limits.answer_ticks_max.max(1);
        Self {
            limits: Limits { in_flight_pages_max, answer_ticks_max, ..limits },
            granule,
            demand: BTreeMap::new(),
            queue: VecDeque::new(),
            prefetch: VecDeque::new(),
            ahead: Ahead::default(),
            deferred_due: u64::MAX,
            answer_due: u64::MAX,
        }
    }

    /// Whether another demanded granule can be taken. Where not, faults are to be left with the kernel.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.demand.len() < self.limits.demand_pages_max
    }

    /// Somebody waits for `page`. Says whether that is news of its granule.
    pub fn demand(&mut self, page: PageIndex) -> bool {
        let granule = page.containing(self.granule);
        let Entry::Vacant(entry) = self.demand.entry(granule.start) else { return false };
        // With the source already: its answer will serve.
        if let Some((_, since)) = self.ahead.run_at(granule.start) {
            entry.insert(Demand { stage: Stage::InFlight(since), attempts: 1 });
            self.ahead.cut(granule, |_| {});
        } else {
            entry.insert(Demand { stage: Stage::Queued, attempts: 0 });
            self.queue.push_back(granule.start);
        }
        true
    }

    /// Whether `page` is demanded already, or on its way as prefetch.
    #[must_use]
    pub fn knows(&self, page: PageIndex) -> bool {
        let granule = page.containing(self.granule).start;
        self.demand.contains_key(&granule) || self.ahead.run_at(granule).is_some()
    }

    /// Somebody may want `range` soon, and with it the granules that it touches.
    pub fn prefetch(&mut self, range: PageRange) {
        if !range.is_empty() {
            self.prefetch.push_back(range.widened(self.granule));
            self.bound_prefetch();
        }
    }

    /// Pages were thrown away: nobody wants them any more.
    pub fn remove(&mut self, range: PageRange) {
        let range = range.narrowed(self.granule);
        let before = self.demand.len();
        while let Some((page, _)) = self.demand.range(range.start..range.end()).next() {
            let page = *page;
            self.demand.remove(&page);
        }
        if self.demand.len() < before {
            self.queue.retain(|page| !range.contains(*page));
        }
        self.prefetch = self.prefetch.drain(..).flat_map(|queued| without(queued, range)).collect();
        self.bound_prefetch();
        self.ahead.cut(range, |_| {});
        self.forget_ticks_of_nothing();
    }

    /// The source has answered for `range`. Hands those runs of it to `wanted` that were asked for and are still
    /// wanted, with whether somebody waits for the run; each granule belongs to one run. What is not handed over was
    /// not asked for, was answered before, was removed, or is a part of a granule.
    pub fn answered(&mut self, range: PageRange, mut wanted: impl FnMut(PageRange, Priority)) {
        let range = range.narrowed(self.granule);
        let mut rest = range;
        while let Some((page, demand)) = self.demand.range(rest.start..rest.end()).next() {
            let granule = page.containing(self.granule);
            let was_asked_for = demand.attempts > 0;
            rest = PageRange::between(granule.end(), range.end());
            if was_asked_for {
                self.demand.remove(&granule.start);
                wanted(granule, Priority::Demand);
            }
        }
        self.ahead.cut(range, |run| wanted(run, Priority::Prefetch));
        self.forget_ticks_of_nothing();
    }

    /// The granule of `page` could not be had, or not be placed, at tick `now`.
    pub fn failed(&mut self, page: PageIndex, now: u64) -> Failure {
        let granule = page.containing(self.granule);
        let Some(demand) = self.demand.get_mut(&granule.start) else {
            let mut was_asked_for = false;
            self.ahead.cut(granule, |_| was_asked_for = true);
            return if was_asked_for { Failure::Dropped } else { Failure::Unwanted };
        };
        match demand.stage {
            // A source that says so twice does not put the next attempt off.
            Stage::Queued => Failure::RetryAt(now),
            Stage::Deferred(tick) => Failure::RetryAt(tick),
            Stage::InFlight(_) if demand.attempts >= self.limits.attempts_max => {
                self.demand.remove(&granule.start);
                Failure::GivenUp
            }
            Stage::InFlight(_) => {
                let tick = now.saturating_add(1 << demand.attempts.min(62));
                demand.stage = Stage::Deferred(tick);
                self.deferred_due = self.deferred_due.min(tick);
                Failure::RetryAt(tick)
            }
        }
    }

    /// The granule of `page` was not asked for after all, at tick `now`: it is soon, and that does not count as an
    /// attempt.
    pub fn put_off(&mut self, page: PageIndex, now: u64) -> Failure {
        let granule = page.containing(self.granule).start;
        if let Some(demand) = self.demand.get_mut(&granule)
            && let Stage::InFlight(_) = demand.stage
        {
            demand.attempts = demand.attempts.saturating_sub(1);
        }
        self.failed(page, now)
    }

    /// Whether there is prefetch to ask for, and room for it: what was in flight when it was asked for last may have been
    /// answered since.
    #[must_use]
    pub fn has_more(&self) -> bool {
        let room = self.limits.in_flight_pages_max.saturating_sub(self.ahead.pages());
        !self.prefetch.is_empty() && room >= self.granule.base_pages()
    }

    /// Whether nothing is wanted and nothing in flight.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.demand.is_empty() && self.prefetch.is_empty() && self.ahead.is_empty()
    }

    /// Every granule that somebody waits for, by its first page.
    pub fn demanded(&self) -> impl Iterator<Item = PageIndex> {
        self.demand.keys().copied()
    }

    fn bound_prefetch(&mut self) {
        while self.prefetch.len() > self.limits.prefetch_ranges_max {
            self.prefetch.pop_front();
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
mod model;
#[cfg(test)]
mod tests;
