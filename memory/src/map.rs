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
//! from `Missing` to `Requested` is the one to place it, and nobody else is. A word of 32 pages is changed at once, so
//! a range of them is as many atomic steps as it has words.
//!
//! Invariants:
//!
//! - A page that is `Removed` stays so: whoever wants it is given zeros, however often it is removed again.
//! - Only who has claimed a page settles or releases it, and a page that was removed meanwhile stays removed.
//! - Whoever sees a page `Requested` may rely on it: it is settled, released or removed by whoever claimed it. So what
//!   [`PageMap::claim_all`] may yet take back is shown to nobody. Each chunk counts its attempts, odd while one is
//!   under way, and whoever reads a claim in the chunk reads again if the count was odd or has moved.

use std::sync::atomic::AtomicU64;

use crate::page::{BASE_PAGES_PER_HUGE, PageIndex, PageRange, PageSize};

mod word;

use word::{PAGES_PER_WORD, Span, Word, in_state, leading, shift, word_of};

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

/// How many words tell of one chunk, which is a huge page.
const WORDS_PER_CHUNK: usize = 16;
const _: () = assert!(WORDS_PER_CHUNK as u64 * PAGES_PER_WORD == BASE_PAGES_PER_HUGE);

/// The states of all pages of a guest.
#[derive(Debug)]
pub struct PageMap<W: Word = AtomicU64> {
    words: Box<[W]>,
    /// For each chunk, how often somebody began or ended to claim it whole.
    attempts: Box<[W]>,
    pages: u64,
}

impl PageMap {
    /// A map of `pages` pages, all of them missing.
    #[must_use]
    pub fn new(pages: u64) -> Self {
        Self::all_missing(pages)
    }
}

impl<W: Word> PageMap<W> {
    fn all_missing(pages: u64) -> Self {
        let zeros = |count| (0..count).map(|_| W::new(0)).collect();
        Self {
            words: zeros(pages.div_ceil(PAGES_PER_WORD)),
            attempts: zeros(pages.div_ceil(BASE_PAGES_PER_HUGE)),
            pages,
        }
    }

    /// How many pages it tells of.
    #[must_use]
    pub fn page_count(&self) -> u64 {
        self.pages
    }

    /// What is known of `page`.
    #[must_use]
    pub fn get(&self, page: PageIndex) -> PageState {
        assert!(page.0 < self.pages, "page {} is not in guest memory", page.0);
        PageState::of(self.read(word_of(page)) >> shift(page))
    }

    /// Claims the missing pages from the start of `range` up to the first that is not missing; gives those claimed.
    #[must_use = "what is claimed waits for whoever claimed it"]
    pub fn claim(&self, range: PageRange) -> PageRange {
        let mut claimed = PageRange { start: range.start, count: 0 };
        for span in self.spans(range) {
            let count = self.claim_in(span);
            claimed.count += count;
            if count < span.count() {
                break;
            }
        }
        claimed
    }

    /// Claims all of `range`, which is within one chunk of 2 MiB, where all of it is missing; says whether it did. If
    /// not, everything is as it was. It may also say no because somebody else tries the same at this moment.
    #[must_use = "what is claimed waits for whoever claimed it"]
    pub fn claim_all(&self, range: PageRange) -> bool {
        assert!(
            range.widened(PageSize::Huge2M).count <= BASE_PAGES_PER_HUGE,
            "{range} are in several chunks"
        );
        // A look first: readers wait for an attempt, so one that has no prospects is not made.
        let Some(first) = self.spans(range).next() else { return true };
        if !self.spans(range).all(|span| self.is_missing(span)) {
            return false;
        }
        let attempts = self.attempts_at(first.word());
        let before = attempts.load();
        if !before.is_multiple_of(2) || !attempts.replace(before, before.wrapping_add(1)) {
            return false;
        }
        let taken = self.claim_each_or_none(range);
        attempts.store(before.wrapping_add(2));
        taken
    }

    /// Says that claimed pages are in the guest. Those that were removed meanwhile stay removed. Gives how many were
    /// claimed, and are there now.
    pub fn settle(&self, range: PageRange) -> u64 {
        self.end_claims(range, PageState::Present)
    }

    /// Gives claimed pages back: they are missing again, but for those that were removed meanwhile. Gives how many were
    /// claimed. All claims in `range` have to be the caller's, or of somebody who is no more: the map does not know
    /// whose a claim is.
    pub fn release(&self, range: PageRange) -> u64 {
        self.end_claims(range, PageState::Missing)
    }

    /// Says that pages were thrown away, whatever they were.
    pub fn remove(&self, range: PageRange) {
        for span in self.spans(range) {
            self.words[span.word()].set(span.lows() * PageState::Removed.bits());
        }
    }

