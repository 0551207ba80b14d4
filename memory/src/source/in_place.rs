//! A source for memory over a memfd that has its content already: pages only have to be mapped.
//!
//! This is how clones share memory. The memfd holds what was saved; each clone maps it privately, and a page is its own
//! from its first write on.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{SeekFrom, seek};

use super::lanes::Lanes;
use super::{PageReply, PageRequest, PageSource, Priority, SourceError};
use crate::page::{PageIndex, PageRange};

/// Says of what a memfd has that it is in place, and of its holes that they are zero.
#[derive(Debug)]
pub struct InPlaceSource {
    memfd: OwnedFd,
    asked: Lanes<PageRange>,
}

impl InPlaceSource {
    /// A source of what is in `memfd`, which is the one that the memory is over, and has all its content.
    #[must_use]
    pub fn new(memfd: OwnedFd) -> Self {
        Self { memfd, asked: Lanes::default() }
    }

    /// What is to be answered next.
    fn pop(&mut self) -> Option<PageRange> {
        self.asked.pop(Priority::Demand).or_else(|| self.asked.pop(Priority::Prefetch))
    }

    /// The first pages of `range` that are alike, and whether they are there.
    ///
    /// Each page that is there is asked about: the kernel finds the end of data only by going through all of it, to the
    /// end of the memfd if there is no hole, which may be thousands of times as much as is wanted.
    fn first_run(&self, range: PageRange) -> io::Result<(PageRange, bool)> {
        let data = self.next_data(range)?;
        if data > range.start {
            return Ok((PageRange::between(range.start, data), false));
        }
        let mut rest = range.split_at(1).1;
        while !rest.is_empty() && self.next_data(rest)? == rest.start {
            rest = rest.split_at(1).1;
        }
        Ok((PageRange::between(range.start, rest.start), true))
    }

    /// The first page of `range` that is there, or its end.
    fn next_data(&self, range: PageRange) -> io::Result<PageIndex> {
        match seek(&self.memfd, SeekFrom::Data(range.start.offset())) {
            Ok(data) => Ok(PageIndex::at_offset(data).min(range.end())),
            // There is none up to the end of the file.
            Err(rustix::io::Errno::NXIO) => Ok(range.end()),
            Err(error) => Err(error.into()),
        }
    }
}

impl PageSource for InPlaceSource {
    fn name(&self) -> &'static str {
        "in-place"
    }

    fn submit(&mut self, requests: &[PageRequest]) -> Result<(), SourceError> {
        self.asked.queue(requests)
    }

    fn complete(&mut self, sink: &mut dyn FnMut(PageReply<'_>)) -> Result<(), SourceError> {
        while let Some(range) = self.pop() {
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

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;
    use crate::source::QUEUED_REQUESTS_MAX;

    fn request(page: u64, priority: Priority) -> PageRequest {
        PageRequest { range: PageIndex(page).alone(), priority }
    }

    fn source() -> InPlaceSource {
        let file: File = tempfile::tempfile().unwrap();
        file.set_len(4 << 20).unwrap();
        InPlaceSource::new(file.into())
    }

    fn answers(source: &mut InPlaceSource) -> Vec<PageRange> {
        let mut answers = Vec::new();
        let take = &mut |reply: PageReply<'_>| match reply {
            PageReply::Zero(range) => answers.push(range),
            other => panic!("a hole is zero, and not {other:?}"),
        };
        source.complete(take).unwrap();
        answers
    }

    #[test]
    fn demand_is_answered_before_prefetch() {
        let mut source = source();
        let requests = [(7, Priority::Prefetch), (9, Priority::Demand)];
        source.submit(&requests.map(|(page, priority)| request(page, priority))).unwrap();
        assert_eq!(answers(&mut source), [PageIndex(9).alone(), PageIndex(7).alone()]);
    }

    #[test]
    fn a_batch_for_which_there_is_no_room_is_refused_whole() {
        let mut source = source();
        let batch = vec![request(1, Priority::Prefetch); QUEUED_REQUESTS_MAX - 1];
        source.submit(&batch).unwrap();
        let two = [request(2, Priority::Demand), request(3, Priority::Demand)];
        let refused = source.submit(&two).unwrap_err();
        let queued = QUEUED_REQUESTS_MAX - 1;
        assert!(matches!(refused, SourceError::QueueFull { queued: there } if there == queued), "{refused}");
        source.submit(&two[..1]).unwrap();
        let answers = answers(&mut source);
        assert_eq!((answers.len(), answers[0]), (QUEUED_REQUESTS_MAX, PageIndex(2).alone()));
    }
}
