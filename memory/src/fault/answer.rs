//! What is done about an answer of the source, and about one that does not come.
//!
//! Invariants:
//!
//! - What a source says is believed only of pages that it was asked for, once, and in whole pages.
//! - A page that is waited for and cannot be had is asked for again, later each time, and is poisoned in the end: who
//!   wants it gets a memory error, and the engine's status says so. It is never taken for zero.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::fill::FillQueue;
use super::handler::Handler;
use super::install::{Content, Halt, Placement};
use super::scheduler::Failure as Verdict;
use super::shared::{Failure, Shared, TRIES_BEFORE_HOLD};
use super::statistics::{Verb, add};
use crate::page::{PageRange, PageSize};
use crate::source::{PageReply, PageRequest, Priority, SourceError};
use crate::uffd::Stop;

/// How long a placement is tried again that the kernel puts off.
const PLACE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long to wait before that, where nothing was read that could have been in the way.
const PLACE_RETRY: Duration = Duration::from_micros(50);

impl Handler {
    /// Somebody may want `range` soon.
    pub(super) fn prefetch(&mut self, range: PageRange) {
        self.scheduler.prefetch(range.intersection(self.shared.registered.ram().pages()));
    }

    /// Claims and gives what to ask a source for now.
    pub(super) fn requests(&mut self, requests: &mut Vec<PageRequest>) {
        let tick = self.tick();
        self.scheduler.wake_deferred(tick);
        let (map, granule) = (&self.shared.map, self.granule);
        self.scheduler.next(tick, |page| super::handler::claim(map, page.containing(granule)), requests);
    }

    pub(super) fn answered(&mut self, reply: PageReply<'_>) {
        let (range, content) = match reply {
            PageReply::Lost(range, error) => return self.not_had(range, &error),
            PageReply::Bytes(range, bytes) if is_as_long(bytes, range) => (range, Content::Bytes(bytes)),
            // A source that gives another number of bytes than it says is believed nothing.
            PageReply::Bytes(range, _) => return self.not_had(range, &SourceError::Truncated { range }),
            PageReply::Zero(range) => (range, Content::Zero),
            PageReply::InPlace(range) => (range, Content::InPlace),
        };
        let inside = range.intersection(self.shared.registered.ram().pages());
        add(&self.shared.statistics.counters.unwanted, range.count - inside.count);
        if inside.is_empty() {
            return;
        }
        let answer = Placement { range, content }.part(inside);
        if self.granule == PageSize::Base4K {
            return self.whole(answer);
        }
        if !inside.widened(self.granule).wholes(self.granule).any(|it| self.scheduler.knows(it.start)) {
            return add(&self.shared.statistics.counters.unwanted, inside.count);
        }
        if matches!(content, Content::InPlace) && !inside.is_whole(self.granule) {
            let source = io::Error::other("a part of a huge page cannot be mapped");
            return self.not_had(inside, &SourceError::Read { range: inside, source });
        }
        self.assembly.make_room(|page| self.scheduler.knows(page));
        // They are taken out for the time of the call, as what is whole is placed by all the rest.
        let mut assembly = std::mem::take(&mut self.assembly);
        assembly.take(answer, self.granule, &mut |whole| self.whole(whole));
        self.assembly = assembly;
    }

    /// The source has answered for whole granules.
    fn whole(&mut self, answer: Placement<'_>) {
        let mut runs = std::mem::take(&mut self.runs);
        self.scheduler.answered(answer.range, |run, priority| runs.push((run, priority)));
        let wanted: u64 = runs.iter().map(|(run, _)| run.count).sum();
        add(&self.shared.statistics.counters.unwanted, answer.range.count - wanted);
        for (run, priority) in runs.drain(..) {
            self.found(answer.part(run), priority);
        }
        self.runs = runs;
    }

    fn found(&mut self, placement: Placement<'_>, priority: Priority) {
        let counters = &self.shared.statistics.counters;
        let counter = match priority {
            Priority::Demand => &counters.demanded,
            Priority::Prefetch => &counters.prefetched,
        };
        add(counter, placement.range.count);
        let result = self.place(placement, Shared::place_claimed);
        let since = self.waits.end(placement.range.start);
        match (result, priority) {
            (Ok(verb), Priority::Demand) => {
                if let Some(since) = since {
                    self.shared.statistics.record(verb, since.elapsed());
                }
            }
            (Ok(_), Priority::Prefetch) => {}
            (Err(halt), Priority::Demand) => self.lose(halt.rest, &halt.stop.to_string()),
            // Nobody waits for it, or who does asks again.
            (Err(halt), Priority::Prefetch) => self.let_go(halt.rest),
        }
    }

