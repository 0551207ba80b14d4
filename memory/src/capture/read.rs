//! What chunks held at the moment.

use std::sync::{Mutex, PoisonError};

use super::error::CaptureError;
use super::session::{Plan, Session};
use crate::image::{WriteError, length_of, outside, read_all};
use crate::map::PageState;
use crate::page::PageRange;
use crate::source::{Content, PageReader};

/// Whom pages are read from that the guest does not have yet: one thread at a time.
pub(super) type Missing<'a> = Option<Mutex<&'a mut dyn PageReader>>;

impl Session {
    /// Reads `range`, which is of `chunk`, into `buffer`, each page at its place; gives the runs that were read, in order.
    /// All else is zero. It counts only if the chunk was let go by nobody until this returns.
    pub(super) fn read(
        &self,
        chunk: usize,
        range: PageRange,
        missing: &Missing<'_>,
        buffer: &mut [u8],
    ) -> Result<Vec<PageRange>, CaptureError> {
        let plan = &self.plans[chunk];
        let place = |run: PageRange| {
            let skipped = length_of(PageRange::between(range.start, run.start));
            skipped..skipped + length_of(run)
        };
        let elsewhere = self.elsewhere(plan, range, missing.is_some())?;
        let mut data = Vec::new();
        for part in outside(range, &plan.blank).into_iter().flat_map(|part| outside(part, &elsewhere)) {
            self.read_ram(part, &mut buffer[place(part)])?;
            data.push(part);
        }
        if let (Some(reader), false) = (missing, elsewhere.is_empty()) {
            let mut reader = reader.lock().unwrap_or_else(PoisonError::into_inner);
            for run in elsewhere {
                let read = reader.read(run, &mut buffer[place(run)]);
                match read.map_err(|source| CaptureError::Source { range: run, source })? {
                    Content::Bytes => data.push(run),
                    Content::Zero => {}
                }
            }
        }
        data.sort_unstable_by_key(|run| run.start);
        Ok(data)
    }

    /// What of the pages of `range` that were with their source is not there yet, or is about to be thrown away.
    fn elsewhere(
        &self,
        plan: &Plan,
        range: PageRange,
        has_reader: bool,
    ) -> Result<Vec<PageRange>, CaptureError> {
        let (mut elsewhere, mut removed) = (Vec::new(), None);
        for run in plan.missing.iter().map(|run| run.intersection(range)).filter(|run| !run.is_empty()) {
            self.engine.map().state_runs(run, |run, state| match state {
                PageState::Present => {}
                _ if has_reader => elsewhere.push(run),
                PageState::Removed => removed = Some(run),
                // It comes as it does for the guest.
                PageState::Missing | PageState::Requested => {}
            });
        }
        removed.map_or(Ok(elsewhere), |range| Err(CaptureError::Discarded { range }))
    }

    /// Reads what is in the RAM. What is shared by a memfd is read there: the host may have unmapped it, and who fails to
    /// map it again would have us wait.
    fn read_ram(&self, range: PageRange, bytes: &mut [u8]) -> Result<(), CaptureError> {
        let ram = self.ram();
        if ram.backing().shares_writes()
            && !self.comes_through_guest(range)
            && let Some(memfd) = ram.memfd()
        {
            let read = read_all(memfd, range, bytes);
            return Ok(read.map_err(|source| WriteError::Cache { range, source })?);
        }
        Ok(ram.copy_out(&[range], bytes).map_err(WriteError::from)?)
    }

    /// Whether pages of `range` are with their source, to be had by touching them.
    fn comes_through_guest(&self, range: PageRange) -> bool {
        let mut is_missing = false;
        self.engine.map().state_runs(range, |_, state| {
            is_missing |= matches!(state, PageState::Missing | PageState::Requested);
        });
        is_missing
    }
}
