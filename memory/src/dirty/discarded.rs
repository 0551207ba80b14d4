//! One bit for each page: whether it was thrown away since it was last asked for.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::page::{PageIndex, PageRange};
use crate::ram::{DiscardWatcher, GuestRam};

const PAGES_PER_WORD: u64 = u64::BITS as u64;

/// 32 KiB for each GiB of RAM, whatever the guest throws away.
#[derive(Debug)]
pub(super) struct Discarded(Box<[AtomicU64]>);

impl Discarded {
    pub(super) fn of(ram: &GuestRam) -> Self {
        let words = ram.pages().count.div_ceil(PAGES_PER_WORD);
        Self((0..words).map(|_| AtomicU64::new(0)).collect())
    }

    /// All of `ram` counts as thrown away.
    pub(super) fn note_all(&self, ram: &GuestRam) {
        self.after_discard(ram.pages());
    }

    /// Gives the pages of `range` that were, and forgets them.
    pub(super) fn take(&self, range: PageRange, sink: &mut dyn FnMut(PageRange)) {
        let mut run = PageRange { start: range.start, count: 0 };
        for (first, word, mask) in self.words(range) {
            // Most words are 0, and reading is cheaper than writing what is shared.
            let mut gone = word.load(Ordering::Relaxed) & mask;
            if gone != 0 {
                gone = word.fetch_and(!mask, Ordering::AcqRel) & mask;
            }
            while gone != 0 {
                let page = PageIndex(first.0 + u64::from(gone.trailing_zeros()));
                gone &= gone - 1;
                if page != run.end() {
                    give(run, sink);
                    run = PageRange { start: page, count: 0 };
                }
                run.count += 1;
            }
        }
        give(run, sink);
    }

    /// The words that `range` is in: the first page of each, the word, and which of its bits.
    fn words(&self, range: PageRange) -> impl Iterator<Item = (PageIndex, &AtomicU64, u64)> {
        let words = range.start.0 / PAGES_PER_WORD..range.end().0.div_ceil(PAGES_PER_WORD);
        words.filter(move |_| !range.is_empty()).map(move |number| {
            let word = PageRange { start: PageIndex(number * PAGES_PER_WORD), count: PAGES_PER_WORD };
            let part = word.intersection(range);
            let mask = u64::MAX >> (PAGES_PER_WORD - part.count) << (part.start.0 - word.start.0);
            let index =
                usize::try_from(number).expect("the words are in memory, so their numbers fit a usize");
            (word.start, &self.0[index], mask)
        })
    }
}

fn give(run: PageRange, sink: &mut dyn FnMut(PageRange)) {
    if !run.is_empty() {
        sink(run);
    }
}

impl DiscardWatcher for Discarded {
    /// Afterwards, not before: whoever takes the bit then finds the new content.
    fn after_discard(&self, range: PageRange) {
        for (_, word, mask) in self.words(range) {
            word.fetch_or(mask, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::GuestAddress;

    use super::*;
    use crate::ram::{Backing, RamRange};

    fn pages(start: u64, end: u64) -> PageRange {
        PageRange::between(PageIndex(start), PageIndex(end))
    }

    fn taken(discarded: &Discarded, range: PageRange) -> Vec<PageRange> {
        let mut found = Vec::new();
        discarded.take(range, &mut |range| found.push(range));
        found
    }

    #[test]
    fn pages_are_given_once_in_runs_across_words() {
        let range = RamRange { gpa: GuestAddress(0), size_bytes: 1 << 20 };
        let backing = Backing::Anonymous { transparent_huge_pages: false };
        let discarded = Discarded::of(&GuestRam::new(&[range], backing).unwrap());
        for gone in [pages(60, 200), pages(3, 4), pages(63, 64), pages(255, 256), pages(9, 9)] {
            discarded.after_discard(gone);
        }
        assert_eq!(taken(&discarded, pages(0, 0)), []);
        assert_eq!(taken(&discarded, pages(64, 128)), [pages(64, 128)]);
        let rest = [pages(3, 4), pages(60, 64), pages(128, 200), pages(255, 256)];
        assert_eq!(taken(&discarded, pages(0, 256)), rest);
        assert_eq!(taken(&discarded, pages(0, 256)), []);
    }
}
