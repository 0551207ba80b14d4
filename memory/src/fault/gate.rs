//! Keeps background placements and discards of the same pages apart.
//!
//! The thread that reads events knows of a removal before the pages are gone, and places nothing there afterwards.
//! Other threads do not: one that has looked at the page map may be about to place what was just thrown away. So they
//! place within a passage, and a discard waits until there is none over its pages.
//!
//! ```text
//!   filler:   enter(range) ─▶ look at the map ─▶ place ─▶ leave
//!   discard:  mark the map ─▶ wait_for(range) ─▶ madvise
//! ```
//!
//! Either the discard sees the passage and waits, or the passage was entered later and sees the mark.
//!
//! Discards that are under way are known, too: what a page holds that is being thrown away is nobody's business.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::page::PageRange;

/// How long a discard waits at most for placements that it would starve.
const HOLD_MAX: Duration = Duration::from_secs(2);

/// Who places what at the moment.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    placing: Mutex<Placing>,
    left: Condvar,
    discards: Mutex<Discards>,
    released: Condvar,
    /// Whether there are discards that have ended, so that looking costs nothing where there are none.
    has_ended: AtomicBool,
}

/// Who places what at the moment.
#[derive(Debug, Default)]
struct Placing {
    /// As many as there are threads that place, each with its number.
    passages: Vec<(u64, PageRange)>,
    /// How many passages there have been: the number of the next.
    entered: u64,
}

impl Placing {
    /// Whether one of the first `entered` passages is there yet, over pages of `range`.
    fn holds(&self, range: PageRange, entered: u64) -> bool {
        let mut passages = self.passages.iter();
        passages.any(|(number, placed)| *number < entered && !placed.intersection(range).is_empty())
    }
}

/// What is being thrown away, and what was until a moment ago.
#[derive(Debug, Default)]
struct Discards {
    /// As many as there are threads that discard.
    running: Vec<PageRange>,
    /// How many placements have had others wait: see [`Gate::hold_discards`].
    holds: usize,
    /// Done, though who reads their events may not have looked at them yet.
    ended: Vec<PageRange>,
}

impl Gate {
    /// From now until the passage is dropped, pages of `range` may be placed.
    pub(crate) fn enter(&self, range: PageRange) -> Passage<'_> {
        let mut placing = self.placing();
        let number = placing.entered;
        placing.entered += 1;
        placing.passages.push((number, range));
        Passage { gate: self, number }
    }

    /// Waits until nobody who had entered before places pages of `range`. Who enters later is not waited for, however
    /// many do.
    pub(crate) fn wait_for(&self, range: PageRange) {
        let placing = self.placing();
        let entered = placing.entered;
        let is_placed = |placing: &mut Placing| placing.holds(range, entered);
        drop(self.left.wait_while(placing, is_placed).unwrap_or_else(PoisonError::into_inner));
    }

    /// Pages are being thrown away from now on, or, where that would starve a placement, once it is done.
    pub(crate) fn begin_discard(&self, range: PageRange) {
        let is_held = |discards: &mut Discards| discards.holds > 0;
        let waited = self.released.wait_timeout_while(self.discards(), HOLD_MAX, is_held);
        waited.unwrap_or_else(PoisonError::into_inner).0.running.push(range);
    }

    /// Has discards wait that have not begun: the kernel places nothing anywhere while the event of one is unread, and
    /// several threads that discard without a pause leave it no moment to.
    pub(crate) fn hold_discards(&self) -> Hold<'_> {
        self.discards().holds += 1;
        Hold(self)
    }

    /// They are gone.
    pub(crate) fn end_discard(&self, range: PageRange) {
        let mut discards = self.discards();
        take_one(&mut discards.running, range);
        discards.ended.push(range);
        self.has_ended.store(true, Ordering::Release);
    }

    /// To be called before events are read: a discard ends after its event was read, so those that have ended by now
    /// have been looked at.
    pub(crate) fn forget_ended(&self) {
        if self.has_ended.swap(false, Ordering::AcqRel) {
            self.discards().ended.clear();
        }
    }

    /// Whether any page of `range` is being thrown away.
    pub(crate) fn is_discarding(&self, range: PageRange) -> bool {
        self.discards().running.iter().any(|gone| !gone.intersection(range).is_empty())
    }

    /// Whether the removal of `range` that was just read is of a discard that is known.
    pub(crate) fn is_known(&self, range: PageRange) -> bool {
        let discards = self.discards();
        let mut known = discards.running.iter().chain(&discards.ended);
        known.any(|gone| gone.intersection(range) == range)
    }

    fn discards(&self) -> MutexGuard<'_, Discards> {
        self.discards.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn placing(&self) -> MutexGuard<'_, Placing> {
        self.placing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Leave to place.
#[derive(Debug)]
pub(crate) struct Passage<'a> {
    gate: &'a Gate,
    number: u64,
}

impl Drop for Passage<'_> {
    fn drop(&mut self) {
        self.gate.placing().passages.retain(|(number, _)| *number != self.number);
        self.gate.left.notify_all();
    }
}

/// Discards do not begin, for a bounded time.
#[derive(Debug)]
pub(crate) struct Hold<'a>(&'a Gate);

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        self.0.discards().holds -= 1;
        self.0.released.notify_all();
    }
}

/// Takes one of those that are `range` out.
fn take_one(ranges: &mut Vec<PageRange>, range: PageRange) {
    if let Some(place) = ranges.iter().position(|other| *other == range) {
        ranges.swap_remove(place);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc::channel;

    use super::*;
    use crate::page::PageIndex;

    fn pages(start: u64, count: u64) -> PageRange {
        PageRange { start: PageIndex(start), count }
    }

    #[test]
    fn nobody_waits_for_those_who_come_later() {
        let gate = Gate::default();
        let first = gate.enter(pages(0, 10));
        let entered = gate.placing().entered;
        let _later = gate.enter(pages(0, 10));
        assert!(gate.placing().holds(pages(5, 1), entered) && !gate.placing().holds(pages(10, 1), entered));
        drop(first);
        assert!(!gate.placing().holds(pages(5, 1), entered), "who came later is not waited for");
    }

    #[test]
    fn a_discard_waits_for_placements_of_its_pages_only() {
        let gate = Arc::new(Gate::default());
        let passage = gate.enter(pages(10, 10));
        gate.wait_for(pages(0, 10));
        gate.wait_for(pages(20, 5));
        let (sender, receiver) = channel();
        let waiting = Arc::clone(&gate);
        let waiter = std::thread::spawn(move || {
            waiting.wait_for(pages(19, 1));
            sender.send(()).unwrap();
        });
        assert!(receiver.recv_timeout(Duration::from_millis(20)).is_err(), "the placement goes on");
        drop(passage);
        receiver.recv_timeout(Duration::from_secs(2)).unwrap();
        waiter.join().unwrap();
        gate.wait_for(pages(0, 100));
    }
}
