//! A scripted source whose bytes are the guest's: the script says when and how, not what.

use std::io;
use std::os::fd::BorrowedFd;

use memory::PageIndex;
use memory::source::scripted::{Script, ScriptedSource};
use memory::source::{PageReply, PageRequest, PageSource, SourceError};

use super::{RAM_MIB, content};

/// A scripted source with the guest's content.
pub(super) struct Painted {
    source: ScriptedSource,
    bytes: Vec<u8>,
    /// How many answers it gives before its thread is lost with it.
    answers_left: Option<u64>,
}

impl Painted {
    pub(super) fn new(script: Script, panics_after: Option<u64>) -> io::Result<Self> {
        let (source, _) = ScriptedSource::new(script, PageIndex::at_offset(RAM_MIB << 20).0)?;
        Ok(Self { source, bytes: Vec::new(), answers_left: panics_after })
    }
}

impl PageSource for Painted {
    fn name(&self) -> &'static str {
        "painted"
    }

    fn submit(&mut self, requests: &[PageRequest]) -> Result<(), SourceError> {
        self.source.submit(requests)
    }

    fn complete(&mut self, sink: &mut dyn FnMut(PageReply<'_>)) -> Result<(), SourceError> {
        let Self { source, bytes, answers_left } = self;
        source.complete(&mut |reply| {
            if let Some(left) = answers_left {
                assert!(*left > 0, "it was told to");
                *left -= 1;
            }
            let PageReply::Bytes(range, plain) = reply else { return sink(reply) };
            bytes.resize(plain.len(), 0);
            let pages = range.pages().zip(bytes.chunks_mut(4096));
            pages.for_each(|(page, bytes)| content::write(page, bytes));
            sink(PageReply::Bytes(range, bytes));
        })
    }

    fn has_more(&self) -> bool {
        self.source.has_more()
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        self.source.readiness()
    }
}
