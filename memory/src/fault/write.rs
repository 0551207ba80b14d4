//! Writes to protected pages: what is done before one lands.

use std::io;

use crate::page::PageRange;

/// What becomes of a write to a protected page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It may land: the page is no longer protected, and all who wait to write it go on.
    Allow,
    /// It waits until [`FaultEngine::allow_writes`](super::FaultEngine::allow_writes).
    Wait,
}

/// Who is asked before a write lands on a protected page.
///
/// It is called on the thread that serves faults, so it neither waits nor touches guest memory.
pub trait WriteObserver: Send {
    /// Somebody wants to write `page`, which is one page of the memory's size. `content` is what is there; it is empty
    /// for a page that was thrown away, and an error where it could not be read.
    ///
    /// Throwing a page away is no write: whoever needs what it held watches discards
    /// ([`GuestRam::watch_discards`](crate::GuestRam::watch_discards)), too.
    ///
    /// A page may be told of more than once, and only the first time is what it holds what was there when it was
    /// protected: several threads may wait for it, or a verdict have come too late for one.
    fn before_write(&mut self, page: PageRange, content: io::Result<&[u8]>) -> Verdict;
}
