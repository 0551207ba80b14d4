//! Where pages come from.
//!
//! A source knows pages, never userfaultfd: it is asked for ranges and answers with bytes, in any order, when it has
//! them. What is done with an answer is the engine's business.
//!
//! ```text
//!   engine ── submit(requests) ──▶ source          does not wait
//!          ◀─ complete(sink) ─────                 gives what has arrived; readiness() says when there is some
//! ```
//!
//! Who fills in bulk on a thread of its own reads instead: a [`PageReader`] waits, and writes where it is told to.
//! [`Reading`] makes a source of a reader.
//!
//! | room | what it is for |
//! |---|---|
//! | `zero` | fresh memory |
//! | [`image`] | a saved memory: a base file, diffs over it, and where which page is |
//! | `in_place` | a memfd that has its content: what clones share |
//! | `buffered` | an image, read through the page cache |
//! | [`direct`] | an image, read past the page cache with many reads in flight |
//! | [`checked`] | a reader whose pages are checked against checksums |
//! | `pattern`, `scripted` | with the feature `testing`: content that can be checked, and sources that misbehave |
//! | [`reader`] | [`PageReader`], and the source that reads when it is asked |
//!
//! Invariants, which the engine checks rather than trusts:
//!
//! - A source answers for what it was asked, once, and in whole pages.
//! - `Zero` is said of pages that are zero, and of no others: the engine has no way to know better.
//! - A batch is taken whole or not at all, and no source has more than [`QUEUED_REQUESTS_MAX`] requests waiting.
//! - Demand is answered before prefetch, also within what is queued.

mod buffer;
mod buffered;
pub mod checked;
pub mod direct;
pub mod image;
mod in_place;
mod lanes;
#[cfg(any(test, feature = "testing"))]
pub mod pattern;
pub mod reader;
#[cfg(any(test, feature = "testing"))]
pub mod scripted;
mod zero;

use std::io;
use std::os::fd::BorrowedFd;

use crate::page::PageRange;

pub use buffered::ImageReader;
pub use checked::{Checked, Checksums, ChecksumsError};
pub use direct::{DirectError, DirectSource};
pub use image::{Image, ImageError};
pub use in_place::InPlaceSource;
pub use reader::{Content, PageReader, Reading};
pub use zero::ZeroSource;

/// How many requests may wait with one source: more than the engine has in flight.
pub const QUEUED_REQUESTS_MAX: usize = 4096;

/// Why somebody wants pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// Somebody may want them soon.
    Prefetch,
    /// A guest waits for them.
    Demand,
}

/// Pages that are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageRequest {
    /// Which.
    pub range: PageRange,
    /// Why.
    pub priority: Priority,
}

/// What a source found.
#[derive(Debug)]
pub enum PageReply<'a> {
    /// The content of the pages.
    Bytes(PageRange, &'a [u8]),
    /// They are all zero.
    Zero(PageRange),
    /// Their content is in the memory's page cache, where it only has to be mapped.
    InPlace(PageRange),
    /// They could not be had. It may be tried again.
    Lost(PageRange, SourceError),
}

/// Why pages could not be had.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// Reading failed.
    #[error("reading {range} failed")]
    Read {
        /// What was read.
        range: PageRange,
        /// The answer of the host.
        source: io::Error,
    },
    /// The source ends before the pages.
    #[error("the source ends before {range}: it is truncated, or of another guest")]
    Truncated {
        /// What was read.
        range: PageRange,
    },
    /// The content is not what was saved.
    #[error("the content of {range} is not what was saved: restore from another copy of the snapshot")]
    Corrupt {
        /// What was read.
        range: PageRange,
    },
    /// There was no answer in time.
    #[error("the source has not answered for {range} in time: it hangs, or is too slow")]
    Late {
        /// What was asked for.
        range: PageRange,
    },
    /// There is no room for more requests.
    #[error("{queued} requests wait at the source already: take answers before asking for more")]
    QueueFull {
        /// How many wait.
        queued: usize,
    },
    /// The source is gone.
    #[error("the source is gone: {0}")]
    Gone(String),
}

/// A place that pages come from.
pub trait PageSource: Send {
    /// Its name in statistics.
    fn name(&self) -> &'static str;

    /// Asks for pages, without waiting for them.
    ///
    /// # Errors
    ///
    /// [`SourceError::QueueFull`] where there is no room for the batch, of which nothing was taken then; another
    /// [`SourceError`] where nothing can be asked for any more.
    fn submit(&mut self, requests: &[PageRequest]) -> Result<(), SourceError>;

    /// Gives what has arrived, without waiting for more. A source that reads gives about 256 KiB of prefetch at a time,
    /// up to 1 MiB where much is demanded, and keeps the rest, so that a caller looks for new faults in between: see
    /// [`has_more`](Self::has_more).
    ///
    /// # Errors
    ///
    /// [`SourceError`] where nothing will arrive any more.
    fn complete(&mut self, sink: &mut dyn FnMut(PageReply<'_>)) -> Result<(), SourceError>;

    /// Whether answers are there already, for the next [`complete`](Self::complete): who sleeps now sleeps for
    /// nothing, and [`readiness`](Self::readiness) need not wake them.
    fn has_more(&self) -> bool {
        false
    }

    /// What becomes readable when something has arrived; `None` where an answer is there as soon as it is asked for.
    fn readiness(&self) -> Option<BorrowedFd<'_>>;
}