    /// Places pages, and reads the removals that stand in the way.
    pub(super) fn place(
        &mut self,
        placement: Placement<'_>,
        mut attempt: impl FnMut(&Shared, Placement<'_>) -> Result<Verb, Halt>,
    ) -> Result<Verb, Halt> {
        let mut rest = placement.range;
        let mut deadline = None;
        let shared = Arc::clone(&self.shared);
        let (mut tries, mut _hold) = (0, None);
        loop {
            let halt = match attempt(&self.shared, placement.part(rest)) {
                Ok(verb) => return Ok(verb),
                Err(halt) => halt,
            };
            let deadline = *deadline.get_or_insert_with(|| Instant::now() + PLACE_TIMEOUT);
            if !matches!(halt.stop, Stop::Again | Stop::NoMemory) || Instant::now() > deadline {
                return Err(halt);
            }
            rest = halt.rest;
            tries += 1;
            if tries == TRIES_BEFORE_HOLD {
                _hold = Some(shared.gate.hold_discards());
            }
            add(&self.shared.statistics.counters.retried, rest.count);
            if self.read_events().unwrap_or(0) == 0 {
                thread::sleep(PLACE_RETRY);
            }
        }
    }

    /// The source has no room for requests now. They are made again soon, and that is no failure of theirs.
    pub(super) fn put_off(&mut self, range: PageRange) {
        let tick = self.tick();
        for granule in range.wholes(self.granule) {
            if self.scheduler.put_off(granule.start, tick) == Verdict::Dropped {
                self.let_go(granule);
            }
        }
    }

    /// The source cannot give `range`.
    pub(super) fn not_had(&mut self, range: PageRange, error: &SourceError) {
        let tick = self.tick();
        let inside = range.intersection(self.shared.registered.ram().pages());
        // A huge page is lost with any part of it.
        for granule in inside.widened(self.granule).wholes(self.granule) {
            match self.scheduler.failed(granule.start, tick) {
                Verdict::RetryAt(_) => add(&self.shared.statistics.counters.retried, granule.count),
                Verdict::GivenUp => self.lose(granule, &chain(error)),
                Verdict::Dropped => self.let_go(granule),
                Verdict::Unwanted => {}
            }
        }
    }

    /// What was asked for and is not answered in time.
    pub(super) fn expire(&mut self) {
        if let Some(queue) = &self.queue {
            self.watch_filler(queue);
        }
        let tick = self.tick();
        let mut expired = Vec::new();
        self.scheduler.expire(tick, |range, priority| expired.push((range, priority)));
        for (range, priority) in expired {
            match priority {
                Priority::Demand => self.not_had(range, &SourceError::Late { range }),
                Priority::Prefetch => self.let_go(range),
            }
        }
    }

    /// Nothing of what was asked for will be answered.
    pub(super) fn source_failed(&mut self, error: &SourceError) {
        let demanded: Vec<_> = self.scheduler.demanded().collect();
        for page in demanded {
            self.not_had(page.containing(self.granule), error);
        }
    }

    /// Gives claims back. Whoever has come to wait meanwhile asks again.
    fn let_go(&self, range: PageRange) {
        self.shared.map.release(range);
        self.shared.installer.wake(range);
        if let Some(queue) = &self.queue {
            queue.look_again();
        }
    }

    /// Whoever waits for a chunk that the filler does not come to is served on demand.
    fn watch_filler(&self, queue: &FillQueue) {
        if queue.deadline(self.answer_limit).is_some_and(|deadline| deadline <= Instant::now()) {
            queue.give_up().into_iter().for_each(|chunk| self.shared.installer.wake(chunk));
        }
    }

    /// The pages cannot be had, whatever is done.
    pub(super) fn lose(&mut self, range: PageRange, cause: &str) {
        add(&self.shared.statistics.counters.lost, range.count);
        self.waits.remove(range);
        let pages = Placement { range, content: Content::Zero };
        let poison = |shared: &Shared, part: Placement<'_>| shared.installer.poison(part.range);
        let is_guest_told = self.poisons && self.place(pages, poison).is_ok();
        let cause = format!("{range} of guest memory are lost: {cause}");
        self.shared.fail(Failure { pages: range, cause, is_guest_told });
    }
}

/// Whether there are as many bytes as pages, however many a source says there are.
fn is_as_long(bytes: &[u8], range: PageRange) -> bool {
    let bytes = bytes.len() as u64;
    PageSize::Base4K.divides(bytes) && PageRange::count_of(bytes) == range.count
}

/// An error and what it comes from, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
