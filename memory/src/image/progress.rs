//! How far something is that takes long, for who watches it from another thread; and stopping it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// How far a file is written or read. Shared between who does it and who watches.
#[derive(Debug, Default)]
pub struct Progress {
    done_pages: AtomicU64,
    is_cancelled: AtomicBool,
}

impl Progress {
    /// How many pages were looked at, holes and all.
    #[must_use]
    pub fn done_pages(&self) -> u64 {
        self.done_pages.load(Ordering::Relaxed)
    }

    /// Stops it at the next 2 MiB.
    pub fn cancel(&self) {
        self.is_cancelled.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.is_cancelled.load(Ordering::Relaxed)
    }

    pub(crate) fn add(&self, pages: u64) {
        self.done_pages.fetch_add(pages, Ordering::Relaxed);
    }
}
