//! Which pages were wanted, in the order in which they were: bounded, and only where somebody asks for it.
//!
//! A fault is noted with the window of pages that is fetched around it, as nobody faults on those afterwards. Pages that
//! somebody else was about to place, or had just placed, are noted alone: they were wanted all the same.
//!
//! Invariants:
//!
//! - Noting allocates nothing, and the lock is held by nobody who waits for anything.
//! - A record that is full stays as it is: what was wanted first counts most.

use std::sync::{Mutex, PoisonError};

use crate::page::{PageIndex, PageRange};

/// How much is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordLimits {
    /// How many ranges at most; 16 bytes are kept for each.
    pub ranges_max: usize,
    /// How many pages at most, those that were wanted twice counted twice.
    pub pages_max: u64,
}

impl Default for RecordLimits {
    /// 1 MiB of ranges, and 1 GiB of guest memory.
    fn default() -> Self {
        Self { ranges_max: 1 << 16, pages_max: 1 << 18 }
    }
}

/// What has been wanted so far.
#[derive(Debug)]
pub(super) struct Recorder(Mutex<Log>);

#[derive(Debug)]
struct Log {
    ranges: Vec<PageRange>,
    ranges_max: usize,
    /// How many pages there is room for yet.
    room_pages: u64,
}

impl Recorder {
    pub(super) fn new(limits: RecordLimits) -> Self {
        let ranges = Vec::with_capacity(limits.ranges_max);
        Self(Mutex::new(Log { ranges, ranges_max: limits.ranges_max, room_pages: limits.pages_max }))
    }

    /// Somebody waits for `page`, around which `window` is fetched; it is empty where nothing is.
    pub(super) fn note(&self, page: PageIndex, window: PageRange) {
        let range = if window.contains(page) { window } else { page.alone() };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).note(range);
    }

    /// Ends the record and gives it.
    pub(super) fn take(&self) -> Vec<PageRange> {
        let mut log = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        log.room_pages = 0;
        std::mem::take(&mut log.ranges)
    }
}

impl Log {
    fn note(&mut self, range: PageRange) {
        if range.count > self.room_pages {
            // All that comes later is left out, and not only what is too long.
            self.room_pages = 0;
            return;
        }
        let is_full = self.ranges.len() == self.ranges_max;
        match self.ranges.last_mut() {
            Some(last) if last.intersection(range) == range => return,
            // Somebody walks on.
            Some(last) if last.end() == range.start => last.count += range.count,
            _ if is_full => {
                self.room_pages = 0;
                return;
            }
            _ => self.ranges.push(range),
        }
        self.room_pages -= range.count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages(start: u64, count: u64) -> PageRange {
        PageRange { start: PageIndex(start), count }
    }

    fn recorder(ranges_max: usize, pages_max: u64) -> Recorder {
        Recorder::new(RecordLimits { ranges_max, pages_max })
    }

    #[test]
    fn what_was_wanted_is_kept_in_order_and_walks_are_one_range() {
        let recorder = recorder(8, 1000);
        recorder.note(PageIndex(40), pages(32, 16));
        recorder.note(PageIndex(33), pages(33, 0));
        recorder.note(PageIndex(48), pages(48, 32));
        recorder.note(PageIndex(7), pages(0, 16));
        recorder.note(PageIndex(40), pages(40, 0));
        assert_eq!(recorder.take(), [pages(32, 48), pages(0, 16), pages(40, 1)]);
        recorder.note(PageIndex(3), pages(3, 1));
        assert!(recorder.take().is_empty(), "a record that was taken is at its end");
    }

    #[test]
    fn a_record_that_is_full_stays_as_it_is() {
        let by_ranges = recorder(2, 1000);
        (0..4).for_each(|page| by_ranges.note(PageIndex(page * 9), pages(0, 0)));
        assert_eq!(by_ranges.take(), [pages(0, 1), pages(9, 1)]);
        let by_pages = recorder(8, 20);
        by_pages.note(PageIndex(0), pages(0, 16));
        by_pages.note(PageIndex(64), pages(64, 16));
        by_pages.note(PageIndex(99), pages(99, 1));
        assert_eq!(by_pages.take(), [pages(0, 16)]);
    }
}
