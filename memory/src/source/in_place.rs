//! A source for memory over a memfd that has its content already: pages only have to be mapped.
//!
//! This is how clones share memory. The memfd holds what was saved; each clone maps it privately, and a page is its own
//! from its first write on.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{SeekFrom, seek};

use super::{PageReply, PageRequest, PageSource, SourceError};
use crate::page::{PageIndex, PageRange};

/// Says of what a memfd has that it is in place, and of its holes that they are zero.
#[derive(Debug)]
pub struct InPlaceSource {
    memfd: OwnedFd,
    asked: VecDeque<PageRange>,
}

impl InPlaceSource {
    /// A source of what is in `memfd`, which is the one that the memory is over, and has all its content.
    #[must_use]
    pub fn new(memfd: OwnedFd) -> Self {
        Self { memfd, asked: VecDeque::new() }
    }

    /// The first pages of `range` that are alike, and whether they are there.
    fn first_run(&self, range: PageRange) -> io::Result<(PageRange, bool)> {
        let (start, end) = (range.start.offset(), range.end().offset());
        let data = match seek(&self.memfd, SeekFrom::Data(start)) {
            Ok(data) => data.min(end),
            // There is none up to the end of the file.
            Err(rustix::io::Errno::NXIO) => end,
            Err(error) => return Err(error.into()),
        };
        if data > start {
            return Ok((PageRange::between(range.start, PageIndex::at_offset(data)), false));
        }
        let hole = seek(&self.memfd, SeekFrom::Hole(start))?.min(end);
        Ok((PageRange::between(range.start, PageIndex::at_offset(hole)), true))
    }
}

impl PageSource for InPlaceSource {
    fn name(&self) -> &'static str {
        "in-place"
    }

    fn submit(&mut self, requests: &[PageRequest]) -> Result<(), SourceError> {
        self.asked.extend(requests.iter().map(|request| request.range));
        Ok(())
    }

    fn complete(&mut self, sink: &mut dyn FnMut(PageReply<'_>)) -> Result<(), SourceError> {
        while let Some(range) = self.asked.pop_front() {
            let mut rest = range;
            while !rest.is_empty() {
                match self.first_run(rest) {
                    Ok((run, is_there)) => {
                        sink(if is_there { PageReply::InPlace(run) } else { PageReply::Zero(run) });
                        rest = PageRange::between(run.end(), range.end());
                    }
                    Err(source) => {
                        sink(PageReply::Lost(rest, SourceError::Read { range: rest, source }));
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
