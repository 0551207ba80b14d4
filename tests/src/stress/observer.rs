//! Who is told of writes to protected pages, and what it was told.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use memory::PageRange;
use memory::fault::{Verdict, WriteObserver};
use memory::source::pattern::Sequence;

use super::content::{PAGE, digest};

/// What a page held before its first write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Before {
    /// These bytes, by their digest.
    Bytes(u64),
    /// It was said to have been thrown away.
    ThrownAway,
}

/// What was told since memory was protected.
#[derive(Debug, Default)]
struct Told {
    first: HashMap<u64, Before>,
    /// What was told to wait, until it is allowed.
    waiting: Vec<PageRange>,
    allowed: HashMap<u64, ()>,
}

/// The log of one protection.
#[derive(Debug)]
pub(super) struct Log {
    pub(super) generation: u64,
    told: Mutex<Told>,
}

impl Log {
    pub(super) fn new(generation: u64) -> Arc<Self> {
        Arc::new(Self { generation, told: Mutex::default() })
    }

    /// What was told first of a page.
    pub(super) fn first(&self, page: u64) -> Option<Before> {
        self.told().first.get(&page).copied()
    }

    /// Takes what waits.
    pub(super) fn take_waiting(&self) -> Vec<PageRange> {
        let mut told = self.told();
        let waiting = std::mem::take(&mut told.waiting);
        told.allowed.extend(waiting.iter().map(|range| (range.start.0, ())));
        waiting
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes the log.
pub(super) struct Observer {
    pub(super) log: Arc<Log>,
    pub(super) chance: Sequence,
    pub(super) wait_percent: u8,
}

impl WriteObserver for Observer {
    fn before_write(&mut self, page: PageRange, content: io::Result<&[u8]>) -> Verdict {
        let content = content.expect("a page that somebody is about to write can be read");
        let mut told = self.log.told();
        for (number, bytes) in page.pages().map(|page| page.0).zip(pages_of(content, page.count)) {
            told.first.entry(number).or_insert_with(|| match bytes {
                Some(bytes) => Before::Bytes(digest(bytes)),
                None => Before::ThrownAway,
            });
        }
        if !told.allowed.contains_key(&page.start.0) && self.chance.happens(self.wait_percent) {
            told.waiting.push(page);
            return Verdict::Wait;
        }
        Verdict::Allow
    }
}

/// The bytes of each page; none for one that was thrown away.
fn pages_of(content: &[u8], count: u64) -> impl Iterator<Item = Option<&[u8]>> {
    let mut chunks = content.chunks(PAGE);
    (0..count).map(move |_| chunks.next())
}
