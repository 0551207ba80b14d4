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

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::page::PageRange;

/// Who places what at the moment.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    /// As many as there are threads that place.
    placing: Mutex<Vec<PageRange>>,
    left: Condvar,
}

impl Gate {
    /// From now until the passage is dropped, pages of `range` may be placed.
    pub(crate) fn enter(&self, range: PageRange) -> Passage<'_> {
        self.placing().push(range);
        Passage { gate: self, range }
    }

    /// Waits until nobody who had entered before places pages of `range`.
    pub(crate) fn wait_for(&self, range: PageRange) {
        let is_placed = |placing: &mut Vec<PageRange>| {
            placing.iter().any(|placed| !placed.intersection(range).is_empty())
        };
        drop(self.left.wait_while(self.placing(), is_placed).unwrap_or_else(PoisonError::into_inner));
    }

    fn placing(&self) -> MutexGuard<'_, Vec<PageRange>> {
        self.placing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Leave to place.
#[derive(Debug)]
pub(crate) struct Passage<'a> {
    gate: &'a Gate,
    range: PageRange,
}

impl Drop for Passage<'_> {
    fn drop(&mut self) {
        let mut placing = self.gate.placing();
        if let Some(place) = placing.iter().position(|placed| *placed == self.range) {
            placing.swap_remove(place);
        }
        drop(placing);
        self.gate.left.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::*;
    use crate::page::PageIndex;

    fn pages(start: u64, count: u64) -> PageRange {
        PageRange { start: PageIndex(start), count }
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
