//! Telling those who fill memory of pages that are thrown away.
//!
//! ```text
//!   discard(range) ── before_discard ──▶ madvise ──▶ after_discard
//!                        │                  │            │
//!                        │                  │            └ the content is gone: a tracker notes the change
//!                        │                  └ may wait until the fault thread has read the removal
//!                        └ from here on nobody may place what the pages held
//! ```
//!
//! Invariants:
//!
//! - Watchers are called on the thread that discards, and no lock of the RAM is held during any of the three steps.
//! - A discard that is refused for its range is told to nobody. One that the kernel refuses is told as if it had been
//!   done: the pages may be gone in part.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::page::PageRange;

/// How many can watch one guest's RAM: what fills it, what tracks its writes, and room for two more.
const WATCHERS_MAX: usize = 4;

/// Who has to know of discards.
pub trait DiscardWatcher: Send + Sync {
    /// The pages are about to be thrown away. Content that arrives for them later is stale.
    fn before_discard(&self, range: PageRange) {
        let _ = range;
    }

    /// The pages were thrown away: what is read there is zero, or what was written since.
    fn after_discard(&self, range: PageRange) {
        let _ = range;
    }
}

/// There are too many watchers.
#[derive(Debug, thiserror::Error)]
#[error("discards of guest memory are watched by {WATCHERS_MAX} already: drop one of them first")]
pub struct TooManyWatchers;

/// Those who watch. A watcher is held weakly: dropping it ends its watch.
#[derive(Default)]
pub(super) struct Watchers(Mutex<Vec<Weak<dyn DiscardWatcher>>>);

impl std::fmt::Debug for Watchers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watchers").finish_non_exhaustive()
    }
}

impl Watchers {
    pub(super) fn add(&self, watcher: Weak<dyn DiscardWatcher>) -> Result<(), TooManyWatchers> {
        // A list of weak pointers is whole at any time, whoever panicked beside it.
        let mut watchers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        watchers.retain(|other| other.strong_count() > 0);
        if watchers.len() >= WATCHERS_MAX {
            return Err(TooManyWatchers);
        }
        watchers.push(watcher);
        Ok(())
    }

    /// Those that are there, kept for one discard.
    pub(super) fn current(&self) -> Vec<Arc<dyn DiscardWatcher>> {
        let watchers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        watchers.iter().filter_map(Weak::upgrade).collect()
    }
}
