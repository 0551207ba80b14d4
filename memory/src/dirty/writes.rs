//! What was written, of memory that somebody has registered for it: the page tables, and what was thrown away.

use std::sync::{Arc, Weak};

use super::discarded::Discarded;
use super::error::TrackError;
use crate::page::PageRange;
use crate::ram::GuestRam;
use crate::uffd::PagemapScan;

/// Finds written pages where a userfaultfd with [`WRITE_TRACKING`](crate::uffd::WRITE_TRACKING) has the memory, and
/// protects them again. There is one at a time: what it gives, nobody else is given.
#[derive(Debug)]
pub(super) struct Writes {
    ram: GuestRam,
    scan: PagemapScan,
    discarded: Arc<Discarded>,
}

impl Writes {
    /// Of `ram`, whose discards are seen from now on.
    pub(super) fn of(ram: &GuestRam) -> Result<Self, TrackError> {
        let scan = PagemapScan::open()?;
        let discarded = Discarded::watch(ram)?;
        Ok(Self { ram: ram.clone(), scan, discarded })
    }

    /// All of the memory is given by the next take.
    pub(super) fn note_all(&self) {
        self.discarded.note_all(&self.ram);
    }

    /// Gives what was thrown away of `range` since it was last given.
    pub(super) fn take_discarded(&self, range: PageRange, sink: &mut dyn FnMut(PageRange)) {
        self.discarded.take(range, sink);
    }

    /// Gives what was written of `range` since it was last given.
    pub(super) fn take_written(
        &self,
        range: PageRange,
        sink: &mut dyn FnMut(PageRange),
    ) -> Result<(), TrackError> {
        Ok(self.scan.take_written(&self.ram, range, sink)?)
    }

    /// Gives both.
    pub(super) fn take(&self, range: PageRange, sink: &mut dyn FnMut(PageRange)) -> Result<(), TrackError> {
        self.take_discarded(range, sink);
        self.take_written(range, sink)
    }
}

impl Discarded {
    /// Notes what is thrown away of `ram` from now on.
    pub(super) fn watch(ram: &GuestRam) -> Result<Arc<Self>, TrackError> {
        let discarded = Arc::new(Self::of(ram));
        let watcher: Weak<Self> = Arc::downgrade(&discarded);
        ram.watch_discards(watcher)?;
        Ok(discarded)
    }
}
