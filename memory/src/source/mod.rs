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
//! Invariants, which the engine checks rather than trusts:
//!
//! - A source answers for what it was asked, once, and in whole pages.
//! - `Zero` is said of pages that are zero, and of no others: the engine has no way to know better.

mod zero;

use std::io;
use std::os::fd::BorrowedFd;

use crate::page::PageRange;

pub use zero::ZeroSource;

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
    /// [`SourceError`] where nothing can be asked for any more.
    fn submit(&mut self, requests: &[PageRequest]) -> Result<(), SourceError>;

    /// Gives what has arrived, without waiting for more.
    ///
    /// # Errors
    ///
    /// [`SourceError`] where nothing will arrive any more.
    fn complete(&mut self, sink: &mut dyn FnMut(PageReply<'_>)) -> Result<(), SourceError>;

    /// What becomes readable when something has arrived; `None` where an answer is there as soon as it is asked for.
    fn readiness(&self) -> Option<BorrowedFd<'_>>;
}
