//! What is known of each page of a guest: two bits, changed atomically.
//!
//! ```text
//!              claim                   settle
//!   Missing ──────────▶ Requested ──────────────▶ Present
//!      ▲                    │                        │
//!      └──────release───────┤                        │
//!                           └──────── remove ────────┴──▶ Removed
//! ```
//!
//! Several threads place pages: the one that serves faults, and those that fill in the background. Whoever moves a page
//! from `Missing` to `Requested` is the one to place it, and nobody else is.
//!
//! Invariants:
//!
//! - A page that is `Removed` stays so: whoever wants it is given zeros, however often it is removed again.
//! - Only who has claimed a page settles or releases it, and a page that was removed meanwhile stays removed.

#[cfg(not(loom))]
use std::sync::atomic::{AtomicU64, Ordering};

#[cfg(loom)]
use loom::sync::atomic::{AtomicU64, Ordering};

use crate::page::{PageIndex, PageRange};

/// What is known of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PageState {
    /// It is with its source.
    Missing,
    /// Somebody fetches it.
    Requested,
    /// It is in the guest.
    Present,
    /// The guest, or a balloon, has thrown it away: it is zero.
    Removed,
}

impl PageState {
    const fn bits(self) -> u64 {
        match self {
            Self::Missing => 0,
            Self::Requested => 1,
            Self::Present => 2,
            Self::Removed => 3,
        }
    }

    const fn of(bits: u64) -> Self {
        match bits & 3 {
            0 => Self::Missing,
            1 => Self::Requested,
            2 => Self::Present,
            _ => Self::Removed,
        }
    }
}

/// How many pages one word holds.
const PAGES_PER_WORD: u64 = 32;
/// The lower bit of each pair: a word in which every page has state 1.
const LOW_BITS: u64 = 0x5555_5555_5555_5555;

/// The states of all pages of a guest.
#[derive(Debug)]
pub struct PageMap {
    words: Box<[AtomicU64]>,
    pages: u64,
}

impl PageMap {
    /// A map of `pages` pages, all of them missing.
    #[must_use]
    pub fn new(pages: u64) -> Self {
        let words = (0..pages.div_ceil(PAGES_PER_WORD)).map(|_| AtomicU64::new(0)).collect();
        Self { words, pages }
    }

    /// How many pages it tells of.
    #[must_use]
    pub fn page_count(&self) -> u64 {
        self.pages
    }

    /// What is known of `page`.
    #[must_use]
    pub fn get(&self, page: PageIndex) -> PageState {
        let (word, shift) = self.place(page);
        PageState::of(word.load(Ordering::Acquire) >> shift)
    }

    /// Claims the missing pages from the start of `range` up to the first that is not missing; gives those claimed.
    #[must_use = "what is claimed waits for whoever claimed it"]
    pub fn claim(&self, range: PageRange) -> PageRange {
        let taken =
            range.pages().take_while(|page| self.change(*page, PageState::Missing, PageState::Requested));
        PageRange { start: range.start, count: taken.count() as u64 }
    }

    /// Says that claimed pages are in the guest. Those that were removed meanwhile stay removed.
    pub fn settle(&self, range: PageRange) {
        for page in range.pages() {
            self.change(page, PageState::Requested, PageState::Present);
        }
    }

    /// Gives claimed pages back: they are missing again, but for those that were removed meanwhile.
    pub fn release(&self, range: PageRange) {
        for page in range.pages() {
            self.change(page, PageState::Requested, PageState::Missing);
        }
    }

    /// Says that pages were thrown away, whatever they were.
    pub fn remove(&self, range: PageRange) {
        for page in range.pages() {
            let (word, shift) = self.place(page);
            word.fetch_or(PageState::Removed.bits() << shift, Ordering::AcqRel);
        }
    }

    /// The first page from `start` on that is missing, up to `end`.
    #[must_use]
    pub fn next_missing(&self, start: PageIndex, end: PageIndex) -> Option<PageIndex> {
        let end = end.0.min(self.pages);
        let mut page = start.0;
        while page < end {
            let (word, shift) = self.place(PageIndex(page));
            let bits = word.load(Ordering::Acquire);
            // A pair is missing where neither of its bits is set.
            let missing = !(bits | bits >> 1) & LOW_BITS & (u64::MAX << shift);
            let word_start = page - page % PAGES_PER_WORD;
            if missing != 0 {
                let found = word_start + u64::from(missing.trailing_zeros()) / 2;
                return (found < end).then_some(PageIndex(found));
            }
            page = word_start + PAGES_PER_WORD;
        }
        None
    }

    /// How many pages are in state `state`.
    #[must_use]
    pub fn count(&self, state: PageState) -> u64 {
        let pattern = LOW_BITS * state.bits();
        let in_word = |bits: u64| {
            let different = bits ^ pattern;
            u64::from((!(different | different >> 1) & LOW_BITS).count_ones())
        };
        let all: u64 = self.words.iter().map(|word| in_word(word.load(Ordering::Acquire))).sum();
        // The last word may be longer than the map; what is past the end is missing for ever.
        let past_the_end = self.words.len() as u64 * PAGES_PER_WORD - self.pages;
        all - if state == PageState::Missing { past_the_end } else { 0 }
    }

    /// Moves one page from one state to another; says whether it was in the first.
    fn change(&self, page: PageIndex, from: PageState, to: PageState) -> bool {
        let (word, shift) = self.place(page);
        let mask = 3 << shift;
        let mut bits = word.load(Ordering::Acquire);
        while bits & mask == from.bits() << shift {
            let changed = bits & !mask | to.bits() << shift;
            match word.compare_exchange_weak(bits, changed, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return true,
                Err(now) => bits = now,
            }
        }
        false
    }

