//! Who is told of writes to protected chunks, and of discards.

use std::io;
use std::sync::Arc;

use super::desk::Desk;
use crate::fault::{Protection, Verdict, WriteObserver};
use crate::page::PageRange;
use crate::ram::DiscardWatcher;

/// Is told of writes, on the thread that serves faults.
pub(super) struct Observer {
    pub(super) desk: Arc<Desk>,
    pub(super) protection: Protection,
}

impl WriteObserver for Observer {
    fn before_write(&mut self, page: PageRange, _: io::Result<&[u8]>) -> Verdict {
        let mut verdict = Verdict::Wait;
        for chunk in self.desk.touched(page) {
            verdict = self.desk.write(chunk);
            if verdict == Verdict::Allow {
                // Its neighbours are likely to be written next, and each would be a fault.
                self.protection.unprotect_now(self.desk.range(chunk));
            }
        }
        verdict
    }
}

impl DiscardWatcher for Desk {
    fn before_discard(&self, range: PageRange) {
        Self::before_discard(self, range);
    }

    fn after_discard(&self, range: PageRange) {
        Self::after_discard(self, range);
    }
}
