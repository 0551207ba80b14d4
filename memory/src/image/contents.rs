//! What a memory file holds.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::page::{PageIndex, PageRange};

/// How many pages a memory has at most: what a file's offsets reach.
const PAGES_MAX: u64 = i64::MAX.cast_unsigned() / PageIndex(1).offset();

/// What a memory file holds: where its data is, and a checksum of each page of it. All else is a hole.
///
/// It is saved apart from the file. What is loaded is refused where it cannot be of any memory; whether it is of *this*
/// one, who loads it checks by [`pages`](Self::pages).
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked")]
pub struct Contents {
    pages: u64,
    /// For each run of data how many pages there are between the run before and it, and how many it has. Both are at
    /// least one, but for the first gap.
    data: Vec<(u64, u64)>,
    /// The crc32c of each page of data, in order.
    sums: Vec<u32>,
}

/// As it was saved.
#[derive(Deserialize)]
struct Unchecked {
    pages: u64,
    data: Vec<(u64, u64)>,
    sums: Vec<u32>,
}

/// Why saved contents are refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ContentsError {
    /// There is no such memory.
    #[error("a memory of {pages} pages cannot be: the snapshot is damaged, so take another copy of it")]
    Pages {
        /// How many it is said to have.
        pages: u64,
    },
    /// Two runs touch, or one is empty.
    #[error(
        "run {run} of a memory file's data is empty or touches another: take another copy of the snapshot"
    )]
    Run {
        /// Which, counted from 0.
        run: usize,
    },
    /// A run is past the end of the memory.
    #[error(
        "run {run} of a memory file's data is not in its {pages} pages: take another copy of the snapshot"
    )]
    PastEnd {
        /// Which, counted from 0.
        run: usize,
        /// How many pages the memory has.
        pages: u64,
    },
    /// There is not one checksum for each page of data.
    #[error(
        "{actual} checksums are not those of a memory file's {expected} pages: take another copy of the snapshot"
    )]
    Sums {
        /// How many there are.
        actual: usize,
        /// How many pages of data there are.
        expected: u64,
    },
    /// Two files are not of one memory.
    #[error("files of {base} and of {other} pages are not of one memory: name those of one guest")]
    Other {
        /// How many pages the one below has.
        base: u64,
        /// How many the other has.
        other: u64,
    },
}

/// Its size alone: it has an entry for each page.
impl fmt::Debug for Contents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (pages, runs, data_pages) = (self.pages, self.data.len(), self.sums.len());
        write!(f, "Contents {{ {data_pages} of {pages} pages, in {runs} runs }}")
    }
}

impl TryFrom<Unchecked> for Contents {
    type Error = ContentsError;

    fn try_from(saved: Unchecked) -> Result<Self, ContentsError> {
        let Unchecked { pages, data, sums } = saved;
        if pages == 0 || pages > PAGES_MAX {
            return Err(ContentsError::Pages { pages });
        }
        let (mut end, mut expected) = (0_u64, 0_u64);
        for (run, &(gap, count)) in data.iter().enumerate() {
            if count == 0 || (gap == 0 && run > 0) {
                return Err(ContentsError::Run { run });
            }
            let after = end.checked_add(gap).and_then(|start| start.checked_add(count));
            end = after.filter(|end| *end <= pages).ok_or(ContentsError::PastEnd { run, pages })?;
            expected += count;
        }
        if sums.len() as u64 != expected {
            return Err(ContentsError::Sums { actual: sums.len(), expected });
        }
        Ok(Self { pages, data, sums })
    }
}

impl Contents {
    /// Of a memory of `pages` pages, none of which is data yet.
    pub(super) fn empty(pages: PageRange) -> Self {
        Self { pages: pages.count, data: Vec::new(), sums: Vec::new() }
    }

    /// Adds `range`, which is not empty and after all that is there.
    pub(super) fn push(&mut self, end: &mut PageIndex, range: PageRange, sums: &[u32]) {
        debug_assert!(range.start >= *end && range.count == sums.len() as u64, "{range} is in order");
        let gap = range.start.0 - end.0;
        match self.data.last_mut() {
            Some((_, count)) if gap == 0 => *count += range.count,
            _ => self.data.push((gap, range.count)),
        }
        self.sums.extend_from_slice(sums);
        *end = range.end();
    }

    /// The pages of the memory.
    #[must_use]
    pub fn pages(&self) -> PageRange {
        PageRange { start: PageIndex(0), count: self.pages }
    }

    /// How many pages of data there are.
    #[must_use]
    pub fn data_pages(&self) -> u64 {
        self.sums.len() as u64
    }

    /// The pages of data, in order, with a hole between each run and the next.
    pub fn data(&self) -> impl Iterator<Item = PageRange> {
        self.data.iter().scan(PageIndex(0), |end, &(gap, count)| {
            let range = PageRange { start: PageIndex(end.0 + gap), count };
            *end = range.end();
            Some(range)
        })
    }

    /// The same, with the checksum of each page.
    pub fn summed(&self) -> impl Iterator<Item = (PageRange, &[u32])> {
        let mut sums = self.sums.as_slice();
        self.data().map(move |range| {
            let count = usize::try_from(range.count).expect("there is a checksum for each");
            let (now, later) = sums.split_at(count);
            sums = later;
            (range, now)
        })
    }

    /// What the memory is when `diff` is laid over it: the diff's pages, and of the others what is here.
    ///
    /// # Errors
    ///
    /// [`ContentsError::Other`].
    pub fn under(&self, diff: &Self) -> Result<Self, ContentsError> {
        if self.pages != diff.pages {
            return Err(ContentsError::Other { base: self.pages, other: diff.pages });
        }
        let replaced: Vec<_> = diff.data().collect();
        let mut runs: Vec<_> = diff.summed().collect();
        for (range, sums) in self.summed() {
            let parts = outside(range, &replaced).into_iter();
            runs.extend(parts.map(|part| (part, sums_of(range, sums, part))));
        }
        runs.sort_unstable_by_key(|(range, _)| range.start);
        let (mut merged, mut end) = (Self::empty(self.pages()), PageIndex(0));
        for (range, sums) in runs {
            merged.push(&mut end, range, sums);
        }
        Ok(merged)
    }
}

/// What of `range` is in none of `except`, which are in order.
pub(crate) fn outside(range: PageRange, except: &[PageRange]) -> Vec<PageRange> {
    let (mut parts, mut rest) = (Vec::new(), range);
    let first = except.partition_point(|other| other.end() <= range.start);
    for other in except[first..].iter().take_while(|other| other.start < range.end()) {
        parts.push(PageRange::between(rest.start, other.start));
        rest = PageRange::between(other.end(), rest.end());
    }
    parts.push(rest);
    parts.retain(|part| !part.is_empty());
    parts
}

/// The part of the checksums `sums` of `range` that are those of `part`.
pub(super) fn sums_of(range: PageRange, sums: &[u32], part: PageRange) -> &[u32] {
    let index = |page: PageIndex| usize::try_from(page.0 - range.start.0).expect("it is one of them");
    &sums[index(part.start)..index(part.end())]
}
