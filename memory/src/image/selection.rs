//! Which pages are written, and how each is read.
//!
//! | memory that nobody serves | which pages it has | they are read through |
//! |---|---|---|
//! | anonymous, hugetlb | what the page tables know of | the mapping |
//! | memfd, shared | the data of the memfd; of hugetlb all, as it tells no holes | the memfd |
//! | memfd, private; a saved file | what the page tables know of, and besides the data of the file | the mapping; the file |
//!
//! Nothing is allocated by any of these. All other pages are read through the mapping, where whoever serves them is
//! asked for what is missing.

use std::io;
use std::os::fd::BorrowedFd;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use super::error::WriteError;
use super::file::{length_of, read_all};
use crate::page::{PageIndex, PageRange, PageSize};
use crate::ram::GuestRam;
use crate::uffd::Pagemap;

/// Which pages are written.
#[derive(Debug, Clone, Copy)]
pub enum Selection<'a> {
    /// All that are not zero.
    Full {
        /// Nobody serves the faults of this memory, so a page that the host never backed is known to be zero. It is
        /// not read then, and not allocated by it.
        unserved: bool,
    },
    /// Just these, zero or not: a diff. In ascending order, each once.
    Pages(&'a [PageRange]),
}

/// How pages are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Through {
    Mapping,
    Below,
}

/// Pages to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) range: PageRange,
    pub(super) through: Through,
}

/// A selection on one memory.
pub(super) struct Selected<'a> {
    ram: &'a GuestRam,
    selection: Selection<'a>,
    /// Looked at where it says which pages there are.
    pagemap: Option<Pagemap>,
    /// The data of the memfd or saved file, where that is looked at. Asked for once: the kernel goes on to the end of a run of data
    /// for each part of it that is asked for.
    cached: Vec<PageRange>,
}

impl<'a> Selected<'a> {
    pub(super) fn new(ram: &'a GuestRam, selection: Selection<'a>) -> Result<Self, WriteError> {
        if let Selection::Pages(ranges) = selection {
            check(ranges, ram.pages())?;
        }
        let (mut pagemap, mut cached) = (None, Vec::new());
        if matches!(selection, Selection::Full { unserved: true }) {
            if !ram.backing().shares_writes() {
                pagemap = Some(Pagemap::open().map_err(WriteError::Backed)?);
            }
            if let Some(below) = ram.below() {
                cached = data_of(below, ram.pages()).map_err(WriteError::Backed)?;
                // What is cut off has no data, as a hole has none.
                check_length(below, ram.pages())?;
            }
        }
        Ok(Self { ram, selection, pagemap, cached })
    }

    /// How many pages of `range` may be written.
    pub(super) fn count_in(&self, range: PageRange) -> u64 {
        match self.selection {
            Selection::Full { .. } => range.count,
            Selection::Pages(ranges) => cut(ranges, range).map(|range| range.count).sum(),
        }
    }

    /// Whether pages that are zero are left out.
    pub(super) fn skips_zero(&self) -> bool {
        matches!(self.selection, Selection::Full { .. })
    }

    /// The pages of `range` to be looked at, in order.
    pub(super) fn find(&self, range: PageRange) -> Result<Vec<Found>, WriteError> {
        let mapped = |range| Found { range, through: Through::Mapping };
        match self.selection {
            Selection::Pages(ranges) => Ok(cut(ranges, range).map(mapped).collect()),
            Selection::Full { unserved: false } => Ok(vec![mapped(range)]),
            Selection::Full { unserved: true } => self.backed(range).map_err(WriteError::Backed),
        }
    }

    /// The pages of `range` that the host has.
    fn backed(&self, range: PageRange) -> io::Result<Vec<Found>> {
        let cached = |range| cut(&self.cached, range).map(|range| Found { range, through: Through::Below });
        let mut found = Vec::new();
        let mut rest = range;
        if let Some(pagemap) = &self.pagemap {
            pagemap.known(self.ram, range, &mut |range| {
                found.extend(cached(PageRange::between(rest.start, range.start)));
                found.push(Found { range, through: Through::Mapping });
                rest = PageRange::between(range.end(), rest.end());
            })?;
        }
        found.extend(cached(rest));
        Ok(found)
    }

    /// Reads `ranges`, one after the other, into `bytes`, which is as long.
    pub(super) fn read(
        &self,
        ranges: &[PageRange],
        through: Through,
        bytes: &mut [u8],
    ) -> Result<(), WriteError> {
        let below = match (through, self.ram.below()) {
            (Through::Below, Some(below)) => below,
            _ => return Ok(self.ram.copy_out(ranges, bytes)?),
        };
        let mut rest = bytes;
        for &range in ranges {
            let (now, later) = rest.split_at_mut(length_of(range));
            read_all(below, range, now).map_err(|source| WriteError::Cache { range, source })?;
            rest = later;
        }
        Ok(())
    }
}

/// Refuses `ranges` that are not in order and each inside of `pages`.
fn check(ranges: &[PageRange], pages: PageRange) -> Result<(), WriteError> {
    let mut end = pages.start;
    for &range in ranges {
        let room = PageRange::between(range.start, pages.end()).count;
        if range.start < end || range.start > pages.end() || range.count > room {
            return Err(WriteError::Selection { range });
        }
        end = range.end();
    }
    Ok(())
}

/// Refuses what is below a memory of `pages` where some of it is gone.
fn check_length(below: BorrowedFd<'_>, pages: PageRange) -> Result<(), WriteError> {
    let actual = seek(below, SeekFrom::End(0)).map_err(|error| WriteError::Backed(error.into()))?;
    let expected = pages.bytes();
    if actual < expected { Err(WriteError::CutOff { actual, expected }) } else { Ok(()) }
}

/// What of `ranges`, which are in order, is in `range`.
fn cut(ranges: &[PageRange], range: PageRange) -> impl Iterator<Item = PageRange> {
    let first = ranges.partition_point(|other| other.end() <= range.start);
    let touching = ranges[first..].iter().take_while(move |other| other.start < range.end());
    touching.map(move |other| other.intersection(range)).filter(|part| !part.is_empty())
}

/// All the data of `memfd` in `range`: no more runs of it than every other page.
pub(crate) fn data_of(memfd: BorrowedFd<'_>, range: PageRange) -> io::Result<Vec<PageRange>> {
    let (mut all, mut rest) = (Vec::new(), range);
    while let Some(data) = next_data(memfd, rest)? {
        all.push(data);
        rest = PageRange::between(data.end(), rest.end());
    }
    Ok(all)
}

/// The first data of `memfd` in `range`.
fn next_data(memfd: BorrowedFd<'_>, range: PageRange) -> io::Result<Option<PageRange>> {
    if range.is_empty() {
        return Ok(None);
    }
    let data = match seek(memfd, SeekFrom::Data(range.start.offset())) {
        Ok(data) => PageIndex::at_offset(data),
        Err(Errno::NXIO) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    if data >= range.end() {
        return Ok(None);
    }
    let hole = seek(memfd, SeekFrom::Hole(data.offset()))?;
    let end = PageIndex(hole.div_ceil(PageSize::Base4K.bytes())).min(range.end());
    Ok(Some(PageRange::between(data, end)))
}
