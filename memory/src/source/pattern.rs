//! Content that can be told from any other: each word of a page follows from the page's number and a seed.

use super::SourceError;
use super::buffer::bytes_of;
use super::reader::{Content, PageReader};
use crate::page::{PageIndex, PageRange, PageSize};

/// What a guest's memory is: the seed of each page, or `None` for a zero page.
pub type Pattern = fn(PageIndex) -> Option<u64>;

/// A pseudorandom sequence: splitmix64.
#[derive(Debug, Clone)]
pub struct Sequence(u64);

impl Sequence {
    /// The sequence of `seed`.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number of it.
    pub const fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`; 0 where that is 0.
    pub const fn below(&mut self, bound: u64) -> u64 {
        match self.next_u64().checked_rem(bound) {
            Some(number) => number,
            None => 0,
        }
    }

    /// Whether something happens that does so `percent` times in a hundred.
    pub const fn happens(&mut self, percent: u8) -> bool {
        self.below(100) < percent as u64
    }
}

fn words(page: PageIndex, seed: u64) -> impl Iterator<Item = [u8; 8]> {
    // Mixed before it is added: neighbours' sequences must not be each other's, shifted.
    let start = Sequence::new(page.0).next_u64() ^ seed;
    let mut sequence = Sequence::new(start);
    std::iter::repeat_with(move || sequence.next_u64().to_le_bytes())
}

/// Fills `bytes` with the content of `page`.
pub fn fill_page(page: PageIndex, seed: u64, bytes: &mut [u8]) {
    for (place, word) in bytes.chunks_mut(8).zip(words(page, seed)) {
        place.copy_from_slice(&word[..place.len()]);
    }
}

/// Whether `bytes` are the content of `page`, each of them.
#[must_use]
pub fn page_is(page: PageIndex, seed: u64, bytes: &[u8]) -> bool {
    let mut chunks = bytes.chunks(8).zip(words(page, seed));
    chunks.all(|(chunk, word)| *chunk == word[..chunk.len()])
}

/// Fills `into` with the content of `range`, zero pages and all.
pub fn fill_range(pattern: Pattern, range: PageRange, into: &mut [u8]) {
    for (page, bytes) in range.pages().zip(into.chunks_mut(bytes_of(PageSize::Base4K.base_pages()))) {
        match pattern(page) {
            Some(seed) => fill_page(page, seed, bytes),
            None => bytes.fill(0),
        }
    }
}

/// Whether `bytes` are the content of `range`, each of them.
#[must_use]
pub fn range_is(pattern: Pattern, range: PageRange, bytes: &[u8]) -> bool {
    let mut pages = range.pages().zip(bytes.chunks(bytes_of(PageSize::Base4K.base_pages())));
    bytes.len() as u64 == range.bytes()
        && pages.all(|(page, bytes)| match pattern(page) {
            Some(seed) => page_is(page, seed, bytes),
            None => bytes.iter().all(|byte| *byte == 0),
        })
}

/// A reader of a pattern: the whole of a guest's memory, without a file.
#[derive(Debug, Clone, Copy)]
pub struct PatternReader {
    /// What it reads.
    pub pattern: Pattern,
    /// How many pages there are.
    pub pages: u64,
}

impl PageReader for PatternReader {
    fn name(&self) -> &'static str {
        "pattern"
    }

    fn read(&mut self, range: PageRange, into: &mut [u8]) -> Result<Content, SourceError> {
        if range.end().0 > self.pages {
            return Err(SourceError::Truncated { range });
        }
        if range.pages().all(|page| (self.pattern)(page).is_none()) {
            return Ok(Content::Zero);
        }
        fill_range(self.pattern, range, into);
        Ok(Content::Bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_itself_and_no_other() {
        let mut bytes = vec![0; 4096];
        fill_page(PageIndex(7), 1, &mut bytes);
        assert!(page_is(PageIndex(7), 1, &bytes));
        assert!(!page_is(PageIndex(8), 1, &bytes) && !page_is(PageIndex(7), 2, &bytes));
        bytes[4095] ^= 1;
        assert!(!page_is(PageIndex(7), 1, &bytes), "every byte is looked at");
    }

    #[test]
    fn a_range_is_its_pages_in_order() {
        let pattern: Pattern = |page| (page.0 % 2 == 0).then_some(5);
        let range = PageRange { start: PageIndex(3), count: 4 };
        let mut bytes = vec![9; 4 * 4096];
        fill_range(pattern, range, &mut bytes);
        assert!(range_is(pattern, range, &bytes));
        assert!(bytes[..4096].iter().all(|byte| *byte == 0) && page_is(PageIndex(4), 5, &bytes[4096..8192]));
        assert!(!range_is(pattern, range, &bytes[..4096]), "too short");
        bytes[0] = 1;
        assert!(!range_is(pattern, range, &bytes));
    }
}
