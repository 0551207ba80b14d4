//! Since when somebody waits for which page.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::page::{PageIndex, PageRange};

/// The demanded pages and when the first fault on each was read: as many as the scheduler knows.
#[derive(Debug, Default)]
pub(super) struct Waits(BTreeMap<PageIndex, Instant>);

impl Waits {
    /// Somebody waits for `page`. The first to do so counts.
    pub(super) fn begin(&mut self, page: PageIndex, now: Instant) {
        self.0.entry(page).or_insert(now);
    }

    /// Nobody waits for `page` any more; gives since when somebody did.
    pub(super) fn end(&mut self, page: PageIndex) -> Option<Instant> {
        self.0.remove(&page)
    }

    /// Nobody waits for pages of `range` any more.
    pub(super) fn remove(&mut self, range: PageRange) {
        self.0.retain(|page, _| !range.contains(*page));
    }
}
