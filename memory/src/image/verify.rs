//! A memory file against its contents: every page of it, holes and all.

use std::fs::File;
use std::io;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use super::contents::{Contents, outside, sums_of};
use super::error::VerifyError;
use super::file::{BATCH_PAGES, batch_buffer, each_page, is_zero, length_of, read_all};
use super::progress::Progress;
use crate::page::{PageIndex, PageRange};

/// How many runs of pages that differ are told.
pub const DIFFERING_MAX: usize = 16;

/// Reads all of `file` and compares each page with what `contents` say: a page of data by its checksum, any other with
/// zero. Holes are not read.
///
/// # Errors
///
/// [`VerifyError`]: for pages that differ, all of them counted and the first [`DIFFERING_MAX`] runs named; for a file
/// of another length; and for one that cannot be read.
pub fn verify(file: &File, contents: &Contents, progress: Option<&Progress>) -> Result<(), VerifyError> {
    verify_except(file, contents, &[], progress)
}

/// The same, but for the pages of `except`, which are in order.
pub(super) fn verify_except(
    file: &File,
    contents: &Contents,
    except: &[PageRange],
    progress: Option<&Progress>,
) -> Result<(), VerifyError> {
    let pages = contents.pages();
    check_length(file, pages)?;
    let unwatched = Progress::default();
    let mut verifier = Verifier::new(file, progress.unwrap_or(&unwatched));
    let mut end = pages.start;
    for (data, sums) in contents.summed() {
        verifier.holes(PageRange::between(end, data.start), except)?;
        for part in outside(data, except) {
            verifier.data(part, sums_of(data, sums, part))?;
        }
        end = data.end();
    }
    verifier.holes(PageRange::between(end, pages.end()), except)?;
    verifier.end()
}

fn check_length(file: &File, pages: PageRange) -> Result<(), VerifyError> {
    let read = |source: Errno| VerifyError::Read { range: pages, source: source.into() };
    // By its end, as a block device has no other length.
    let actual = seek(file, SeekFrom::End(0)).map_err(read)?;
    if actual != pages.bytes() {
        return Err(VerifyError::Size { actual, expected: pages.bytes() });
    }
    Ok(())
}

/// A file that is looked at, and what was found so far.
pub(super) struct Verifier<'a> {
    file: &'a File,
    progress: &'a Progress,
    buffer: Vec<u8>,
    differing: Vec<PageRange>,
    count: u64,
}

impl<'a> Verifier<'a> {
    pub(super) fn new(file: &'a File, progress: &'a Progress) -> Self {
        Self { file, progress, buffer: batch_buffer(), differing: Vec::new(), count: 0 }
    }

    /// What was found.
    pub(super) fn end(self) -> Result<(), VerifyError> {
        if self.count > 0 {
            return Err(VerifyError::Differ { ranges: self.differing, count: self.count });
        }
        Ok(())
    }

    /// Looks at data, of which each page has one of `sums`.
    fn data(&mut self, range: PageRange, sums: &[u32]) -> Result<(), VerifyError> {
        let mut rest = range;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(BATCH_PAGES);
            self.batch(now, Some(sums_of(range, sums, now)))?;
            rest = later;
        }
        Ok(())
    }

    /// Looks at what is to be zero.
    fn holes(&mut self, range: PageRange, except: &[PageRange]) -> Result<(), VerifyError> {
        for part in outside(range, except) {
            let mut rest = part;
            while !rest.is_empty() {
                let failed = |source| VerifyError::Read { range: rest, source };
                let data = next_data(self.file, rest).map_err(failed)?;
                self.progress.add(rest.count - data.count);
                // The end of it is not asked for, as the kernel would go on to that for each piece.
                let (now, later) = data.split_at(BATCH_PAGES);
                self.batch(now, None)?;
                rest = later;
            }
        }
        Ok(())
    }

    /// Reads `range`, and compares it with `sums`, or else with zero.
    pub(super) fn batch(&mut self, range: PageRange, sums: Option<&[u32]>) -> Result<&[u8], VerifyError> {
        if self.progress.is_cancelled() {
            return Err(VerifyError::Cancelled);
        }
        let bytes = &mut self.buffer[..length_of(range)];
        read_all(self.file, range, bytes).map_err(|source| VerifyError::Read { range, source })?;
        for (nth, (page, bytes)) in each_page(range, bytes).enumerate() {
            let is_right = sums.map_or_else(|| is_zero(bytes), |sums| sums[nth] == crc32c::crc32c(bytes));
            if !is_right {
                self.count += 1;
                note(&mut self.differing, page);
            }
        }
        self.progress.add(range.count);
        Ok(&self.buffer[..length_of(range)])
    }
}

fn note(differing: &mut Vec<PageRange>, page: PageIndex) {
    let has_room = differing.len() < DIFFERING_MAX;
    match differing.last_mut() {
        Some(last) if last.end() == page => last.count += 1,
        _ if has_room => differing.push(page.alone()),
        _ => {}
    }
}

/// What of `range` follows its first hole; none where all of it is a hole.
fn next_data(file: &File, range: PageRange) -> io::Result<PageRange> {
    let start = match seek(file, SeekFrom::Data(range.start.offset())) {
        Ok(data) => PageIndex::at_offset(data).max(range.start),
        Err(Errno::NXIO) => range.end(),
        // A block device has no holes.
        Err(Errno::INVAL) => range.start,
        Err(error) => return Err(error.into()),
    };
    Ok(PageRange::between(start.min(range.end()), range.end()))
}
