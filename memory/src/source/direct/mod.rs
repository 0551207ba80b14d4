//! An image, read past the page cache by io_uring: for a disk with many requests in flight, and a host whose memory is
//! for guests and not for a second copy of what they read once.
//!
//! ```text
//!   submit ──▶ waiting ── first run of each ──▶ data: a slot of the ring ── landed ──▶ ready ── complete ──▶ sink
//!                                          └──▶ zero, or lost: ─────────────────────────▲
//! ```
//!
//! Invariants:
//!
//! - At most [`SLOTS`] reads of [`SLOT_PAGES`] are in flight. What is more waits, demand before prefetch, and prefetch
//!   never takes the last few.
//! - At most `READY_MAX` answers that take no slot are ready; the rest of the holes is looked at later.
//! - A range that cannot be read is lost alone.
//! - A read that was begun has ended before its buffer is freed: see `ring`.

mod files;
mod ring;

use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use super::image::{Image, Origin};
use super::lanes::Lanes;
use super::reader::{PIECE_PAGES, prefetch_room};
use super::{PageReply, PageRequest, PageSource, Priority, SourceError};
use crate::page::PageRange;
pub use files::DirectError;
use ring::{Read, Ring, Slot, Stop};

/// How many reads are in flight at most.
pub const SLOTS: u16 = 64;
/// How long one is at most: 128 KiB.
pub const SLOT_PAGES: u64 = 32;
/// How many slots are kept for what a guest waits for.
const DEMAND_SLOTS: usize = 8;
/// How many answers may be ready before those that take no slot wait for the engine.
const READY_MAX: usize = 1024;

/// What can be told to the engine.
#[derive(Debug)]
enum Ready {
    Zero(PageRange),
    Lost(PageRange, SourceError),
    Landed(Slot, Option<Stop>),
}

/// A source that reads an image with many reads in flight.
#[derive(Debug)]
pub struct DirectSource {
    /// Before the files: it is dropped first, and waits for what it reads from them.
    ring: Ring,
    image: Arc<Image>,
    /// The image's files once more, opened for reading past the page cache.
    files: Vec<File>,
    waiting: Lanes<PageRange>,
    ready: Lanes<Ready>,
    /// The kernel could not take all that was begun.
    is_owed_submission: bool,
}

impl DirectSource {
    /// A source of `image`.
    ///
    /// # Errors
    ///
    /// [`DirectError`] where the host has no io_uring, or a file system cannot do without the page cache: what to use
    /// then is the caller's choice.
    pub fn open(image: Arc<Image>) -> Result<Self, DirectError> {
        let files = files::open(&image)?;
        let ring = Ring::new(SLOTS, SLOT_PAGES).map_err(DirectError::NoIoUring)?;
        Ok(Self {
            ring,
            image,
            files,
            waiting: Lanes::default(),
            ready: Lanes::default(),
            is_owed_submission: false,
        })
    }

    /// Begins what there is room for, and has the kernel see it.
    fn pump(&mut self) -> Result<(), SourceError> {
        for (priority, kept) in [(Priority::Demand, 0), (Priority::Prefetch, DEMAND_SLOTS)] {
            while self.ring.free_slots() > kept
                && self.ready.len() < READY_MAX
                && let Some(range) = self.waiting.pop(priority)
            {
                self.begin(range, priority);
            }
        }
        let submitted = self.ring.submit();
        let is_seen =
            submitted.map_err(|error| SourceError::Gone(format!("io_uring takes no reads: {error}")))?;
        self.is_owed_submission = !is_seen;
        Ok(())
    }

    /// Begins the first run of `range`, as far as a slot goes; the rest goes back to the head of its queue.
    fn begin(&mut self, range: PageRange, priority: Priority) {
        let run = match self.image.first_run(range) {
            Ok(run) => run,
            Err(error) => return self.ready.push(priority, Ready::Lost(range, error)),
        };
        let begun = match run.origin {
            Origin::Zero => {
                let (piece, _) = run.range.split_at(PIECE_PAGES);
                self.ready.push(priority, Ready::Zero(piece));
                piece
            }
            Origin::Layer(layer) => {
                let (piece, _) = run.range.split_at(SLOT_PAGES);
                let fd = self.files[layer].as_raw_fd();
                self.ring.begin(Read { fd, range: piece, priority, done: 0 });
                piece
            }
        };
        let rest = PageRange::between(begun.end(), range.end());
        if !rest.is_empty() {
            self.waiting.unpop(priority, rest);
        }
    }

    /// Tells the engine of one answer; says of how many pages.
    fn tell(&mut self, ready: Ready, sink: &mut dyn FnMut(PageReply<'_>)) -> u64 {
        let (slot, stop) = match ready {
            Ready::Zero(range) => {
                sink(PageReply::Zero(range));
                return range.count;
            }
            Ready::Lost(range, error) => {
                sink(PageReply::Lost(range, error));
                return range.count;
            }
            Ready::Landed(slot, stop) => (slot, stop),
        };
        let (read, bytes) = self.ring.landed(slot);
        if read.done > 0 {
            sink(PageReply::Bytes(read.got(), bytes));
        }
        self.ring.release(slot);
        let range = read.missing();
        match stop {
            None => {}
            Some(Stop::Short) => sink(PageReply::Lost(range, SourceError::Truncated { range })),
            Some(Stop::Failed(source)) => sink(PageReply::Lost(range, SourceError::Read { range, source })),
        }
        read.range.count
    }
}

impl PageSource for DirectSource {
    fn name(&self) -> &'static str {
        "direct"
    }

    fn submit(&mut self, requests: &[PageRequest]) -> Result<(), SourceError> {
        self.waiting.queue(requests)?;
        self.pump()
    }

    fn complete(&mut self, sink: &mut dyn FnMut(PageReply<'_>)) -> Result<(), SourceError> {
        // First: what lands after the last look at the ring is news.
        self.ring.acknowledge();
        while let Some((slot, stop)) = self.ring.take_landed() {
            let priority = self.ring.landed(slot).0.priority;
            self.ready.push(priority, Ready::Landed(slot, stop));
        }
        let mut demanded = 0;
        while let Some(ready) = self.ready.pop(Priority::Demand) {
            demanded += self.tell(ready, sink);
        }
        let mut room = prefetch_room(demanded);
        while room > 0
            && let Some(ready) = self.ready.pop(Priority::Prefetch)
        {
            room = room.saturating_sub(self.tell(ready, sink));
        }
        self.pump()
    }

    fn has_more(&self) -> bool {
        self.is_owed_submission || !self.ready.is_empty()
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        Some(self.ring.completion())
    }
}

#[cfg(test)]
mod tests;
