//! Which pages were wanted, in the order in which they were: bounded, and only where somebody asks for it.
//!
//! A fault is noted with the window of pages that is fetched around it, as nobody faults on those afterwards. Pages that
//! somebody else was about to place, or had just placed, are noted alone: they were wanted all the same. Who walks on a
//! little further than where it was has met pages between that were filled before it came, and has wanted those, too.
//!
//! Invariants:
//!
//! - Noting allocates nothing, and the lock is held by nobody who waits for anything.
//! - A record that is full stays as it is: what was wanted first counts most.

use std::sync::{Mutex, PoisonError};

use crate::page::{BASE_PAGES_PER_HUGE, PageIndex, PageRange};

/// How far somebody may have walked unseen, over pages that were there already: a chunk of 2 MiB, and a few times as far
/// as it was seen to walk before. Who steps from chunk to chunk has not wanted all that is between.
const UNSEEN_MAX: u64 = BASE_PAGES_PER_HUGE;
const UNSEEN_SHARE_MAX: u64 = 8;

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

    /// Somebody waits for `page`, around which `window` is fetched; it is empty where nothing is. `is_there` says whether
    /// all of a range is.
    pub(super) fn note(&self, page: PageIndex, window: PageRange, is_there: impl FnOnce(PageRange) -> bool) {
        let range = if window.contains(page) { window } else { page.alone() };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).note(range, is_there);
    }

    /// Ends the record and gives it.
    pub(super) fn take(&self) -> Vec<PageRange> {
        let mut log = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        log.room_pages = 0;
        std::mem::take(&mut log.ranges)
    }
}

impl Log {
    fn note(&mut self, range: PageRange, is_there: impl FnOnce(PageRange) -> bool) {
        let last = self.ranges.last().copied();
        if last.is_some_and(|last| last.intersection(range) == range) {
            return;
        }
        let walked = last.filter(|last| walks_on(*last, range, is_there));
        let walked = walked.map(|last| PageRange::between(last.end(), range.end()));
        let walked = walked.filter(|walked| walked.count <= self.room_pages);
        let wanted = walked.unwrap_or(range);
        let has_place = walked.is_some() || self.ranges.len() < self.ranges_max;
        if !has_place || wanted.count > self.room_pages {
            // All that comes later is left out, and not only what is too long.
            self.room_pages = 0;
            return;
        }
        self.room_pages -= wanted.count;
        match self.ranges.last_mut().filter(|_| walked.is_some()) {
            Some(last) => last.count += wanted.count,
            None => self.ranges.push(wanted),
        }
    }
}

/// Whether who was at `last` has come to `range` from there.
fn walks_on(last: PageRange, range: PageRange, is_there: impl FnOnce(PageRange) -> bool) -> bool {
    let unseen = PageRange::between(last.end(), range.start);
    let unseen_max = (last.count * UNSEEN_SHARE_MAX).min(UNSEEN_MAX);
    range.start >= last.end() && unseen.count <= unseen_max && (unseen.is_empty() || is_there(unseen))
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

    fn nothing_is_there(_: PageRange) -> bool {
        false
    }

    #[test]
    fn what_was_wanted_is_kept_in_order_and_walks_are_one_range() {
        let recorder = recorder(8, 1000);
        let note = |page, window| recorder.note(PageIndex(page), window, nothing_is_there);
        note(40, pages(32, 16));
        note(33, pages(33, 0));
        note(48, pages(48, 32));
        note(7, pages(0, 16));
        note(40, pages(40, 0));
        assert_eq!(recorder.take(), [pages(32, 48), pages(0, 16), pages(40, 1)]);
        note(3, pages(3, 1));
        assert!(recorder.take().is_empty(), "a record that was taken is at its end");
    }

    #[test]
    fn who_walks_on_over_pages_that_were_filled_has_wanted_them() {
        let recorder = recorder(8, 8000);
        let note = |start, count, is_there| {
            recorder.note(PageIndex(start), pages(start, count), |_| is_there);
        };
        note(0, 16, false);
        note(100, 16, true);
        note(1044, 16, true);
        note(1200, 16, true);
        note(1220, 512, false);
        note(2200, 600, true);
        note(2800 + 512, 16, true);
        note(4000, 16, true);
        note(3800, 16, true);
        assert_eq!(
            recorder.take(),
            [
                pages(0, 116),
                pages(1044, 16),
                pages(1200, 16),
                pages(1220, 2108),
                pages(4000, 16),
                pages(3800, 16)
            ],
            "not over more than was seen, or a chunk, not where some are missing, and not back"
        );
    }

    #[test]
    fn a_record_that_is_full_stays_as_it_is() {
        let by_ranges = recorder(2, 1000);
        (0..4).for_each(|page| by_ranges.note(PageIndex(page * 9), pages(0, 0), nothing_is_there));
        assert_eq!(by_ranges.take(), [pages(0, 1), pages(9, 1)]);
        let by_pages = recorder(8, 20);
        by_pages.note(PageIndex(0), pages(0, 16), nothing_is_there);
        by_pages.note(PageIndex(64), pages(64, 16), nothing_is_there);
        by_pages.note(PageIndex(99), pages(99, 1), nothing_is_there);
        assert_eq!(by_pages.take(), [pages(0, 16)]);
    }
}
