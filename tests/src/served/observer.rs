//! Looks at every page before it is written.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use memory::fault::{Verdict, WriteObserver};
use memory::{PageIndex, PageRange};

use super::content;

/// What was seen.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Pages that were told of, each once.
    pub(super) told: AtomicU64,
    /// Pages that were told of once more.
    pub(super) again: AtomicU64,
    /// Pages that were not what they should have been.
    pub(super) wrong: AtomicU64,
}

/// Compares what is there before the first write.
pub(super) struct Comparing {
    tally: Arc<Tally>,
    seen: HashSet<PageIndex>,
}

impl Comparing {
    pub(super) fn new(tally: Arc<Tally>) -> Self {
        Self { tally, seen: HashSet::new() }
    }
}

impl WriteObserver for Comparing {
    fn before_write(&mut self, page: PageRange, content: io::Result<&[u8]>) -> Verdict {
        if !self.seen.insert(page.start) {
            self.tally.again.fetch_add(1, Ordering::Relaxed);
            return Verdict::Allow;
        }
        self.tally.told.fetch_add(1, Ordering::Relaxed);
        if !content.is_ok_and(|content| content::is_in(page, content)) {
            eprintln!("served: {page} was not what it should be before it was written");
            self.tally.wrong.fetch_add(1, Ordering::Relaxed);
        }
        Verdict::Allow
    }
}