    fn place(&self, page: PageIndex) -> (&AtomicU64, u64) {
        assert!(page.0 < self.pages, "page {} is not in guest memory", page.0);
        let index = usize::try_from(page.0 / PAGES_PER_WORD).expect("a word for each page fits memory");
        (&self.words[index], page.0 % PAGES_PER_WORD * 2)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;

    fn pages(start: u64, count: u64) -> PageRange {
        PageRange { start: PageIndex(start), count }
    }

    #[test]
    fn a_claim_ends_where_somebody_else_has_one() {
        let map = PageMap::new(100);
        assert_eq!(map.claim(pages(40, 8)), pages(40, 8));
        assert_eq!(map.claim(pages(30, 20)), pages(30, 10));
        assert!(map.claim(pages(44, 4)).is_empty());
        map.settle(pages(40, 8));
        map.release(pages(30, 10));
        assert_eq!(
            (map.get(PageIndex(30)), map.get(PageIndex(40))),
            (PageState::Missing, PageState::Present)
        );
    }

    #[test]
    fn what_was_removed_while_it_was_fetched_stays_removed() {
        let map = PageMap::new(64);
        assert_eq!(map.claim(pages(0, 4)).count, 4);
        map.remove(pages(1, 1));
        map.settle(pages(0, 2));
        map.release(pages(1, 3));
        let states = [0, 1, 2, 3].map(|page| map.get(PageIndex(page)));
        assert_eq!(states, [PageState::Present, PageState::Removed, PageState::Missing, PageState::Missing]);
    }

    #[test]
    fn two_bits_a_page_are_all_it_takes() {
        let map = PageMap::new(1 << 20);
        assert_eq!(size_of_val(&*map.words), (1 << 20) / 4);
    }

    #[test]
    fn every_page_is_claimed_once_whoever_asks() {
        let map = Arc::new(PageMap::new(10_000));
        let claimers: Vec<_> = (0..4_u64)
            .map(|thread| {
                let map = Arc::clone(&map);
                std::thread::spawn(move || {
                    let mut claimed = 0;
                    let step = 7 + thread;
                    for start in (0..10_000 - step).step_by(3) {
                        claimed += map.claim(pages(start, step)).count;
                    }
                    claimed
                })
            })
            .collect();
        let claimed: u64 = claimers.into_iter().map(|claimer| claimer.join().unwrap()).sum();
        assert_eq!(claimed, map.count(PageState::Requested));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Claim(u64, u64),
        Settle(u64, u64),
        Release(u64, u64),
        Remove(u64, u64),
        NextMissing(u64, u64),
    }

    const PAGES: u64 = 75;

    fn step() -> impl Strategy<Value = Step> {
        let range = || (0..PAGES).prop_flat_map(|start| (Just(start), 0..=PAGES - start));
        prop_oneof![
            range().prop_map(|(start, count)| Step::Claim(start, count)),
            range().prop_map(|(start, count)| Step::Settle(start, count)),
            range().prop_map(|(start, count)| Step::Release(start, count)),
            range().prop_map(|(start, count)| Step::Remove(start, count)),
            range().prop_map(|(start, count)| Step::NextMissing(start, count)),
        ]
    }

    proptest! {
        #[test]
        fn it_is_a_vector_of_states(steps in proptest::collection::vec(step(), 0..60)) {
            let map = PageMap::new(PAGES);
            let mut model = vec![PageState::Missing; usize::try_from(PAGES).unwrap()];
            for step in steps {
                let slice = |start: u64, count: u64| {
                    usize::try_from(start).unwrap()..usize::try_from(start + count).unwrap()
                };
                let replace = |model: &mut [PageState], from, to| {
                    model.iter_mut().filter(|state| **state == from).for_each(|state| *state = to);
                };
                match step {
                    Step::Claim(start, count) => {
                        let model = &mut model[slice(start, count)];
                        let expected = model.iter().take_while(|state| **state == PageState::Missing).count();
                        model[..expected].fill(PageState::Requested);
                        prop_assert_eq!(map.claim(pages(start, count)).count, expected as u64);
                    }
                    Step::Settle(start, count) => {
                        replace(&mut model[slice(start, count)], PageState::Requested, PageState::Present);
                        map.settle(pages(start, count));
                    }
                    Step::Release(start, count) => {
                        replace(&mut model[slice(start, count)], PageState::Requested, PageState::Missing);
                        map.release(pages(start, count));
                    }
                    Step::Remove(start, count) => {
                        model[slice(start, count)].fill(PageState::Removed);
                        map.remove(pages(start, count));
                    }
                    Step::NextMissing(start, count) => {
                        let found = model[slice(start, count)].iter().position(|s| *s == PageState::Missing);
                        let expected = found.map(|offset| PageIndex(start + offset as u64));
                        prop_assert_eq!(map.next_missing(PageIndex(start), PageIndex(start + count)), expected);
                    }
                }
                for (page, state) in (0..).zip(&model) {
                    prop_assert_eq!(map.get(PageIndex(page)), *state);
                }
                for state in [PageState::Missing, PageState::Requested, PageState::Present, PageState::Removed] {
                    let expected = model.iter().filter(|it| **it == state).count() as u64;
                    prop_assert_eq!(map.count(state), expected);
                }
            }
        }
    }
}
