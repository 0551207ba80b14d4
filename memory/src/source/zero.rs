//! A source of zero pages: what fresh memory is.

use std::os::fd::BorrowedFd;

use super::{PageReply, PageRequest, PageSource, SourceError};
use crate::page::PageRange;

/// Says of every page that it is zero.
#[derive(Debug, Default)]
pub struct ZeroSource {
    asked: Vec<PageRange>,
}

impl PageSource for ZeroSource {
    fn name(&self) -> &'static str {
        "zero"
    }

    fn submit(&mut self, requests: &[PageRequest]) -> Result<(), SourceError> {
        self.asked.extend(requests.iter().map(|request| request.range));
        Ok(())
    }

    fn complete(&mut self, sink: &mut dyn FnMut(PageReply<'_>)) -> Result<(), SourceError> {
        for range in self.asked.drain(..) {
            sink(PageReply::Zero(range));
        }
        Ok(())
    }

    fn has_more(&self) -> bool {
        !self.asked.is_empty()
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