    /// Gives the runs of `range` that are in one state, in order; no two neighbours are in the same. Each word is
    /// looked at once: what changes meanwhile is told as it was or as it is.
    pub fn state_runs(&self, range: PageRange, mut sink: impl FnMut(PageRange, PageState)) {
        let mut last = (PageRange { start: range.start, count: 0 }, PageState::Missing);
        for span in self.spans(range) {
            for (run, state) in span.runs(self.read(span.word())) {
                if last.1 == state {
                    last.0.count += run.count;
                    continue;
                }
                if !last.0.is_empty() {
                    sink(last.0, last.1);
                }
                last = (run, state);
            }
        }
        if !last.0.is_empty() {
            sink(last.0, last.1);
        }
    }

    /// The first run of `range` that is in `state`; an empty one where there is none.
    #[must_use]
    pub fn first_run(&self, range: PageRange, state: PageState) -> PageRange {
        let mut first = PageRange { start: range.end(), count: 0 };
        self.state_runs(range, |run, its_state| {
            if first.is_empty() && its_state == state {
                first = run;
            }
        });
        first
    }

    /// The first page from `start` on that is missing, up to `end`.
    #[must_use]
    pub fn next_missing(&self, start: PageIndex, end: PageIndex) -> Option<PageIndex> {
        let range = PageRange::between(start, PageIndex(end.0.min(self.pages)));
        let first_in = |span: Span| span.first_in(in_state(self.read(span.word()), PageState::Missing));
        self.spans(range).find_map(first_in)
    }

    /// How many pages are in state `state`.
    #[must_use]
    pub fn count(&self, state: PageState) -> u64 {
        let all = PageRange { start: PageIndex(0), count: self.pages };
        self.spans(all).map(|span| pages_in(in_state(self.read(span.word()), state) & span.lows())).sum()
    }

    fn spans(&self, range: PageRange) -> impl Iterator<Item = Span> + Clone + use<W> {
        assert!(range.is_empty() || range.end().0 <= self.pages, "{range} are not all in guest memory");
        Span::all_of(range)
    }

    /// A word without claims that may yet be taken back.
    fn read(&self, index: usize) -> u64 {
        loop {
            let before = self.attempts_at(index).load();
            let bits = self.words[index].load();
            let is_claimed = in_state(bits, PageState::Requested) != 0;
            if !is_claimed || before.is_multiple_of(2) && self.attempts_at(index).load() == before {
                return bits;
            }
            W::pause();
        }
    }

    fn attempts_at(&self, index: usize) -> &W {
        &self.attempts[index / WORDS_PER_CHUNK]
    }

    /// Claims what is missing at the start of `span`; gives how much that is.
    fn claim_in(&self, span: Span) -> u64 {
        loop {
            let bits = self.read(span.word());
            let taken = leading(span.lows(), in_state(bits, PageState::Missing));
            if taken == 0 || self.words[span.word()].replace(bits, bits | taken) {
                return pages_in(taken);
            }
        }
    }

    fn is_missing(&self, span: Span) -> bool {
        in_state(self.words[span.word()].load(), PageState::Missing) & span.lows() == span.lows()
    }

    /// Claims span after span, and takes back what it has when one of them cannot be had.
    fn claim_each_or_none(&self, range: PageRange) -> bool {
        let mut claimed = PageRange { start: range.start, count: 0 };
        for span in self.spans(range) {
            let word = &self.words[span.word()];
            let mut bits = word.load();
            while in_state(bits, PageState::Missing) & span.lows() == span.lows() {
                if word.replace(bits, bits | span.lows()) {
                    claimed.count += span.count();
                    break;
                }
                bits = word.load();
            }
            if claimed.end() != span.end() {
                self.release(claimed);
                return false;
            }
        }
        true
    }

    /// Moves those pages that are `Requested` to another state; gives how many.
    fn end_claims(&self, range: PageRange, to: PageState) -> u64 {
        let end_in = |span: Span| {
            let word = &self.words[span.word()];
            loop {
                let bits = word.load();
                let claimed = in_state(bits, PageState::Requested) & span.lows();
                let ended = (bits & !claimed) | (claimed * to.bits());
                if claimed == 0 || word.replace(bits, ended) {
                    return pages_in(claimed);
                }
            }
        };
        self.spans(range).map(end_in).sum()
    }
}

/// How many pages have their lower bit in `lows`.
fn pages_in(lows: u64) -> u64 {
    u64::from(lows.count_ones())
}

#[cfg(test)]
mod interleavings;
#[cfg(test)]
mod tests;
