//! A source that answers with whole huge pages.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;

use memory::source::{Content, PageReader, PageReply, PageRequest, PageSource, SourceError};
use memory::{PageRange, PageSize};

use super::content::PAGE;

/// Reads a huge page at a time, when it is asked for answers.
pub(super) struct Whole<R> {
    reader: R,
    asked: VecDeque<PageRange>,
    buffer: Vec<u8>,
}

impl<R: PageReader> Whole<R> {
    pub(super) fn new(reader: R) -> Self {
        Self { reader, asked: VecDeque::new(), buffer: vec![0; 512 * PAGE] }
    }
}

impl<R: PageReader> PageSource for Whole<R> {
    fn name(&self) -> &'static str {
        "whole"
    }

    fn submit(&mut self, requests: &[PageRequest]) -> Result<(), SourceError> {
        self.asked.extend(requests.iter().map(|request| request.range));
        Ok(())
    }

    fn complete(&mut self, sink: &mut dyn FnMut(PageReply<'_>)) -> Result<(), SourceError> {
        while let Some(range) = self.asked.pop_front() {
            for page in range.wholes(PageSize::Huge2M) {
                sink(match self.reader.read(page, &mut self.buffer)? {
                    Content::Bytes => PageReply::Bytes(page, &self.buffer),
                    Content::Zero => PageReply::Zero(page),
                });
            }
        }
        Ok(())
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
