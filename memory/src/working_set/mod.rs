//! The pages that a guest wants first after a restore: known from one restore, placed in bulk by the next.
//!
//! ```text
//!   restore n      record: ranges as they were wanted ──┐
//!                                                       ├─ grown ──▶ WorkingSet ──to_bytes──▶ a file
//!   restores < n   WorkingSet ──────────────────────────┘                │
//!                                                                        ▼ from_bytes
//!   restore n+1    pages are placed before they are wanted ◀── plan ── WorkingSet
//! ```
//!
//! It is kept by chunks of 2 MiB, in the order in which they are to be placed, and of each chunk the pages. What is placed
//! ahead is not wanted any more, so that one cannot tell whether it still would be: nothing that the kernel keeps says so
//! of a page that was placed by userfaultfd, as that is marked accessed from the start. So a set grows by what was
//! missed, and shrinks only where it gets too large.
//!
//! Invariants:
//!
//! - All of it is pure: no file, no clock, no kernel.
//! - A set is within its memory and its limits, and has no chunk twice and none without a page, wherever it came from.
//! - What a file says is believed only of the snapshot and the memory that it was written for.

mod format;
mod plan;

pub use format::{FILE_BYTES_MAX, FormatError};
pub use plan::{RANGES_MAX, WHOLE_FROM_PAGES};

use std::collections::HashMap;

use crate::page::{BASE_PAGES_PER_HUGE, PageIndex, PageRange, PageSize};

/// How many chunks of 2 MiB a set has pages of at most: 72 bytes each in its file.
pub const CHUNKS_MAX: usize = 8192;

/// How many pages a set has at most: 1 GiB. It is never more than half of the memory either: who wants more of it wants
/// all of it, and the background fill brings that as soon.
pub const PAGES_MAX: u64 = 1 << 18;

const WORDS: usize = 8;
const _: () = assert!(WORDS as u64 * u64::BITS as u64 == BASE_PAGES_PER_HUGE, "a bit for each page");

/// Pages of one chunk of 2 MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Chunk {
    /// Which: its first page is this times 512.
    number: u64,
    /// A bit for each page.
    pages: [u64; WORDS],
}

impl Chunk {
    fn empty(number: u64) -> Self {
        Self { number, pages: [0; WORDS] }
    }

    fn range(&self) -> PageRange {
        PageRange { start: PageIndex(self.number * BASE_PAGES_PER_HUGE), count: BASE_PAGES_PER_HUGE }
    }

    fn count(&self) -> u64 {
        self.pages.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// Adds pages that are in it.
    fn add(&mut self, range: PageRange) {
        for page in range.pages() {
            let (word, bit) = place(page);
            self.pages[word] |= bit;
        }
    }

    fn has(&self, page: PageIndex) -> bool {
        let (word, bit) = place(page);
        self.pages[word] & bit != 0
    }

    fn merge(&mut self, other: &Self) {
        self.pages.iter_mut().zip(&other.pages).for_each(|(word, more)| *word |= more);
    }
}

/// Which word of its chunk has the bit of `page`, and the bit.
fn place(page: PageIndex) -> (usize, u64) {
    let within = page.0 % BASE_PAGES_PER_HUGE;
    let word = usize::try_from(within / u64::from(u64::BITS)).expect("a chunk has few words");
    (word, 1 << (within % u64::from(u64::BITS)))
}

/// Pages that are expected to be wanted, in the order in which they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkingSet {
    ram: PageRange,
    chunks: Vec<Chunk>,
}

impl WorkingSet {
    /// None yet, of a memory of `ram_pages` pages.
    #[must_use]
    pub fn empty(ram_pages: u64) -> Self {
        Self { ram: PageRange { start: PageIndex(0), count: ram_pages }, chunks: Vec::new() }
    }

    /// How many pages there are.
    #[must_use]
    pub fn page_count(&self) -> u64 {
        self.chunks.iter().map(Chunk::count).sum()
    }

    /// With what was `wanted` in a restore that had placed this set ahead, in the order in which it was.
    ///
    /// Chunks that came too late come first, in the order in which they were wanted; then those that were in time, as
    /// they were; then new ones. Where that is too much, new chunks have at least half of the room, and what is placed
    /// last is left out: it is what is wanted latest, and is wanted soonest from the fill.
    #[must_use]
    pub fn grown(&self, wanted: &[PageRange]) -> Self {
        let wanted = by_chunk(wanted, self.ram);
        let mut known: HashMap<u64, Chunk> = self.chunks.iter().map(|chunk| (chunk.number, *chunk)).collect();
        let (mut chunks, mut new) = (Vec::new(), Vec::new());
        for mut chunk in wanted {
            match known.remove(&chunk.number) {
                Some(before) => {
                    chunk.merge(&before);
                    chunks.push(chunk);
                }
                None => new.push(chunk),
            }
        }
        chunks.extend(self.chunks.iter().filter(|chunk| known.contains_key(&chunk.number)));
        let all = self.room();
        all.without(all.half().taken_by(&new)).cut(&mut chunks);
        chunks.append(&mut new);
        all.cut(&mut chunks);
        Self { ram: self.ram, chunks }
    }

    fn room(&self) -> Room {
        Room { pages: PAGES_MAX.min(self.ram.count / 2), chunks: CHUNKS_MAX }
    }
}

/// How much there is room for.
#[derive(Debug, Clone, Copy)]
struct Room {
    pages: u64,
    chunks: usize,
}

impl Room {
    fn half(self) -> Self {
        Self { pages: self.pages / 2, chunks: self.chunks / 2 }
    }

    /// What `chunks` take of it, as far as they fit.
    fn taken_by(self, chunks: &[Chunk]) -> Self {
        let pages: u64 = chunks.iter().map(Chunk::count).sum();
        Self { pages: self.pages.min(pages), chunks: self.chunks.min(chunks.len()) }
    }

    fn without(self, taken: Self) -> Self {
        Self { pages: self.pages - taken.pages, chunks: self.chunks - taken.chunks }
    }

    /// Leaves out the chunks behind the last that fits.
    fn cut(self, chunks: &mut Vec<Chunk>) {
        let mut pages = 0;
        let mut fits = |chunk: &Chunk| {
            pages += chunk.count();
            pages <= self.pages
        };
        let fitting = chunks.iter().take(self.chunks).take_while(|chunk| fits(chunk)).count();
        chunks.truncate(fitting);
    }
}

/// The pages of `ranges` that are in `ram`, by chunks, in the order in which those come first.
fn by_chunk(ranges: &[PageRange], ram: PageRange) -> Vec<Chunk> {
    let (mut chunks, mut places) = (Vec::<Chunk>::new(), HashMap::new());
    for range in ranges {
        let mut rest = range.intersection(ram);
        while !rest.is_empty() {
            let chunk = rest.start.containing(PageSize::Huge2M);
            let number = chunk.start.0 / BASE_PAGES_PER_HUGE;
            let place = *places.entry(number).or_insert(chunks.len());
            if place == chunks.len() {
                chunks.push(Chunk::empty(number));
            }
            chunks[place].add(rest.intersection(chunk));
            rest = PageRange::between(chunk.end(), rest.end());
        }
    }
    chunks
}

#[cfg(test)]
mod tests;
