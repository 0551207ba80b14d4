//! What the scheduler asks for: first what is demanded, then, in runs as long as they go, what may be wanted soon.

use super::{Demand, Scheduler, Stage};
use crate::page::{PageIndex, PageRange};
use crate::source::{PageRequest, Priority};

impl Scheduler {
    /// What to ask for at tick `now`: all that is demanded, then prefetch as far as its limit goes.
    ///
    /// `is_missing` says of a granule, named by its first page, whether it is still to be had: others may have placed
    /// it meanwhile. It may claim what it says yes to: whatever it says yes to is in `requests`, and of no granule that
    /// is prefetched in there was it asked twice.
    pub fn next(
        &mut self,
        now: u64,
        mut is_missing: impl FnMut(PageIndex) -> bool,
        requests: &mut Vec<PageRequest>,
    ) {
        let before = requests.len();
        self.ask_demanded(now, requests);
        while let Some(range) = self.prefetch.pop_front() {
            let room = self.limits.in_flight_pages_max.saturating_sub(self.ahead.pages());
            let (first, later) = range.split_at(room - room % self.granule.base_pages());
            if !later.is_empty() {
                self.prefetch.push_front(later);
            }
            if first.is_empty() {
                break;
            }
            self.ask_ahead(first, now, &mut is_missing, requests);
        }
        if requests.len() > before {
            self.answer_due = self.answer_due.min(self.deadline(now));
        }
    }

    fn ask_demanded(&mut self, now: u64, requests: &mut Vec<PageRequest>) {
        while let Some(page) = self.queue.pop_front() {
            if let Some(demand) = self.demand.get_mut(&page).filter(|demand| demand.stage == Stage::Queued) {
                *demand = Demand { stage: Stage::InFlight(now), attempts: demand.attempts + 1 };
                requests
                    .push(PageRequest { range: page.containing(self.granule), priority: Priority::Demand });
            }
        }
    }

    /// Asks for those granules of `range` that nobody asks for yet, in runs as long as they go.
    fn ask_ahead(
        &mut self,
        range: PageRange,
        now: u64,
        is_missing: &mut impl FnMut(PageIndex) -> bool,
        requests: &mut Vec<PageRequest>,
    ) {
        let mut rest = range;
        while let Some(free) = self.next_free(rest) {
            rest = PageRange::between(free.end(), range.end());
            let mut run = PageRange { start: free.start, count: 0 };
            for granule in free.wholes(self.granule) {
                if is_missing(granule.start) {
                    run.count += granule.count;
                    continue;
                }
                self.ask_ahead_run(run, now, requests);
                run = PageRange { start: granule.end(), count: 0 };
            }
            self.ask_ahead_run(run, now, requests);
        }
    }

    fn ask_ahead_run(&mut self, run: PageRange, now: u64, requests: &mut Vec<PageRequest>) {
        if !run.is_empty() {
            self.ahead.insert(run, now);
            requests.push(PageRequest { range: run, priority: Priority::Prefetch });
        }
    }

    /// The first granules of `range`, next to each other, that nobody asks for.
    fn next_free(&self, range: PageRange) -> Option<PageRange> {
        let mut rest = range;
        while !rest.is_empty() {
            let asked_until = if let Some((run, _)) = self.ahead.run_at(rest.start) {
                run.end()
            } else if self.demand.contains_key(&rest.start) {
                rest.start.containing(self.granule).end()
            } else {
                let demanded = self.demand.range(rest.start..rest.end()).next().map(|(page, _)| *page);
                let ahead = self.ahead.next_start(rest);
                let end = demanded.into_iter().chain(ahead).fold(rest.end(), PageIndex::min);
                return Some(PageRange::between(rest.start, end));
            };
            rest = PageRange::between(asked_until, range.end());
        }
        None
    }
}
