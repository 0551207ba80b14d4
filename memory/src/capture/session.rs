//! Protecting memory chunk by chunk, and letting all of it go at the end, whatever that is.

use std::num::NonZeroUsize;
use std::sync::{Arc, Weak};
use std::thread;

use super::desk::{Desk, State};
use super::error::BeginError;
use super::watch::Observer;
use crate::fault::{FaultEngine, ObserveError, Protection, Status};
use crate::image::outside;
use crate::map::PageState;
use crate::page::{PageRange, PageSize};
use crate::ram::{DiscardWatcher, GuestRam};
use crate::threads;
use crate::uffd::Pagemap;

/// How many threads protect at most, and how many chunks are worth one: 40 µs each, of base pages.
const ARMING_THREADS_MAX: usize = 4;
const CHUNKS_PER_THREAD_MIN: usize = 32;

/// What a chunk held when it was protected, but for what the RAM has.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Pages that were with their source, in order.
    pub(super) missing: Vec<PageRange>,
    /// Pages that were zero because they had been thrown away, in order.
    pub(super) blank: Vec<PageRange>,
}

/// Memory whose writes are told.
pub(super) struct Session {
    pub(super) engine: Arc<FaultEngine>,
    pub(super) desk: Arc<Desk>,
    pub(super) protection: Protection,
    pub(super) plans: Vec<Plan>,
    /// Tells what is there of private memory.
    pagemap: Option<Pagemap>,
}

impl Session {
    /// Begins to be told; nothing is protected yet.
    pub(super) fn new(engine: Arc<FaultEngine>) -> Result<Self, BeginError> {
        if let Status::Failed(failure) = engine.status() {
            return Err(BeginError::Engine(failure));
        }
        let ram = engine.ram();
        let shares_writes = ram.backing().shares_writes();
        let pagemap = (!shares_writes).then(Pagemap::open).transpose().map_err(BeginError::Backed)?;
        let desk = Arc::new(Desk::new(ram.pages()));
        let protection = engine.protection();
        let observer = Observer { desk: Arc::clone(&desk), protection: protection.clone() };
        engine.observe(Box::new(observer)).map_err(|error| match error {
            ObserveError::Busy => BeginError::Busy,
            ObserveError::Unprotectable => BeginError::Unprotectable,
            ObserveError::Hangs => BeginError::Hangs,
        })?;
        let plans = desk.chunks().map(|_| Plan::default()).collect();
        // From here on it ends what it began.
        let session = Self { engine, desk, protection, plans, pagemap };
        let watcher: Arc<dyn DiscardWatcher> = Arc::clone(&session.desk) as _;
        session.ram().watch_discards(Arc::downgrade(&watcher) as Weak<dyn DiscardWatcher>)?;
        Ok(session)
    }

    pub(super) fn ram(&self) -> &GuestRam {
        self.engine.ram()
    }

    /// Protects all `chunks`, on as many threads as are given something to do by that.
    pub(super) fn arm_all(&mut self, chunks: &[usize]) -> Result<(), BeginError> {
        // How many processors there are is a question that takes the host as long as a chunk.
        if chunks.len() <= CHUNKS_PER_THREAD_MIN {
            return chunks.iter().try_for_each(|chunk| {
                self.plans[*chunk] = self.arm(*chunk)?;
                Ok(())
            });
        }
        let threads = thread::available_parallelism().map_or(1, NonZeroUsize::get).min(ARMING_THREADS_MAX);
        let share = chunks.len().div_ceil(threads).max(CHUNKS_PER_THREAD_MIN);
        let session = &*self;
        let arm =
            |chunks: &[usize]| chunks.iter().map(|chunk| session.arm(*chunk)).collect::<Result<Vec<_>, _>>();
        let (own, others) = chunks.split_at(share.min(chunks.len()));
        let plans = thread::scope(|scope| {
            let start = |chunks| (chunks, threads::start(scope, move || arm(chunks)));
            let others: Vec<_> = others.chunks(share).map(start).collect();
            let mut plans = vec![arm(own)];
            plans.extend(others.into_iter().map(|(chunks, other)| match other {
                Ok(other) => other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
                // The guest stands still meanwhile, and does so a little longer.
                Err(_) => arm(chunks),
            }));
            plans.into_iter().collect::<Result<Vec<_>, _>>()
        })?;
        for (chunk, plan) in chunks.iter().zip(plans.into_iter().flatten()) {
            self.plans[*chunk] = plan;
        }
        Ok(())
    }

    /// Protects `chunk`, and looks at what it holds.
    fn arm(&self, chunk: usize) -> Result<Plan, BeginError> {
        self.desk.arm(chunk);
        let range = self.desk.range(chunk);
        let (mut plan, mut removed, mut is_there) = (Plan::default(), Vec::new(), false);
        self.engine.map().state_runs(range, |run, state| match state {
            // What is on its way comes protected: whoever places it does so later than we were told.
            PageState::Missing | PageState::Requested => append(&mut plan.missing, run),
            PageState::Removed => removed.push(run),
            PageState::Present => is_there = true,
        });
        for run in removed {
            let known = self.known(run)?;
            is_there |= !known.is_empty();
            plan.blank.extend(outside(run, &known));
        }
        // A part of a huge page cannot be protected, and what is not there of the rest of a chunk costs little.
        if is_there || self.ram().backing().page_size() == PageSize::Huge2M {
            let protected = self.protection.protect(range);
            protected.map_err(|source| BeginError::Protect { range, source })?;
        }
        // What the host unmaps of a page cache is mapped again by the engine, too.
        let comes_later = !plan.missing.is_empty() || !plan.blank.is_empty();
        if comes_later || self.ram().backing().has_page_cache() {
            self.desk.leave(chunk);
        }
        Ok(plan)
    }

    /// What of pages that were thrown away is there again. Of a memfd's it is not known, and reading those is harmless.
    fn known(&self, range: PageRange) -> Result<Vec<PageRange>, BeginError> {
        let Some(pagemap) = &self.pagemap else { return Ok(vec![range]) };
        let mut known = Vec::new();
        let looked = pagemap.known(self.ram(), range, &mut |run| append(&mut known, run));
        looked.map_err(BeginError::Backed)?;
        Ok(known)
    }
}

impl Drop for Session {
    /// Nothing stays protected, and nobody waits.
    fn drop(&mut self) {
        self.desk.end();
        let unread = self.desk.chunks().filter(|chunk| self.desk.state(*chunk) != State::Read);
        self.unprotect(unread);
        self.engine.unobserve();
        self.unprotect(self.desk.chunks().filter(|chunk| self.desk.is_left(*chunk)));
    }
}

impl Session {
    fn unprotect(&self, chunks: impl Iterator<Item = usize>) {
        let mut is_patient = true;
        for range in chunks.map(|chunk| self.desk.range(chunk)) {
            if is_patient {
                // It is refused only where the memory is gone, or nobody reads its removals. The others may be let go
                // all the same, but waiting again for each of them would take hours.
                is_patient = self.protection.unprotect(range).is_ok();
            } else {
                self.protection.unprotect_now(range);
            }
        }
    }
}

/// Adds `run` to `runs`, which end before it.
fn append(runs: &mut Vec<PageRange>, run: PageRange) {
    match runs.last_mut() {
        Some(last) if last.end() == run.start => last.count += run.count,
        _ => runs.push(run),
    }
}
