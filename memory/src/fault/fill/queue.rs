//! What is to be filled, and in which order: what is urgent, what is expected, and then the rest.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::FillOptions;
use super::turn::Turn;
use crate::fault::heartbeat::Heartbeat;
use crate::fault::shared::Shared;
use crate::page::{PageIndex, PageRange, PageSize};

/// How many chunks and ranges may wait: more are declined, or forgotten from the front.
const URGENT_MAX: usize = 64;
const AHEAD_MAX: usize = 4096;

/// What a filler is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Job {
    Urgent(PageRange),
    Ahead(PageRange),
    Rest(PageRange),
    /// Nothing, for now: what is kept for the next chunk can be given back.
    Nothing,
}

/// What is to be filled. The engine's threads put it in, the filler takes it out.
#[derive(Debug)]
pub(crate) struct FillQueue {
    inner: Mutex<Inner>,
    changed: Condvar,
    moves: bool,
    /// Since when the filler has owed the next urgent chunk. It begins and ends under the lock, and begins on the thread
    /// that asks whether it has: who sees none without the lock is right.
    owed: Heartbeat,
    /// The page where the last fault was.
    near: AtomicU64,
    pub(super) turn: Turn,
}

#[derive(Debug)]
struct Inner {
    urgent: VecDeque<PageRange>,
    ahead: VecDeque<PageRange>,
    /// The chunk that is being filled because it was urgent.
    current: Option<PageRange>,
    /// Whether there may be something missing that is to be filled.
    everything: bool,
    /// Whether the rest is filled at all.
    goes_on: bool,
    /// Whether the rest is left until somebody says so.
    waits: bool,
    takes_urgent: bool,
    is_stopped: bool,
    /// Whether the filler is at its end.
    is_closed: bool,
    failure: Option<String>,
}

impl FillQueue {
    pub(crate) fn new(shared: &Shared, options: FillOptions, kernel_moves: bool) -> Self {
        let backing = shared.registered.ram().backing();
        let moves = kernel_moves && backing.supports_move();
        let inner = Inner {
            urgent: VecDeque::new(),
            ahead: VecDeque::new(),
            current: None,
            everything: options.everything && !options.waits,
            goes_on: options.everything,
            waits: options.waits,
            takes_urgent: moves,
            is_stopped: false,
            is_closed: false,
            failure: None,
        };
        Self {
            inner: Mutex::new(inner),
            changed: Condvar::new(),
            moves,
            owed: Heartbeat::default(),
            near: AtomicU64::new(0),
            turn: Turn::default(),
        }
    }

    /// Takes over a whole chunk that somebody waits for, or declines.
    pub(crate) fn take_over(&self, chunk: PageRange) -> bool {
        let mut inner = self.lock();
        if inner.is_urgent(chunk) {
            return true;
        }
        if !inner.takes_urgent || inner.urgent.len() >= URGENT_MAX {
            return false;
        }
        inner.urgent.push_back(chunk);
        if !self.owed.is_running() {
            self.owed.begin();
        }
        self.changed.notify_one();
        true
    }

    /// When the filler will have owed a chunk for `limit`; `None` where it owes none.
    pub(crate) fn deadline(&self, limit: Duration) -> Option<Instant> {
        self.owed.deadline(limit)
    }

    /// Takes back what the filler has owed for too long, and leaves it no more: whoever waits is to be woken.
    pub(crate) fn give_up(&self) -> Vec<PageRange> {
        let mut inner = self.lock();
        inner.takes_urgent = false;
        inner.failure = Some("the reader of the background fill hangs, or is too slow".to_owned());
        self.take_owed(&mut inner)
    }

    /// Pages that were on their way are missing again.
    pub(crate) fn look_again(&self) {
        let mut inner = self.lock();
        inner.everything = inner.goes_on && !inner.waits;
        self.changed.notify_one();
    }

    /// The rest is to be filled, if it is at all.
    pub(crate) fn begin_rest(&self) {
        self.lock().waits = false;
        self.look_again();
    }

    /// Whether `chunk` was taken over and is not done.
    pub(crate) fn is_urgent(&self, chunk: PageRange) -> bool {
        self.owed.is_running() && self.lock().is_urgent(chunk)
    }

    /// Somebody may want `range` soon.
    pub(crate) fn ahead(&self, range: PageRange) {
        let mut inner = self.lock();
        if inner.ahead.len() >= AHEAD_MAX {
            inner.ahead.pop_front();
        }
        inner.ahead.push_back(range);
        self.changed.notify_one();
    }

    /// There was a fault on `page`: what is near it is filled first.
    pub(crate) fn fault_at(&self, page: PageIndex) {
        self.near.store(page.0, Ordering::Relaxed);
    }

    /// What stood in the way of filling last.
    pub(crate) fn failure(&self) -> Option<String> {
        self.lock().failure.clone()
    }

    /// Whether chunks can be moved in.
    pub(crate) fn moves(&self) -> bool {
        self.moves
    }

