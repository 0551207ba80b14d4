//! Filling memory in the background, on a thread of its own.
//!
//! ```text
//!   urgent   whole chunks that a guest walks into ──┐
//!   ahead    ranges somebody expects to be wanted ──┼──▶ read, then claim, then place
//!   rest     what is missing, from the last fault on┘
//! ```
//!
//! A chunk of 2 MiB of which every page is missing is read into a huge page and moved in whole, where memory and kernel
//! can; what is left of other chunks is copied, in pieces. While huge pages are slow to be had all are copied.
//!
//! | room | what it is for |
//! |---|---|
//! | `queue` | what is to be filled, and in which order |
//! | `stock` | huge pages to read into, made ready ahead by another thread |
//! | `pace` | whether huge pages are quick enough to be had: pure |
//! | `thread`, `turn` | stopping, also where a read hangs |
//!
//! Invariants:
//!
//! - Pages are read before they are claimed: nobody who faults waits for the background's reading, but for chunks that
//!   were handed over as urgent, which are read first.
//! - Whoever waits for a chunk that could not be filled is woken, faults again, and is served on demand.
//! - Pages are placed within a passage of the gate, for discards are not seen here.
//! - Whoever stops a filler waits for its placing, and not for its reading: a filler that was left behind in a read places
//!   nothing when it comes back.

mod pace;
mod queue;
mod stock;
mod thread;
mod turn;

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(crate) use queue::FillQueue;
use queue::Job;
use stock::{Populate, Stock};
pub(super) use thread::{FillerEnd, FillerThread};

use super::install::{Content, Placement};
use super::shared::Shared;
use super::statistics::add;
use crate::map::{PageMap, PageState};
use crate::page::{PageRange, PageSize};
use crate::source::{Content as Found, PageReader, SourceError};
use crate::staging::Staging;

/// How many pages are copied at once: 64 KiB, from where on more of them cost as much for each.
const PIECE_PAGES: u64 = 16;
/// How many zero pages are placed at once: whoever wants one of them meanwhile waits for about as long as for a piece.
const ZERO_PIECE_PAGES: u64 = 256;
/// How many pages are read at once of what is to be copied: 256 KiB, which are still in the cache when they are.
const READ_PAGES: u64 = 64;
/// How long huge pages are kept ready for the next chunk.
const KEPT_MAX: Duration = Duration::from_millis(100);
/// After so many failures the rest is left to those who want it.
const FAILURES_MAX: u32 = 8;

/// What is filled without being asked for, and how fast.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FillOptions {
    /// Whether all that is missing is filled, from the last fault on, until nothing is.
    pub everything: bool,
    /// How fast that goes at most, in MiB a second; as fast as it can where there is none.
    pub rate_mib_s: Option<NonZeroU32>,
    /// Whether that waits for [`FaultEngine::fill`](super::FaultEngine::fill): what a guest needs to begin with is not
    /// held up by what it does not want yet.
    pub waits: bool,
}

/// The thread's end.
pub(super) struct Filler {
    shared: Arc<Shared>,
    queue: Arc<FillQueue>,
    reader: Box<dyn PageReader>,
    /// What whole chunks are read into.
    stock: Stock,
    /// What pieces are read into.
    pieces: Staging,
    rate_mib_s: Option<NonZeroU32>,
    granule: PageSize,
    failures: u32,
}

/// Lets nobody wait for a filler that has ended, however it did.
struct Farewell(Arc<Shared>, Arc<FillQueue>);

impl Drop for Farewell {
    fn drop(&mut self) {
        if self.1.close() || std::thread::panicking() {
            self.0.installer.wake(self.0.registered.ram().pages());
        }
    }
}

impl Filler {
    pub(super) fn new(
        shared: Arc<Shared>,
        queue: Arc<FillQueue>,
        reader: Box<dyn PageReader>,
        options: FillOptions,
    ) -> std::io::Result<Self> {
        Self::with(shared, queue, reader, options, Staging::populate)
    }

    /// As where huge pages are had in another way.
    fn with(
        shared: Arc<Shared>,
        queue: Arc<FillQueue>,
        reader: Box<dyn PageReader>,
        options: FillOptions,
        populate: Populate,
    ) -> std::io::Result<Self> {
        let granule = shared.registered.ram().backing().page_size();
        let (stock, pieces, rate_mib_s) = (Stock::new(populate), Staging::new(1)?, options.rate_mib_s);
        Ok(Self { shared, queue, reader, stock, pieces, rate_mib_s, granule, failures: 0 })
    }

    /// Fills until it is stopped, and gives the reader back.
    pub(super) fn run(mut self) -> Box<dyn PageReader> {
        let _farewell = Farewell(Arc::clone(&self.shared), Arc::clone(&self.queue));
        let (mut not_before, mut patience) = (Instant::now(), None);
        while let Some(job) = self.queue.next(&self.shared, not_before, patience) {
            patience = (job != Job::Nothing).then_some(KEPT_MAX);
            let (Job::Urgent(range) | Job::Ahead(range) | Job::Rest(range)) = job else {
                self.stock.forget();
                self.pieces.forget();
                continue;
            };
            let result = self.fill_chunk(range.intersection(self.shared.registered.ram().pages()));
            if let Err(error) = &result {
                self.note_failure(range, error);
            }
            match job {
                // Whoever waits for it was served, or is to fault again now that nobody fills it.
                Job::Urgent(chunk) => self.finish_urgent(chunk, result.is_err()),
                Job::Rest(chunk) => not_before = self.pace(chunk, not_before),
                Job::Ahead(_) | Job::Nothing => {}
            }
        }
        self.reader
    }

