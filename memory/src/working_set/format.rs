//! A working set as a file.
//!
//! ```text
//!   0      magic, 8 bytes
//!   8      format version, 4 bytes
//!   12     crc32c of all that follows, 4 bytes
//!   16     id of the snapshot, 16 bytes
//!   32     pages of the memory, 8 bytes
//!   40     chunks, each the number of one and its 512 bits: 72 bytes; as many as the file is long
//! ```
//!
//! All numbers are little-endian. It is a hint and no more: what is wrong with it is told, and it is done without.

use std::collections::HashSet;

use super::{CHUNKS_MAX, Chunk, WORDS, WorkingSet};
use crate::page::{PageIndex, PageRange};

const MAGIC: [u8; 8] = *b"FLWSET\r\n";
const VERSION: u32 = 1;
const CRC_AT: usize = 12;
const SUMMED_FROM: usize = 16;
const CHUNKS_FROM: usize = 40;
const CHUNK_BYTES: usize = 8 * (1 + WORDS);

/// How long a file is at most.
pub const FILE_BYTES_MAX: usize = CHUNKS_FROM + CHUNKS_MAX * CHUNK_BYTES;

/// Why a file is not taken for a working set. It is done without, and another is written in its place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// Its length is none that such a file has.
    #[error("it is cut off, or longer than a working set is: it is written anew, or can be removed")]
    Length,
    /// It is something else.
    #[error("it is no working set of format {VERSION}: it is written anew, or can be removed")]
    Format,
    /// Its bytes are not those that were written.
    #[error("its checksum is wrong: it is written anew, or can be removed")]
    Checksum,
    /// It was written for another snapshot.
    #[error("it is of another snapshot, or of another size of memory: it is written anew")]
    Other,
    /// A chunk is outside the memory, there twice, or has no page; or there are more pages than a set has.
    #[error("its chunks cannot be of this memory: it is written anew, or can be removed")]
    Chunks,
}

impl WorkingSet {
    /// As a file, for the snapshot `id`.
    #[must_use]
    pub fn to_bytes(&self, id: &[u8; 16]) -> Vec<u8> {
        let mut summed = Vec::with_capacity(CHUNKS_FROM + self.chunks.len() * CHUNK_BYTES);
        summed.extend_from_slice(id);
        summed.extend_from_slice(&self.ram.count.to_le_bytes());
        for chunk in &self.chunks {
            summed.extend_from_slice(&chunk.number.to_le_bytes());
            chunk.pages.iter().for_each(|word| summed.extend_from_slice(&word.to_le_bytes()));
        }
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&crc32c::crc32c(&summed).to_le_bytes());
        bytes.append(&mut summed);
        bytes
    }

    /// From a file, for the snapshot `id`, whose memory has `ram_pages` pages.
    ///
    /// # Errors
    ///
    /// [`FormatError`]: nothing of the file is used then.
    pub fn from_bytes(bytes: &[u8], id: &[u8; 16], ram_pages: u64) -> Result<Self, FormatError> {
        if bytes.len() > FILE_BYTES_MAX {
            return Err(FormatError::Length);
        }
        let (head, chunks) = bytes.split_at_checked(CHUNKS_FROM).ok_or(FormatError::Length)?;
        if head[..8] != MAGIC || head[8..CRC_AT] != VERSION.to_le_bytes() {
            return Err(FormatError::Format);
        }
        if !chunks.len().is_multiple_of(CHUNK_BYTES) {
            return Err(FormatError::Length);
        }
        if head[CRC_AT..SUMMED_FROM] != crc32c::crc32c(&bytes[SUMMED_FROM..]).to_le_bytes() {
            return Err(FormatError::Checksum);
        }
        if head[16..32] != *id || head[32..40] != ram_pages.to_le_bytes() {
            return Err(FormatError::Other);
        }
        let set =
            Self { chunks: chunks.chunks_exact(CHUNK_BYTES).map(chunk).collect(), ..Self::empty(ram_pages) };
        if set.is_sound() { Ok(set) } else { Err(FormatError::Chunks) }
    }

    /// Whether it is one that [`WorkingSet::grown`] could have made.
    pub(super) fn is_sound(&self) -> bool {
        let mut seen = HashSet::new();
        let chunks_all = self.ram.count.div_ceil(Chunk::empty(0).range().count);
        let is_chunk = |chunk: &Chunk| {
            chunk.number < chunks_all
                && seen.insert(chunk.number)
                && chunk.count() > 0
                && outside(chunk, self.ram).pages().all(|page| !chunk.has(page))
        };
        self.chunks.iter().all(is_chunk) && self.page_count() <= self.room().pages
    }
}

/// What of a chunk is past the end of the memory.
fn outside(chunk: &Chunk, ram: PageRange) -> PageRange {
    PageRange::between(PageIndex(ram.end().0.max(chunk.range().start.0)), chunk.range().end())
}

fn chunk(bytes: &[u8]) -> Chunk {
    let mut words =
        bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().expect("eight bytes")));
    let mut chunk = Chunk::empty(words.next().expect("a chunk has a number"));
    chunk.pages.iter_mut().zip(words).for_each(|(word, bits)| *word = bits);
    chunk
}