    /// The chunk that was urgent is done, or could not be filled: then no more are taken over.
    pub(super) fn finish_urgent(&self, failed: bool) {
        let mut inner = self.lock();
        inner.current = None;
        inner.takes_urgent &= !failed;
        if inner.urgent.is_empty() { self.owed.end() } else { self.owed.begin() }
    }

    /// Something could not be filled; `goes_on` says whether the rest is tried all the same.
    pub(super) fn note_failure(&self, failure: String, goes_on: bool) {
        let mut inner = self.lock();
        inner.failure = Some(failure);
        inner.goes_on &= goes_on;
        inner.everything &= goes_on;
    }

    /// Nobody fills any more. Says whether somebody may wait for what was taken over.
    pub(super) fn close(&self) -> bool {
        let mut inner = self.lock();
        inner.takes_urgent = false;
        inner.is_closed = true;
        self.changed.notify_all();
        !self.take_owed(&mut inner).is_empty()
    }

    fn take_owed(&self, inner: &mut Inner) -> Vec<PageRange> {
        self.owed.end();
        inner.current.take().into_iter().chain(std::mem::take(&mut inner.urgent)).collect()
    }

    /// Waits for the filler to come to its end; says whether it has.
    pub(super) fn is_closed_within(&self, limit: Duration) -> bool {
        let is_open = |inner: &mut Inner| !inner.is_closed;
        let waited = self.changed.wait_timeout_while(self.lock(), limit, is_open);
        waited.unwrap_or_else(PoisonError::into_inner).0.is_closed
    }

    pub(crate) fn stop(&self) {
        self.lock().is_stopped = true;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for something to do, for the rest not before `not_before`, and for anything no longer than `patience`;
    /// `None` when it was stopped.
    pub(super) fn next(
        &self,
        shared: &Shared,
        not_before: Instant,
        patience: Option<Duration>,
    ) -> Option<Job> {
        let mut inner = self.lock();
        loop {
            inner.current = None;
            if inner.is_stopped {
                return None;
            }
            if let Some(job) = inner.asked_for() {
                return Some(job);
            }
            let wait = not_before.saturating_duration_since(Instant::now());
            let limit = if inner.everything { Some(wait) } else { patience };
            if inner.everything && wait.is_zero() {
                // Nobody waits for this look at the map. Who makes a page missing meanwhile sets it again.
                inner.everything = false;
                drop(inner);
                let chunk = self.next_chunk(shared);
                inner = self.lock();
                if let Some(chunk) = chunk {
                    inner.everything = inner.goes_on;
                    return Some(Job::Rest(chunk));
                }
                continue;
            }
            let is_late;
            (inner, is_late) = self.wait(inner, limit);
            if is_late && !inner.has_work() {
                return Some(Job::Nothing);
            }
        }
    }

    /// Waits for a change; says whether there was none within `limit`.
    fn wait<'a>(
        &self,
        inner: MutexGuard<'a, Inner>,
        limit: Option<Duration>,
    ) -> (MutexGuard<'a, Inner>, bool) {
        let Some(limit) = limit else {
            return (self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner), false);
        };
        let waited = self.changed.wait_timeout(inner, limit).unwrap_or_else(PoisonError::into_inner);
        (waited.0, waited.1.timed_out())
    }

    /// The first chunk from the last fault on, and around, that misses a page, as far as it is RAM. The next is looked
    /// for behind it, if there is no other fault.
    fn next_chunk(&self, shared: &Shared) -> Option<PageRange> {
        let fault = self.near.load(Ordering::Relaxed);
        let all = shared.registered.ram().pages();
        let missing = |from, to| shared.map.next_missing(from, to);
        let near = PageIndex(fault);
        let near = if all.contains(near) { near.containing(PageSize::Huge2M).start } else { all.start };
        let page = missing(near, all.end()).or_else(|| missing(all.start, near))?;
        let chunk = page.containing(PageSize::Huge2M).intersection(all);
        // Where there was another fault, that one counts.
        let _ = self.near.compare_exchange(fault, chunk.end().0, Ordering::Relaxed, Ordering::Relaxed);
        Some(chunk)
    }
}

impl Inner {
    /// Whether there is something to do, now or when its time has come.
    fn has_work(&self) -> bool {
        self.is_stopped || self.everything || !self.urgent.is_empty() || !self.ahead.is_empty()
    }

    /// What somebody has asked for: what is urgent first.
    fn asked_for(&mut self) -> Option<Job> {
        if let Some(chunk) = self.urgent.pop_front() {
            self.current = Some(chunk);
            return Some(Job::Urgent(chunk));
        }
        let range = self.ahead.pop_front()?;
        Some(Job::Ahead(self.first_chunk(range)))
    }

    /// The first chunk of a range; the rest stays in the queue, behind what becomes urgent meanwhile.
    fn first_chunk(&mut self, range: PageRange) -> PageRange {
        let chunk = range.start.containing(PageSize::Huge2M).intersection(range);
        let later = PageRange::between(chunk.end(), range.end());
        if !later.is_empty() {
            self.ahead.push_front(later);
        }
        chunk
    }

    fn is_urgent(&self, chunk: PageRange) -> bool {
        self.current == Some(chunk) || self.urgent.contains(&chunk)
    }
}
