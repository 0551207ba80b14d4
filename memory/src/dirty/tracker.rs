//! One way to ask, whatever the means, and what was taken and is not saved.

use std::sync::Arc;

use super::discarded::Discarded;
use super::error::TrackError;
use super::soft_dirty::SoftDirty;
use super::write_tracker::WriteTracker;
use super::writes::Writes;
use crate::page::PageRange;
use crate::ram::GuestRam;
use crate::uffd::{self, Choice, Pagemap, TrackWrites};

/// What of a guest's memory has been written since it was last saved, or since it was made.
#[derive(Debug)]
pub struct Tracker {
    ram: GuestRam,
    means: Means,
    /// What was taken since it was last saved: in order, and none touches another.
    unsaved: Vec<PageRange>,
}

#[derive(Debug)]
enum Means {
    /// Registered by the first take, since until then what the mapping has of its own says as much.
    Own(Option<WriteTracker>),
    Registered(Writes),
    SoftDirty(SoftDirty),
    /// No writes are followed: what is there may have been written.
    Resident(Arc<Discarded>),
}

impl Tracker {
    /// How writes are followed on this host. `faultless doctor` says the same.
    #[must_use]
    pub fn way() -> TrackWrites {
        Choice::of(uffd::probe().ok().as_ref(), SoftDirty::is_supported()).track_writes
    }

    /// Follows writes to `ram`, in `way`. Where that is by the page tables, `is_registered` says whether a userfaultfd
    /// has the RAM that was opened with [`WRITE_TRACKING`](uffd::WRITE_TRACKING), and registered it for write-protection;
    /// without one nobody else is to register it. The guest has not run.
    ///
    /// # Errors
    ///
    /// [`TrackError`]: most of all [`TrackError::NoMeans`].
    pub fn start(ram: &GuestRam, way: TrackWrites, is_registered: bool) -> Result<Self, TrackError> {
        let means = match way {
            TrackWrites::PageTables if is_registered && ram.backing().shares_writes() => {
                return Err(TrackError::Shared);
            }
            TrackWrites::PageTables if is_registered => Means::Registered(Writes::of(ram)?),
            TrackWrites::PageTables => Means::Own(None),
            TrackWrites::SoftDirty => Means::SoftDirty(SoftDirty::start(ram)?),
            TrackWrites::Nothing => return Err(TrackError::NoMeans),
        };
        Ok(Self { ram: ram.clone(), means, unsaved: Vec::new() })
    }

    /// Follows no writes: all that the host has of `ram` counts as changed, each time, and what was thrown away.
    ///
    /// # Errors
    ///
    /// [`TrackError::Watch`].
    pub fn resident(ram: &GuestRam) -> Result<Self, TrackError> {
        let means = Means::Resident(Discarded::watch(ram)?);
        Ok(Self { ram: ram.clone(), means, unsaved: Vec::new() })
    }

    /// Takes what was written until now, to be [given](Self::changed) until it is [saved](Self::saved). Nobody is to
    /// write from here until the snapshot's memory is written.
    ///
    /// # Errors
    ///
    /// [`TrackError`]. What was taken until then stays.
    pub fn take(&mut self) -> Result<(), TrackError> {
        let all = self.ram.pages();
        let mut taken = std::mem::take(&mut self.unsaved);
        let mut sink = |range| taken.push(range);
        let result = match &mut self.means {
            Means::Own(tracker) => match tracker {
                Some(tracker) => tracker.take(all, &mut sink),
                None => WriteTracker::start(&self.ram)
                    .and_then(|started| tracker.insert(started).take(all, &mut sink)),
            },
            Means::Registered(writes) => writes.take(all, &mut sink),
            Means::SoftDirty(soft_dirty) => soft_dirty.take(&mut sink),
            Means::Resident(discarded) => {
                discarded.take(all, &mut sink);
                Ok(())
            }
        };
        self.unsaved = joined(taken);
        result
    }

    /// The pages that a diff is to hold, in order: what was taken, and not saved.
    ///
    /// # Errors
    ///
    /// [`TrackError::Pagemap`], where writes are not followed and the page tables cannot be read.
    pub fn changed(&self) -> Result<Vec<PageRange>, TrackError> {
        let mut changed = self.unsaved.clone();
        let Means::Resident(_) = &self.means else { return Ok(changed) };
        if self.ram.backing().shares_writes() {
            return Ok(vec![self.ram.pages()]);
        }
        let mut sink = |range| changed.push(range);
        let looked = Pagemap::open().and_then(|pagemap| pagemap.own(&self.ram, self.ram.pages(), &mut sink));
        looked.map_err(TrackError::Pagemap)?;
        Ok(joined(changed))
    }

    /// What was taken has been saved.
    pub fn saved(&mut self) {
        self.unsaved.clear();
    }

    /// Whether writes are followed.
    #[must_use]
    pub fn follows_writes(&self) -> bool {
        !matches!(self.means, Means::Resident(_))
    }
}

/// `ranges`, which may overlap, in order and as few as there can be.
fn joined(mut ranges: Vec<PageRange>) -> Vec<PageRange> {
    ranges.sort_unstable_by_key(|range| range.start);
    ranges.dedup_by(|next, last| {
        let touches = next.start <= last.end();
        if touches {
            *last = PageRange::between(last.start, last.end().max(next.end()));
        }
        touches
    });
    ranges.retain(|range| !range.is_empty());
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::PageIndex;

    #[test]
    fn ranges_are_joined_where_they_touch_or_overlap() {
        let pages = |start, end| PageRange::between(PageIndex(start), PageIndex(end));
        let ranges = vec![pages(9, 12), pages(0, 2), pages(2, 3), pages(5, 8), pages(6, 7), pages(10, 14)];
        assert_eq!(joined(ranges), [pages(0, 3), pages(5, 8), pages(9, 14)]);
        assert_eq!(joined(vec![pages(4, 4)]), []);
    }
}
