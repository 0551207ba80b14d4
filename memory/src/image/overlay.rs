//! A diff into its base.

use std::fs::File;

use super::contents::Contents;
use super::error::OverlayError;
use super::file::{BATCH_PAGES, MemoryFile, write_all};
use super::progress::Progress;
use super::verify::{Verifier, verify, verify_except};
use crate::page::PageRange;

/// Writes the pages of `diff` into `base`, in place, and gives the contents of what `base` is then: what Firecracker's
/// `snapshot-editor edit-memory rebase` does. It is on the disk when this returns.
///
/// Both files are compared with their contents before the first write. Of the base only those pages are that the diff
/// does not replace: so one that was cut off, by a crash or a full disk, is done again with the same contents. Until
/// then the base is neither what it was nor what it is to be; who needs it whole at all times gives a copy of it.
///
/// # Errors
///
/// [`OverlayError`], which says whether anything was written.
pub fn overlay(
    base: (&File, &Contents),
    diff: (&File, &Contents),
    progress: Option<&Progress>,
) -> Result<Contents, OverlayError> {
    let merged = merge(base, diff, progress, base.0)?;
    base.0.sync_data().map_err(OverlayError::Sync)?;
    Ok(merged)
}

/// The same, into what tests let fail.
pub(super) fn merge(
    base: (&File, &Contents),
    diff: (&File, &Contents),
    progress: Option<&Progress>,
    into: &dyn MemoryFile,
) -> Result<Contents, OverlayError> {
    let merged = base.1.under(diff.1)?;
    let replaced: Vec<_> = diff.1.data().collect();
    verify_except(base.0, base.1, &replaced, progress).map_err(OverlayError::Base)?;
    verify(diff.0, diff.1, progress).map_err(OverlayError::Diff)?;
    for (range, sums) in diff.1.summed() {
        copy(diff.0, range, sums, into)?;
    }
    Ok(merged)
}

/// Copies `range` of the diff. Not to be cancelled: the base is in between.
fn copy(diff: &File, range: PageRange, sums: &[u32], into: &dyn MemoryFile) -> Result<(), OverlayError> {
    let progress = Progress::default();
    let mut sums = sums;
    let mut rest = range;
    while !rest.is_empty() {
        let (now, later) = rest.split_at(BATCH_PAGES);
        let (these, others) = sums.split_at(usize::try_from(now.count).expect("one for each page"));
        let mut verifier = Verifier::new(diff, &progress);
        // Read and compared again: it may have changed.
        let bytes = verifier.batch(now, Some(these)).map_err(OverlayError::Diff)?.to_vec();
        verifier.end().map_err(OverlayError::Diff)?;
        let written = write_all(into, &bytes, now.start.offset());
        written.map_err(|(offset, source)| OverlayError::Write { offset, source })?;
        (rest, sums) = (later, others);
    }
    Ok(())
}
