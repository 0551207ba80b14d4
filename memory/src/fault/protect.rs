//! Protecting memory against writes, and who is asked when one comes.
//!
//! ```text
//!   protect:    place protected from now on ─▶ wait for placements under way ─▶ WRITEPROTECT all
//!   write:      fault ─▶ the observer sees what is there ─▶ allow: WRITEPROTECT off, the write lands
//!                                                        └▶ wait: until the writes are allowed
//!   unprotect:  place unprotected from now on ─▶ WRITEPROTECT off, for all
//! ```
//!
//! A page that is missing is not protected by the request, but comes protected: the access that misses it faults
//! again as a write. With `WP_UNPOPULATED` it is marked, too, so that the order of the two does not matter.

use std::io;
use std::time::Instant;

use super::handler::Handler;
use super::install::{Content, Halt, Placement};
use super::shared::Failure;
use super::statistics::{Verb, add};
use super::write::{Verdict, WriteObserver};
use crate::map::PageState;
use crate::page::{PageIndex, PageRange};
use crate::uffd::{Placed, Stop};

/// How many pages are protected by one request, which holds up faults on them: 64 MiB.
const STEP_PAGES: u64 = 16_384;

impl Handler {
    /// Protects all memory.
    pub(super) fn protect(&mut self, observer: Box<dyn WriteObserver>) -> Result<(), Stop> {
        let all = self.shared.registered.ram().pages();
        self.observer = Some(observer);
        self.shared.installer.set_protects(true);
        // The filler looks once it has entered: whoever was before us may still place without protection.
        self.shared.gate.wait_for(all);
        let result = self.change(all, true);
        if result.is_err() {
            self.unprotect();
        }
        result
    }

    /// Asks `observer` from now on, and places pages protected. What is there is protected by who asked for this.
    pub(super) fn observe(&mut self, observer: Box<dyn WriteObserver>) -> Result<(), Stop> {
        if self.observer.is_some() {
            return Err(Stop::Busy);
        }
        self.observer = Some(observer);
        self.shared.installer.set_protects(true);
        // As in `protect`.
        self.shared.gate.wait_for(self.shared.registered.ram().pages());
        Ok(())
    }

    /// Ends it. What is protected stays so, and may be written by whoever asks.
    pub(super) fn unobserve(&mut self) -> Option<Box<dyn WriteObserver>> {
        self.shared.installer.set_protects(false);
        self.shared.gate.wait_for(self.shared.registered.ram().pages());
        self.observer.take()
    }

    /// Ends it, and lets all go on who wait to write.
    pub(super) fn unprotect(&mut self) -> Option<Box<dyn WriteObserver>> {
        self.shared.installer.set_protects(false);
        let all = self.shared.registered.ram().pages();
        self.end_protection(all);
        self.observer.take()
    }

    /// Lets pages be written.
    pub(super) fn allow(&mut self, range: PageRange) {
        let range = range.intersection(self.shared.registered.ram().pages()).widened(self.granule);
        self.end_protection(range);
    }

    fn end_protection(&mut self, range: PageRange) {
        match self.change(range, false) {
            // Where nothing can be protected, nobody waits to write.
            Ok(()) | Err(Stop::NotRegistered) => {}
            Err(stop) => {
                let cause = format!("write-protection of {range} cannot be ended: {stop}");
                self.shared.fail(Failure { pages: range, cause, is_guest_told: false });
            }
        }
    }

    /// Somebody wants to write a protected page.
    pub(super) fn write(&mut self, page: PageIndex, now: Instant) {
        add(&self.shared.statistics.counters.write_protected, 1);
        let granule = page.containing(self.granule);
        if self.ask_observer(granule) == Verdict::Allow {
            self.allow(granule);
            self.shared.statistics.record(Verb::Unprotect, now.elapsed());
        }
    }

    fn ask_observer(&mut self, granule: PageRange) -> Verdict {
        let Some(mut observer) = self.observer.take() else { return Verdict::Allow };
        let is_told = |removed: &PageRange| removed.intersection(granule).is_empty();
        let content = if !self.unannounced.iter().all(is_told) {
            // It may be gone at any moment, and then reading it would be a fault that nobody serves.
            Err(io::Error::other("the page was discarded by other means than `GuestRam::discard`"))
        } else if self.stays(granule) {
            self.pre_image.read(&self.shared.registered, granule)
        } else {
            Ok(&[][..])
        };
        let verdict = observer.before_write(granule, content);
        self.observer = Some(observer);
        verdict
    }

    /// Whether a page that somebody was about to write is there, and stays until events are read again.
    ///
    /// One that was thrown away since may be gone: it is given zeros, if so. After that only a discard could take it
    /// away whose event was read, and which has not ended.
    fn stays(&mut self, granule: PageRange) -> bool {
        if self.shared.map.get(granule.start) != PageState::Removed {
            return true;
        }
        let zeros = Placement { range: granule, content: Content::Zero };
        let placed = self.place(zeros, |shared, part| {
            if shared.gate.is_discarding(granule) {
                return Err(Halt { rest: part.range, stop: Stop::Busy });
            }
            shared.installer.place(part)
        });
        placed.is_ok()
    }

    fn change(&mut self, range: PageRange, protected: bool) -> Result<(), Stop> {
        let mut rest = range;
        while !rest.is_empty() {
            let (step, later) = rest.split_at(STEP_PAGES);
            let placement = Placement { range: step, content: Content::InPlace };
            self.place(placement, |shared, part| {
                let Placed { pages, stop } = if protected {
                    shared.registered.protect(part.range)
                } else {
                    shared.registered.unprotect(part.range)
                };
                let (_, rest) = part.range.split_at(pages);
                stop.map_or(Ok(Verb::Unprotect), |stop| Err(Halt { rest, stop }))
            })
            .map_err(|halt| halt.stop)?;
            rest = later;
        }
        Ok(())
    }
}