    fn finish_urgent(&self, chunk: PageRange, failed: bool) {
        self.queue.finish_urgent(failed);
        self.shared.installer.wake(chunk);
    }

    /// The pages are left to those who want them, who are to ask again now that nobody fills them.
    fn note_failure(&mut self, range: PageRange, error: &SourceError) {
        self.failures += 1;
        add(&self.shared.statistics.counters.fill_failures, 1);
        self.queue.note_failure(error.to_string(), self.failures < FAILURES_MAX);
        self.shared.installer.wake(range);
    }

    /// When the next chunk of the rest may be filled.
    fn pace(&self, chunk: PageRange, before: Instant) -> Instant {
        let Some(rate) = self.rate_mib_s else { return before };
        let bytes_a_second = f64::from(rate.get()) * f64::from(1_u32 << 20);
        // Chunks are at most 2 MiB, so that this is exact.
        let bytes = u32::try_from(chunk.bytes()).map_or(f64::from(u32::MAX), f64::from);
        before.max(Instant::now()) + Duration::from_secs_f64(bytes / bytes_a_second)
    }

    /// Fills what is missing of a chunk, or of a part of one.
    fn fill_chunk(&mut self, chunk: PageRange) -> Result<(), SourceError> {
        let mut missing = Vec::new();
        self.shared.map.state_runs(chunk, |run, state| {
            if state == PageState::Missing {
                missing.push(run);
            }
        });
        let is_whole = chunk.is_whole(PageSize::Huge2M) && missing == [chunk];
        if is_whole && self.queue.moves() && !self.shared.installer.protects() {
            if let Some(mut staging) = self.stock.take() {
                let is_moved = self.fill_by_move(chunk, &mut staging);
                self.stock.put_back(staging, is_moved.as_ref().is_ok_and(|is_moved| *is_moved));
                return is_moved.map(drop);
            }
            add(&self.shared.statistics.counters.huge_pages_slow, chunk.count);
        }
        missing.into_iter().try_for_each(|run| self.fill_by_copy(run))
    }

    /// Says whether the staging buffer has lost its pages.
    fn fill_by_move(&mut self, chunk: PageRange, staging: &mut Staging) -> Result<bool, SourceError> {
        let found = read(&self.queue, self.reader.as_mut(), chunk, staging)?;
        if found == Found::Bytes {
            let passage = self.shared.gate.enter(chunk);
            if !self.shared.installer.protects() && self.shared.map.claim_all(chunk) {
                let moved = self.shared.installer.move_in(chunk, staging);
                drop(passage);
                let Err(halt) = moved else {
                    add(&self.shared.statistics.counters.filled, chunk.count);
                    return Ok(true);
                };
                // It was not to be moved, for example because a removal is unread: what is left is copied.
                self.shared.map.release(halt.rest);
            }
        }
        self.place_missing(chunk, found, staging).map(|()| false)
    }

    fn fill_by_copy(&mut self, run: PageRange) -> Result<(), SourceError> {
        // What others change meanwhile may look like a part of a granule.
        let mut rest = run.widened(self.granule);
        while !rest.is_empty() {
            let (piece, later) = rest.split_at(READ_PAGES.max(self.granule.base_pages()));
            rest = later;
            let found = read(&self.queue, self.reader.as_mut(), piece, &mut self.pieces)?;
            self.place_missing(piece, found, &self.pieces)?;
        }
        Ok(())
    }

    /// Claims and places, piece by piece, what is still missing of `range`, which the staging buffer holds from its
    /// start on.
    fn place_missing(&self, range: PageRange, found: Found, staging: &Staging) -> Result<(), SourceError> {
        let content = match found {
            Found::Bytes => Content::Bytes(&staging.bytes()[..length(range)]),
            Found::Zero => Content::Zero,
        };
        let placement = Placement { range, content };
        let pages_max = if found == Found::Zero { ZERO_PIECE_PAGES } else { PIECE_PAGES };
        let mut from = range.start;
        while let Some(page) = self.shared.map.next_missing(from, range.end()) {
            let rest = PageRange::between(page, range.end());
            let claimed = claim(&self.shared.map, self.granule, rest, pages_max);
            from = claimed.end();
            if let Err(halt) = self.shared.place_in_passages(placement.part(claimed)) {
                self.shared.map.release(halt.rest);
                let cause = format!("{} could not be placed: {}", halt.rest, halt.stop);
                return Err(SourceError::Gone(cause));
            }
            add(&self.shared.statistics.counters.filled, claimed.count);
        }
        Ok(())
    }
}

/// Reads `range` to the start of a staging buffer. Who was left behind meanwhile may place nothing of it.
fn read(
    queue: &FillQueue,
    reader: &mut dyn PageReader,
    range: PageRange,
    into: &mut Staging,
) -> Result<Found, SourceError> {
    let left = || SourceError::Gone("the engine was stopped meanwhile".to_owned());
    if !queue.turn.begin_reading() {
        return Err(left());
    }
    let found = reader.read(range, &mut into.bytes_mut()[..length(range)]);
    if queue.turn.end_reading() { found } else { Err(left()) }
}

fn length(range: PageRange) -> usize {
    usize::try_from(range.bytes()).expect("a chunk's length fits")
}

/// Claims up to so many pages at the start of `rest`; of huge pages the one that is there, whole, or none of it.
fn claim(map: &PageMap, size: PageSize, rest: PageRange, pages_max: u64) -> PageRange {
    let granule = rest.start.containing(size);
    match size {
        PageSize::Base4K => map.claim(rest.split_at(pages_max).0),
        PageSize::Huge2M if map.claim_all(granule) => granule,
        PageSize::Huge2M => PageRange { start: granule.end(), count: 0 },
    }
}

#[cfg(test)]
mod tests;
