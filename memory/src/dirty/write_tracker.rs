//! Writes to memory that nobody serves: the kernel notes them in its page tables, and nobody waits for anyone.
//!
//! ```text
//!   take ◀── PAGEMAP_SCAN: pages without protection, each protected again in the same step
//!        ◀── pages that were thrown away since, from the RAM's discards
//!
//!   a write to a protected page: the kernel takes the protection off and lets it through
//! ```
//!
//! A page is protected before it is given, so whoever copies it then loses no write: one that comes while `take` runs is
//! given by it or by the next. The first write to a transparent huge page splits it.

use super::error::TrackError;
use super::writes::Writes;
use crate::page::{PageIndex, PageRange};
use crate::ram::{BackingKind, GuestRam};
use crate::uffd::{self, Modes, Registered};

/// Follows who writes where, in RAM that no other userfaultfd serves. Dropping it ends that.
#[derive(Debug)]
pub struct WriteTracker {
    registered: Registered,
    writes: Writes,
}

impl WriteTracker {
    /// Begins. The first take gives all that the mapping has of its own, or of a shared memfd all there is.
    ///
    /// # Errors
    ///
    /// [`TrackError`]: a kernel that lacks what it takes, no permission, or RAM that another userfaultfd serves.
    pub fn start(ram: &GuestRam) -> Result<Self, TrackError> {
        let uffd = uffd::open(uffd::WRITE_TRACKING)?;
        let writes = Writes::of(ram)?;
        let modes = Modes { write_protect: true, ..Modes::default() };
        let registered = Registered::new(uffd, ram.clone(), modes)?;
        if ram.backing().shares_writes() {
            // What the host unmaps of it has left the page tables, so they are asked about all of it, from here on.
            writes.note_all();
            if let Some(stop) = registered.protect(ram.pages()).stop {
                return Err(TrackError::Protect(stop));
            }
        }
        Ok(Self { registered, writes })
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
        let protects_gone = ram.backing().shares_writes();
        self.writes.take_discarded(range, &mut |gone| {
            if protects_gone {
                // The kernel dropped the protection with the pages. Where this fails, the next read counts as a write.
                let _ = self.registered.protect(self.rounded_out(gone));
            }
            sink(gone);
        });
        self.writes.take_written(range, sink)
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
