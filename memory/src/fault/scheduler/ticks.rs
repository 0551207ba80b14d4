//! What of the scheduler comes with time: granules that are due again, and answers that are overdue.
//!
//! The engine asks for the nearest tick before each sleep, so that is a comparison of two bounds: no tick is nearer than
//! they say. A look at everything makes them exact, and is had only when one of them has come.

use super::{Scheduler, Stage};
use crate::page::PageRange;
use crate::source::Priority;

impl Scheduler {
    /// Queues what is due at tick `now`; gives [`next_tick`](Self::next_tick).
    pub fn wake_deferred(&mut self, now: u64) -> Option<u64> {
        if now >= self.deferred_due {
            self.deferred_due = u64::MAX;
            for (page, demand) in &mut self.demand {
                match demand.stage {
                    Stage::Deferred(tick) if tick <= now => {
                        demand.stage = Stage::Queued;
                        self.queue.push_back(*page);
                    }
                    Stage::Deferred(tick) => self.deferred_due = self.deferred_due.min(tick),
                    Stage::Queued | Stage::InFlight(_) => {}
                }
            }
        }
        self.next_tick()
    }

    /// Gives what has been in flight for too long at tick `now`. What is demanded is to be [`failed`](Self::failed);
    /// until then it stays in flight, with its time beginning anew. What is prefetched is not in flight any more, and
    /// nobody waits for it: an answer that comes all the same is unwanted.
    pub fn expire(&mut self, now: u64, mut expired: impl FnMut(PageRange, Priority)) {
        if now < self.answer_due {
            return;
        }
        let Some(latest) = now.checked_sub(self.limits.answer_ticks_max) else { return };
        let mut oldest = None;
        for (page, demand) in &mut self.demand {
            let Stage::InFlight(since) = &mut demand.stage else { continue };
            if *since <= latest {
                *since = now;
                expired(page.containing(self.granule), Priority::Demand);
            }
            oldest = Some(oldest.map_or(*since, |tick: u64| tick.min(*since)));
        }
        let ahead = self.ahead.expire(latest, |run| expired(run, Priority::Prefetch));
        let oldest = oldest.into_iter().chain(ahead).min();
        self.answer_due = oldest.map_or(u64::MAX, |since| self.deadline(since));
    }

    /// When to call [`wake_deferred`](Self::wake_deferred) and [`expire`](Self::expire) next. It may turn out to be
    /// too early, never too late.
    #[must_use]
    pub fn next_tick(&self) -> Option<u64> {
        let nearest = self.deferred_due.min(self.answer_due);
        (nearest < u64::MAX && self.has_ticks()).then_some(nearest)
    }

    /// When what was asked for at tick `since` is out of time.
    pub(super) fn deadline(&self, since: u64) -> u64 {
        since.saturating_add(self.limits.answer_ticks_max)
    }

    /// Where nothing is left that could be due, the bounds that were for it would only wake the engine for nothing.
    pub(super) fn forget_ticks_of_nothing(&mut self) {
        if !self.has_ticks() {
            self.deferred_due = u64::MAX;
            self.answer_due = u64::MAX;
        }
    }

    fn has_ticks(&self) -> bool {
        !self.demand.is_empty() || !self.ahead.is_empty()
    }
}
