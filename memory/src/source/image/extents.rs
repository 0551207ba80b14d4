//! Where a sparse file has data.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use super::SourceError;
use crate::page::{PageIndex, PageRange, PageSize};

/// The data of a file. A page that is data in part is data.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Extents {
    /// All of it: in order, and with a hole between each and the next.
    Known(Vec<PageRange>),
    /// There were too many to keep. The file is asked each time.
    Asked,
}

impl Extents {
    /// Finds the data of `file`, which is as long as `pages`, and keeps at most `extents_max` of it.
    pub(super) fn find(file: &File, pages: PageRange, extents_max: usize) -> io::Result<Self> {
        let mut known: Vec<PageRange> = Vec::new();
        let mut rest = pages;
        while let Some(data) = next_data(file, rest)? {
            rest = PageRange::between(data.end(), rest.end());
            // Blocks smaller than a page can put two extents into neighbouring pages.
            if let Some(last) = known.last_mut()
                && last.end() == data.start
            {
                last.count += data.count;
            } else if known.len() < extents_max {
                known.push(data);
            } else {
                return Ok(Self::Asked);
            }
        }
        Ok(Self::Known(known))
    }

    /// The first data of `file` that is in `range`.
    pub(super) fn first_in(&self, file: &File, range: PageRange) -> Result<Option<PageRange>, SourceError> {
        match self {
            Self::Known(known) => Ok(first_known(known, range)),
            Self::Asked => first_asked(file, range),
        }
    }
}

/// The first part of `known` that is in `range`.
pub(super) fn first_known(known: &[PageRange], range: PageRange) -> Option<PageRange> {
    let next = known.partition_point(|data| data.end() <= range.start);
    let data = known.get(next)?.intersection(range);
    (!data.is_empty()).then_some(data)
}

fn first_asked(file: &File, range: PageRange) -> Result<Option<PageRange>, SourceError> {
    let failed = |source| SourceError::Read { range, source };
    let data = next_data(file, range).map_err(failed)?;
    // Past its end a file is one hole: what was cut off must not pass for that.
    if data.is_none_or(|data| data.end() < range.end())
        && length(file).map_err(failed)? < range.end().offset()
    {
        return Err(SourceError::Truncated { range });
    }
    Ok(data)
}

/// How long a file or a block device is.
pub(super) fn length(file: &File) -> io::Result<u64> {
    Ok(seek(file.as_fd(), SeekFrom::End(0))?)
}

/// The first data in `range`, in whole pages.
fn next_data(file: &File, range: PageRange) -> io::Result<Option<PageRange>> {
    if range.is_empty() {
        return Ok(None);
    }
    let data = match seek(file.as_fd(), SeekFrom::Data(range.start.offset())) {
        Ok(data) => PageIndex::at_offset(data),
        Err(Errno::NXIO) => return Ok(None),
        // A block device has no holes.
        Err(Errno::INVAL) => return Ok(Some(range)),
        Err(error) => return Err(error.into()),
    };
    if data >= range.end() {
        return Ok(None);
    }
    let hole = match seek(file.as_fd(), SeekFrom::Hole(data.max(range.start).offset())) {
        Ok(hole) => hole.div_ceil(PageSize::Base4K.bytes()),
        // It was cut off meanwhile; reading will tell.
        Err(Errno::NXIO) => range.end().0,
        Err(error) => return Err(error.into()),
    };
    // At least a page, whatever the file has become since: who asks goes on after it.
    let end = PageIndex(hole.max(data.0 + 1)).min(range.end());
    Ok(Some(PageRange::between(data, end)))
}
