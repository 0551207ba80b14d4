//! The checksums of a memory.

use crate::page::{PageIndex, PageRange};
use crate::source::SourceError;
use crate::source::buffer::{PageBuffer, bytes_of};
use crate::source::reader::{Content, PageReader};

/// How many pages may have one checksum: a huge page's. Every chunk of which only a part is wanted is read whole.
pub const CHUNK_PAGES_MAX: u64 = 512;

/// Why a table is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChecksumsError {
    /// The chunks are of no size that can be checked.
    #[error("chunks of {chunk_pages} pages cannot be checked: take 1 to {CHUNK_PAGES_MAX}")]
    ChunkPages {
        /// Their size.
        chunk_pages: u64,
    },
    /// The table is not as long as the memory.
    #[error(
        "{actual} checksums are not those of {pages} pages: the table is of another memory, or was cut off"
    )]
    Length {
        /// How many there are.
        actual: usize,
        /// How many pages there are.
        pages: u64,
    },
}

/// A crc32c for each chunk of a memory. The last chunk ends where the memory does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checksums {
    pages: PageRange,
    chunk_pages: u64,
    sums: Vec<u32>,
    /// The checksums of a whole chunk and of the last one, were they zero.
    zero: (u32, u32),
}

impl Checksums {
    /// A table that was saved: of a memory of `pages` pages, in chunks of `chunk_pages`.
    ///
    /// # Errors
    ///
    /// [`ChecksumsError`] where it cannot be one.
    pub fn from_sums(pages: u64, chunk_pages: u64, sums: Vec<u32>) -> Result<Self, ChecksumsError> {
        if chunk_pages == 0 || chunk_pages > CHUNK_PAGES_MAX {
            return Err(ChecksumsError::ChunkPages { chunk_pages });
        }
        if sums.len() as u64 != pages.div_ceil(chunk_pages) {
            return Err(ChecksumsError::Length { actual: sums.len(), pages });
        }
        let zeros = PageBuffer::new(chunk_pages);
        let zero_of = |pages| crc32c::crc32c(zeros.first(pages));
        let last_pages = if pages.is_multiple_of(chunk_pages) { chunk_pages } else { pages % chunk_pages };
        let pages = PageRange { start: PageIndex(0), count: pages };
        Ok(Self { pages, chunk_pages, sums, zero: (zero_of(chunk_pages), zero_of(last_pages)) })
    }

    /// The checksum of each of `pages` pages, as `reader` reads them.
    ///
    /// # Errors
    ///
    /// What the reader says.
    pub fn of<R: PageReader>(reader: &mut R, pages: u64) -> Result<Self, SourceError> {
        Self::of_chunks(reader, pages, 1)
    }

    /// The same in chunks of `chunk_pages`, or of what is nearest to that and can be checked: a smaller table, for
    /// who reads in bulk. Who wants one page reads its chunk for it, so a source of single pages takes small ones.
    ///
    /// # Errors
    ///
    /// What the reader says.
    pub fn of_chunks<R: PageReader>(
        reader: &mut R,
        pages: u64,
        chunk_pages: u64,
    ) -> Result<Self, SourceError> {
        let chunk_pages = chunk_pages.clamp(1, CHUNK_PAGES_MAX);
        let mut buffer = PageBuffer::new(CHUNK_PAGES_MAX);
        let mut sums = Vec::new();
        let mut rest = PageRange { start: PageIndex(0), count: pages };
        while !rest.is_empty() {
            // As many whole chunks as fit.
            let (now, later) = rest.split_at(CHUNK_PAGES_MAX - CHUNK_PAGES_MAX % chunk_pages);
            let bytes = buffer.first_mut(now.count);
            if reader.read(now, bytes)? == Content::Zero {
                bytes.fill(0);
            }
            sums.extend(bytes.chunks(bytes_of(chunk_pages)).map(crc32c::crc32c));
            rest = later;
        }
        Ok(Self::from_sums(pages, chunk_pages, sums).expect("there is one for each chunk"))
    }

    /// The pages of the memory.
    #[must_use]
    pub fn pages(&self) -> PageRange {
        self.pages
    }

    /// How many pages have one checksum.
    #[must_use]
    pub fn chunk_pages(&self) -> u64 {
        self.chunk_pages
    }

    /// The checksums, to be saved.
    #[must_use]
    pub fn sums(&self) -> &[u32] {
        &self.sums
    }

    /// The chunk that `page` is in.
    pub(super) fn chunk_of(&self, page: PageIndex) -> PageRange {
        let start = PageIndex(page.0 - page.0 % self.chunk_pages);
        PageRange { start, count: self.chunk_pages }.intersection(self.pages)
    }

    /// Whether `bytes` are what `chunk` was.
    pub(super) fn is_of(&self, chunk: PageRange, bytes: &[u8]) -> bool {
        self.sum_of(chunk) == crc32c::crc32c(bytes)
    }

    /// Whether `chunk` was zero.
    pub(super) fn is_zero(&self, chunk: PageRange) -> bool {
        let (whole, last) = self.zero;
        self.sum_of(chunk) == if chunk.end() == self.pages.end() { last } else { whole }
    }

    fn sum_of(&self, chunk: PageRange) -> u32 {
        let index = usize::try_from(chunk.start.0 / self.chunk_pages).expect("the table is in memory");
        self.sums[index]
    }
}
