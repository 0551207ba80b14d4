//! What is to be filled, and in which order: what is urgent, what is expected, and then the rest.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::FillOptions;
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
}

/// What is to be filled. The engine's threads put it in, the filler takes it out.
#[derive(Debug)]
pub(crate) struct FillQueue {
    inner: Mutex<Inner>,
    changed: Condvar,
    moves: bool,
}

#[derive(Debug)]
struct Inner {
    urgent: VecDeque<PageRange>,
    ahead: VecDeque<PageRange>,
    /// The chunk that is being filled because it was urgent.
    current: Option<PageRange>,
    /// Since when the filler has owed the next urgent chunk.
    owed_since: Option<Instant>,
    /// Where the last fault was.
    near: PageIndex,
    /// Whether there may be something missing that is to be filled.
    everything: bool,
    /// Whether the rest is filled at all.
    goes_on: bool,
    takes_urgent: bool,
    is_stopped: bool,
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
            owed_since: None,
            near: PageIndex(0),
            everything: options.everything,
            goes_on: options.everything,
            takes_urgent: moves,
            is_stopped: false,
            failure: None,
        };
        Self { inner: Mutex::new(inner), changed: Condvar::new(), moves }
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
        inner.owed_since.get_or_insert_with(Instant::now);
        self.changed.notify_one();
        true
    }

    /// When the filler will have owed a chunk for `limit`; `None` where it owes none.
    pub(crate) fn deadline(&self, limit: Duration) -> Option<Instant> {
        self.lock().owed_since.map(|since| since + limit)
    }

    /// Takes back what the filler has owed for too long, and leaves it no more: whoever waits is to be woken.
    pub(crate) fn give_up(&self) -> Vec<PageRange> {
        let mut inner = self.lock();
        inner.takes_urgent = false;
        inner.failure = Some("the reader of the background fill hangs, or is too slow".to_owned());
        inner.take_owed()
    }

    /// Pages that were on their way are missing again.
    pub(crate) fn look_again(&self) {
        let mut inner = self.lock();
        inner.everything = inner.goes_on;
        self.changed.notify_one();
    }

    /// Whether `chunk` was taken over and is not done.
    pub(crate) fn is_urgent(&self, chunk: PageRange) -> bool {
        self.moves && self.lock().is_urgent(chunk)
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
        self.lock().near = page;
    }

    /// What stood in the way of filling last.
    pub(crate) fn failure(&self) -> Option<String> {
        self.lock().failure.clone()
    }

    /// Whether chunks can be moved in.
    pub(super) fn moves(&self) -> bool {
        self.moves
    }

    /// The chunk that was urgent is done, or could not be filled: then no more are taken over.
    pub(super) fn finish_urgent(&self, failed: bool) {
        let mut inner = self.lock();
        inner.current = None;
        inner.takes_urgent &= !failed;
        inner.owed_since = (!inner.urgent.is_empty()).then(Instant::now);
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
        !inner.take_owed().is_empty()
    }

    pub(crate) fn stop(&self) {
        self.lock().is_stopped = true;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for something to do, for the rest not before `not_before`; `None` when it was stopped.
    pub(super) fn next(&self, shared: &Shared, not_before: Instant) -> Option<Job> {
        let mut inner = self.lock();
        loop {
            inner.current = None;
            if inner.is_stopped {
                return None;
            }
            if let Some(chunk) = inner.urgent.pop_front() {
                inner.current = Some(chunk);
                return Some(Job::Urgent(chunk));
            }
            if let Some(range) = inner.ahead.pop_front() {
                return Some(Job::Ahead(inner.first_chunk(range)));
            }
            let wait = not_before.saturating_duration_since(Instant::now());
            if inner.everything && wait.is_zero() {
                match next_chunk(shared, inner.near) {
                    Some(chunk) => {
                        inner.near = chunk.end();
                        return Some(Job::Rest(chunk));
                    }
                    None => inner.everything = false,
                }
            }
            inner = if inner.everything {
                self.changed.wait_timeout(inner, wait).unwrap_or_else(PoisonError::into_inner).0
            } else {
                self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner)
            };
        }
    }
}

impl Inner {
    fn take_owed(&mut self) -> Vec<PageRange> {
        self.owed_since = None;
        self.current.take().into_iter().chain(std::mem::take(&mut self.urgent)).collect()
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

/// The first chunk from `near` on, and around, that misses a page, as far as it is RAM.
fn next_chunk(shared: &Shared, near: PageIndex) -> Option<PageRange> {
    let all = shared.registered.ram().pages();
    let missing = |from, to| shared.map.next_missing(from, to);
    let near = if all.contains(near) { near.containing(PageSize::Huge2M).start } else { all.start };
    let page = missing(near, all.end()).or_else(|| missing(all.start, near))?;
    Some(page.containing(PageSize::Huge2M).intersection(all))
}
