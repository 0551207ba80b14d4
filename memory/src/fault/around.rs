//! Which pages to prefetch around one that is demanded. Pure: no I/O, no clock, no kernel.
//!
//! ```text
//!   a fault from nowhere        ▼
//!                        |  16 pages  |                          aligned around it, and a stream begins
//!   just behind that                   ▼
//!                        | the stream |   32 pages   |           on it goes, with twice as many
//!   and so on, in either direction                    ▼
//!                        |        the stream         |  64 …     up to a huge page
//! ```
//!
//! A guest that walks through its memory walks as several vCPUs do at once, so a few streams are followed; the one that
//! was touched longest ago gives way to a new one. A stream that has come to 512 pages asks for whole chunks of 2 MiB,
//! which can be moved in as huge pages.
//!
//! Invariants:
//!
//! - A window has the page in it that was demanded, is inside the RAM, and is no longer than the longest there may be.
//! - It is what is new of a range that is aligned to its own size, a power of two: so windows do not straddle chunks.
//! - A fault that continues no stream gets the shortest window.
//! - At most [`STREAMS_MAX`] streams are followed, whatever the guest does.

use crate::page::{BASE_PAGES_PER_HUGE, PageIndex, PageRange, PageSize};

/// How many streams are followed.
pub const STREAMS_MAX: usize = 8;

/// How much to prefetch around a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AroundPolicy {
    /// Nothing.
    Off,
    /// More, the longer the guest walks on in one direction. Both are rounded up to powers of two, and are a huge page
    /// at most.
    Adaptive {
        /// How many pages a fault from nowhere gets.
        pages_min: u64,
        /// How many pages a fault gets at most.
        pages_max: u64,
    },
}

impl Default for AroundPolicy {
    fn default() -> Self {
        Self::Adaptive { pages_min: 16, pages_max: BASE_PAGES_PER_HUGE }
    }
}

/// Somebody walks through memory.
#[derive(Debug, Clone, Copy)]
struct Stream {
    /// The window that it had last.
    window: PageRange,
    /// How long that window is before anything is cut off from it.
    pages: u64,
}

impl Stream {
    /// Whether `page` is just behind its window, in either direction; at most `slack` pages may be left out, as not
    /// every page between is always touched, or missing.
    fn is_continued_by(&self, page: PageIndex, slack: u64) -> bool {
        let end = self.window.end();
        let ahead = PageRange { start: end, count: slack };
        let start = PageIndex(self.window.start.0.saturating_sub(slack));
        ahead.contains(page) || PageRange::between(start, self.window.start).contains(page)
    }
}

/// Follows the faults of a guest, and says what it may want next.
#[derive(Debug)]
pub struct FaultAround {
    /// The shortest and the longest window; `None` where there are none.
    pages: Option<(u64, u64)>,
    ram: PageRange,
    /// What is followed, that which was touched last at the end.
    streams: Vec<Stream>,
}

impl FaultAround {
    /// One for a guest with `ram_pages` pages.
    #[must_use]
    pub fn new(policy: AroundPolicy, ram_pages: u64) -> Self {
        let power = |pages: u64| pages.clamp(1, BASE_PAGES_PER_HUGE).next_power_of_two();
        let pages = match policy {
            AroundPolicy::Off => None,
            AroundPolicy::Adaptive { pages_min, pages_max } => {
                Some((power(pages_min), power(pages_max.max(pages_min))))
            }
        };
        let ram = PageRange { start: PageIndex(0), count: ram_pages };
        Self { pages, ram, streams: Vec::with_capacity(STREAMS_MAX) }
    }

    /// Somebody waits for `page`: the pages to ask for with it, of which some may be there or asked for already. None,
    /// not even `page`, where nothing is to be prefetched.
    pub fn window(&mut self, page: PageIndex) -> PageRange {
        let Some((pages_min, pages_max)) = self.pages.filter(|_| self.ram.contains(page)) else {
            return PageRange { start: page, count: 0 };
        };
        let is_continued = |stream: &Stream| stream.is_continued_by(page, pages_min);
        if let Some(stream) = self.take(is_continued) {
            return self.follow(page, (stream.pages * 2).min(pages_max), stream.window);
        }
        if let Some(stream) = self.take(|stream| stream.window.contains(page)) {
            // On its way already, so nothing is known of where the stream goes. What is around it is named again in
            // case it got lost on the way.
            self.streams.push(stream);
            return aligned(page, pages_min).intersection(self.ram);
        }
        self.follow(page, pages_min, PageRange { start: PageIndex(0), count: 0 })
    }

    /// Whether `window` is a whole chunk of 2 MiB, so that a huge page can be moved in for it.
    #[must_use]
    pub const fn is_chunk(window: PageRange) -> bool {
        window.count == BASE_PAGES_PER_HUGE && window.is_whole(PageSize::Huge2M)
    }

    fn take(&mut self, is_it: impl FnMut(&Stream) -> bool) -> Option<Stream> {
        let found = self.streams.iter().rposition(is_it)?;
        Some(self.streams.remove(found))
    }

    /// The window of `pages` pages that `page` is in, without what `last` had: where the stream is now.
    fn follow(&mut self, page: PageIndex, pages: u64, last: PageRange) -> PageRange {
        let all = aligned(page, pages).intersection(self.ram);
        let window = if page < last.start {
            PageRange::between(all.start, all.end().min(last.start))
        } else {
            PageRange::between(all.start.max(last.end()), all.end())
        };
        if self.streams.len() == STREAMS_MAX {
            self.streams.remove(0);
        }
        self.streams.push(Stream { window, pages });
        window
    }
}

/// The range of `pages` pages, a power of two, that `page` is in and that is aligned to its size.
const fn aligned(page: PageIndex, pages: u64) -> PageRange {
    PageRange { start: PageIndex(page.0 - page.0 % pages), count: pages }
}

#[cfg(test)]
mod tests;
