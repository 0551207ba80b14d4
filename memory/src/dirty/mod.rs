//! Which pages were written: the kernel notes it in its page tables, and nobody waits for anyone.
//!
//! ```text
//!   start ── protect all ──▶ a write: the kernel takes the protection off the page and lets it through
//!                                         │
//!   take ◀── PAGEMAP_SCAN: pages without protection, each protected again in the same step
//!        ◀── pages that were thrown away since, from the RAM's discards
//! ```
//!
//! It sees every writer of the mapping: vCPUs, devices, and the VMM itself, which KVM's dirty log does not. It does
//! not see writes that go around the mapping: into a memfd by its descriptor, or by another process that has it.
//!
//! Invariants:
//!
//! - A page written before `take` begins is given by it, or was by an earlier one; one written while `take` runs is
//!   given by it or by the next. A page is protected before it is given, so whoever copies it then loses no write.
//! - A page that is only read is not given, nor one that was never touched.
//! - Pages are given by 4 KiB, those of transparent huge pages too, which the first write splits. hugetlb pages are
//!   given whole. A page may be given twice.
//! - Pages that were thrown away are given: their content has changed, and of a memfd's the page tables do not say so.

mod discarded;
mod error;

use std::sync::{Arc, Weak};

use crate::page::{PageIndex, PageRange};
use crate::ram::{BackingKind, GuestRam};
use crate::uffd::{self, Features, Modes, PagemapScan, Registered};
use discarded::Discarded;

pub use error::TrackError;

/// Follows who writes where, in RAM that no other userfaultfd serves. Dropping it ends that.
#[derive(Debug)]
pub struct WriteTracker {
    registered: Registered,
    scan: PagemapScan,
    discarded: Arc<Discarded>,
}

impl WriteTracker {
    /// Begins: what is written after this returns will be given.
    ///
    /// # Errors
    ///
    /// [`TrackError`]: a kernel that lacks what it takes, no permission, or RAM that another userfaultfd serves.
    pub fn start(ram: &GuestRam) -> Result<Self, TrackError> {
        let features = uffd::WRITE_TRACKING.into_iter().fold(Features::NONE, Features::with);
        let uffd = uffd::open(features)?;
        let scan = PagemapScan::open()?;
        let modes = Modes { write_protect: true, ..Modes::default() };
        let registered = Registered::new(uffd, ram.clone(), modes)?;
        let discarded = Arc::new(Discarded::of(ram));
        let watcher: Weak<Discarded> = Arc::downgrade(&discarded);
        ram.watch_discards(watcher)?;
        match registered.protect(ram.pages()).stop {
            None => Ok(Self { registered, scan, discarded }),
            Some(stop) => Err(TrackError::Protect(stop)),
        }
    }

    /// Gives to `sink` the pages of `range` that were written, or thrown away, since they were last given.
    ///
    /// # Errors
    ///
    /// When the kernel refuses. What was given until then is not given again; the rest is still known.
    pub fn take(&self, range: PageRange, sink: &mut dyn FnMut(PageRange)) -> Result<(), TrackError> {
        let ram = self.registered.ram();
        ram.assert_has(range);
        let range = self.rounded_out(range);
        self.discarded.take(range, &mut |gone| {
            // The kernel dropped the protection with the pages. Where this fails, the next read counts as a write.
            let _ = self.registered.protect(self.rounded_out(gone));
            sink(gone);
        });
        Ok(self.scan.take_written(ram, range, sink)?)
    }

    /// Ends, and says whether the kernel did.
    ///
    /// # Errors
    ///
    /// What the kernel answers.
    pub fn stop(self) -> Result<(), TrackError> {
        self.registered.unregister().map_err(TrackError::Stop)
    }

    /// The RAM that is followed.
    #[must_use]
    pub fn ram(&self) -> &GuestRam {
        self.registered.ram()
    }

    /// Parts of a hugetlb page cannot be protected.
    fn rounded_out(&self, range: PageRange) -> PageRange {
        let backing = self.ram().backing();
        if backing.kind() != BackingKind::Hugetlb || range.is_empty() {
            return range;
        }
        let size = backing.page_size();
        let last = PageIndex(range.end().0 - 1).containing(size);
        PageRange::between(range.start.containing(size).start, last.end())
    }
}

#[cfg(test)]
mod tests;
