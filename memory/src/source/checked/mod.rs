//! Pages that are checked against checksums before anybody sees them.
//!
//! ```text
//!   request          ░░░░░░░░░░░░░░░
//!   chunks      │       │       │       │      each has a crc32c
//!   read        └ whole ┴ direct┴ whole ┘      a chunk of which only a part is wanted is read whole, aside
//! ```
//!
//! What a flipped bit, a lost extent or a copy that punched holes has made of a page becomes
//! [`SourceError::Corrupt`]. A reader that says zero of a page that was not is found out, too: zero pages have a
//! checksum like all others.
//!
//! Invariants: nothing is answered that was not checked; nothing but one chunk is read besides what was asked for, at
//! either end.

mod table;

use super::SourceError;
use super::buffer::{PageBuffer, bytes_of};
use super::reader::{Content, PageReader};
use crate::page::{PageIndex, PageRange};
pub use table::{CHUNK_PAGES_MAX, Checksums, ChecksumsError};

/// A reader that checks what another one reads.
#[derive(Debug)]
pub struct Checked<R> {
    reader: R,
    checksums: Checksums,
    /// For a chunk of which only a part is wanted.
    chunk: PageBuffer,
}

impl<R: PageReader> Checked<R> {
    /// Checks `reader` against `checksums`.
    #[must_use]
    pub fn new(reader: R, checksums: Checksums) -> Self {
        let chunk = PageBuffer::new(checksums.chunk_pages());
        Self { reader, checksums, chunk }
    }

    /// Reads `range`, which is whole chunks.
    fn read_whole(&mut self, range: PageRange, into: &mut [u8]) -> Result<Content, SourceError> {
        let content = self.reader.read(range, into)?;
        check(&self.checksums, range, content, into)?;
        Ok(content)
    }

    /// Reads `range`, which is a part of `chunk`.
    fn read_part(
        &mut self,
        chunk: PageRange,
        range: PageRange,
        into: &mut [u8],
    ) -> Result<Content, SourceError> {
        let whole = self.chunk.first_mut(chunk.count);
        let content = self.reader.read(chunk, whole)?;
        check(&self.checksums, chunk, content, whole)?;
        if content == Content::Bytes {
            let skipped = bytes_of(range.start.0 - chunk.start.0);
            into.copy_from_slice(&whole[skipped..][..into.len()]);
        }
        Ok(content)
    }

    /// The head of `range` that is read at once: the part of a chunk that it starts in, or all its whole chunks.
    fn head(&self, range: PageRange) -> (PageRange, Option<PageRange>) {
        let chunk = self.checksums.chunk_of(range.start);
        if chunk.start != range.start || chunk.end() > range.end() {
            return (range.intersection(chunk), Some(chunk));
        }
        // The last chunk may end with the memory, before its full length.
        let last = self.checksums.chunk_of(PageIndex(range.end().0 - 1));
        let end = if last.end() == range.end() { last.end() } else { last.start };
        (PageRange::between(range.start, end), None)
    }
}

impl<R: PageReader> PageReader for Checked<R> {
    fn name(&self) -> &'static str {
        self.reader.name()
    }

    fn read(&mut self, range: PageRange, into: &mut [u8]) -> Result<Content, SourceError> {
        if self.checksums.pages().intersection(range) != range {
            return Err(SourceError::Truncated { range });
        }
        let (mut rest, mut into) = (range, into);
        let mut is_zero = true;
        while !rest.is_empty() {
            let (head, chunk) = self.head(rest);
            let (place, later) = into.split_at_mut(bytes_of(head.count));
            let content = match chunk {
                Some(chunk) => self.read_part(chunk, head, place)?,
                None => self.read_whole(head, place)?,
            };
            is_zero &= content == Content::Zero;
            // Another piece may be bytes, and then this one has to be.
            if content == Content::Zero && head != range {
                place.fill(0);
            }
            (rest, into) = (PageRange::between(head.end(), rest.end()), later);
        }
        Ok(if is_zero { Content::Zero } else { Content::Bytes })
    }
}

/// Checks what was read of `range`, which is whole chunks.
fn check(checksums: &Checksums, range: PageRange, content: Content, bytes: &[u8]) -> Result<(), SourceError> {
    let (mut rest, mut bytes) = (range, bytes);
    while !rest.is_empty() {
        let chunk = checksums.chunk_of(rest.start);
        let (now, later) = bytes.split_at(bytes_of(chunk.count));
        let is_right = match content {
            Content::Bytes => checksums.is_of(chunk, now),
            Content::Zero => checksums.is_zero(chunk),
        };
        if !is_right {
            return Err(SourceError::Corrupt { range: chunk });
        }
        (rest, bytes) = (PageRange::between(chunk.end(), rest.end()), later);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
