//! One word of the map, and the pages of a range that are in it.
//!
//! The map is generic over its atomics so that its interleavings are explored by ordinary tests: loom's atomics are
//! another word. The trait is sealed by this module being private.

use std::iter;
use std::sync::atomic::{AtomicU64, Ordering};

use super::PageState;
use crate::page::{PageIndex, PageRange};

/// How many pages one word holds.
pub(super) const PAGES_PER_WORD: u64 = 32;
/// The lower bit of each pair: a word in which every page has state 1.
pub(super) const LOW_BITS: u64 = 0x5555_5555_5555_5555;

/// An atomic word. Loads acquire, stores release: whoever sees a page's state sees what was done before it was set.
pub trait Word: Send + Sync {
    /// One that holds `bits`.
    fn new(bits: u64) -> Self;
    /// What it holds.
    fn load(&self) -> u64;
    /// Makes it hold `bits`.
    fn store(&self, bits: u64);
    /// Makes it hold `to` if it holds `from`; says whether it did.
    fn replace(&self, from: u64, to: u64) -> bool;
    /// Sets these bits, whatever the others are.
    fn set(&self, bits: u64);
    /// What to do between two looks at it.
    fn pause();
}

impl Word for AtomicU64 {
    fn new(bits: u64) -> Self {
        Self::new(bits)
    }

    fn load(&self) -> u64 {
        self.load(Ordering::Acquire)
    }

    fn store(&self, bits: u64) {
        self.store(bits, Ordering::Release);
    }

    fn replace(&self, from: u64, to: u64) -> bool {
        self.compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    fn set(&self, bits: u64) {
        self.fetch_or(bits, Ordering::AcqRel);
    }

    fn pause() {
        std::hint::spin_loop();
    }
}

/// Pages that are in the same word, at least one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span(PageRange);

impl Span {
    /// The spans that make up `range`, in order.
    pub(super) fn all_of(range: PageRange) -> impl Iterator<Item = Self> + Clone {
        let mut rest = range;
        iter::from_fn(move || {
            let (now, later) = rest.split_at(PAGES_PER_WORD - rest.start.0 % PAGES_PER_WORD);
            rest = later;
            (!now.is_empty()).then_some(Self(now))
        })
    }

    /// How many pages it is.
    pub(super) fn count(self) -> u64 {
        self.0.count
    }

    /// The number after that of its last page.
    pub(super) fn end(self) -> PageIndex {
        self.0.end()
    }

    /// Which word of the map it is in.
    pub(super) fn word(self) -> usize {
        word_of(self.0.start)
    }

    /// The lower bit of each of its pages.
    pub(super) fn lows(self) -> u64 {
        (LOW_BITS >> (2 * (PAGES_PER_WORD - self.0.count))) << shift(self.0.start)
    }

    /// The first of its pages that has its lower bit in `lows`.
    pub(super) fn first_in(self, lows: u64) -> Option<PageIndex> {
        let found = lows & self.lows();
        let offset = u64::from(found.trailing_zeros()) / 2;
        (found != 0).then(|| PageIndex(self.0.start.0 - self.0.start.0 % PAGES_PER_WORD + offset))
    }

    /// Its runs of pages that have one state in `bits`, in order.
    pub(super) fn runs(self, bits: u64) -> impl Iterator<Item = (PageRange, PageState)> {
        let mut rest = self.0;
        iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let bits = bits >> shift(rest.start);
            let state = PageState::of(bits);
            let others = !in_state(bits, state) & LOW_BITS;
            let (run, later) = rest.split_at(u64::from(others.trailing_zeros()) / 2);
            rest = later;
            Some((run, state))
        })
    }
}

/// Which word of the map `page` is in.
pub(super) fn word_of(page: PageIndex) -> usize {
    usize::try_from(page.0 / PAGES_PER_WORD).expect("a word for each page fits memory")
}

/// Where in its word the pair of `page` is.
pub(super) const fn shift(page: PageIndex) -> u64 {
    page.0 % PAGES_PER_WORD * 2
}

/// The lower bit of each page that is in state `state` in `bits`.
pub(super) const fn in_state(bits: u64, state: PageState) -> u64 {
    let different = bits ^ (LOW_BITS * state.bits());
    !(different | different >> 1) & LOW_BITS
}

/// Those of `lows` that are before the first that is not in `these`.
pub(super) const fn leading(lows: u64, these: u64) -> u64 {
    let others = lows & !these;
    // The bits below the lowest of the others; all of them where there are none.
    lows & !others & (others & others.wrapping_neg()).wrapping_sub(1)
}
