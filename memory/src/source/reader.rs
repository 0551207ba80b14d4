//! Reading pages where one may wait for them.
//!
//! ```text
//!   filler thread ── read(range, its own huge page) ──▶ PageReader
//!   engine ── submit ──▶ Reading: queue ── complete ──▶ PageReader, demand first, in pieces ──▶ sink
//! ```
//!
//! A single page from the page cache is there sooner than anybody could be told of it, so [`Reading`] reads when it is
//! asked for answers: no thread, no event, no copy but the one out of the cache. Where the page is not cached the engine
//! waits for the disk: [`DirectSource`](super::DirectSource) does not.
//!
//! Invariants:
//!
//! - Serving a page allocates nothing: what is read goes to one buffer, of [`PIECE_PAGES`].
//! - One [`complete`](PageSource::complete) reads all that is demanded, and of prefetch [`PIECE_PAGES`], or
//!   more where much is demanded, so that it does not pile up; see `prefetch_room`.
//! - A piece that cannot be read is lost alone; only a reader that is gone ends the source.

use std::os::fd::BorrowedFd;

use super::buffer::PageBuffer;
use super::lanes::Lanes;
use super::{PageReply, PageRequest, PageSource, Priority, SourceError};
use crate::page::PageRange;

/// How many pages are read at a time, and how many of prefetch in one go where little is demanded: 256 KiB, which takes
/// about as long to copy as a fault takes to be told of.
pub const PIECE_PAGES: u64 = 64;

/// How many pages of prefetch go with each that is demanded: as many as an engine asks for around a fault from nowhere.
/// Were it fewer, many threads that fault at once would ask for more than is read. What they then want is queued already,
/// behind all else, or is demanded page by page before its turn comes, and so many requests are slow.
const PAGES_PER_DEMAND: u64 = 16;
/// How many pages of prefetch are read in one go, however many are demanded: 1 MiB.
const PREFETCH_PAGES_MAX: u64 = 256;

/// What was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// The bytes are where they were asked for.
    Bytes,
    /// All of it is zero, and was not written: what is there may be anything.
    Zero,
}

/// A place that pages can be read from by who may wait.
pub trait PageReader: Send {
    /// Its name in statistics.
    fn name(&self) -> &'static str;

    /// Reads the content of `range` into `into`, which is as long. On an error `into` may hold anything.
    ///
    /// # Errors
    ///
    /// [`SourceError`] where any of the pages cannot be had.
    fn read(&mut self, range: PageRange, into: &mut [u8]) -> Result<Content, SourceError>;
}

impl<R: PageReader + ?Sized> PageReader for Box<R> {
    fn name(&self) -> &'static str {
        (**self).name()
    }

    fn read(&mut self, range: PageRange, into: &mut [u8]) -> Result<Content, SourceError> {
        (**self).read(range, into)
    }
}

/// A source that reads when it is asked for answers.
#[derive(Debug)]
pub struct Reading<R> {
    reader: R,
    queue: Lanes<PageRange>,
    buffer: PageBuffer,
}

impl<R: PageReader> Reading<R> {
    /// A source of what `reader` reads.
    #[must_use]
    pub fn new(reader: R) -> Self {
        Self { reader, queue: Lanes::default(), buffer: PageBuffer::new(PIECE_PAGES) }
    }

    /// Reads `range`, piece by piece.
    fn serve(&mut self, range: PageRange, sink: &mut dyn FnMut(PageReply<'_>)) -> Result<(), SourceError> {
        let mut rest = range;
        while !rest.is_empty() {
            let (piece, later) = rest.split_at(PIECE_PAGES);
            rest = later;
            let into = self.buffer.first_mut(piece.count);
            sink(match self.reader.read(piece, into) {
                Ok(Content::Bytes) => PageReply::Bytes(piece, into),
                Ok(Content::Zero) => PageReply::Zero(piece),
                Err(gone @ SourceError::Gone(_)) => return Err(gone),
                Err(error) => PageReply::Lost(piece, error),
            });
        }
        Ok(())
    }
}

/// How many pages of prefetch a source gives in one go, after so many that were demanded.
pub(super) fn prefetch_room(demanded: u64) -> u64 {
    (demanded * PAGES_PER_DEMAND).clamp(PIECE_PAGES, PREFETCH_PAGES_MAX)
}

impl<R: PageReader> PageSource for Reading<R> {
    fn name(&self) -> &'static str {
        self.reader.name()
    }

    fn submit(&mut self, requests: &[PageRequest]) -> Result<(), SourceError> {
        self.queue.queue(requests)
    }

    fn complete(&mut self, sink: &mut dyn FnMut(PageReply<'_>)) -> Result<(), SourceError> {
        let mut demanded = 0;
        while let Some(range) = self.queue.pop(Priority::Demand) {
            demanded += range.count;
            self.serve(range, sink)?;
        }
        let mut room = prefetch_room(demanded);
        while room > 0
            && let Some(range) = self.queue.pop(Priority::Prefetch)
        {
            let (now, later) = range.split_at(room);
            if !later.is_empty() {
                self.queue.unpop(Priority::Prefetch, later);
            }
            room -= now.count;
            self.serve(now, sink)?;
        }
        Ok(())
    }

    fn has_more(&self) -> bool {
        !self.queue.is_empty()
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

#[cfg(test)]
mod tests;
