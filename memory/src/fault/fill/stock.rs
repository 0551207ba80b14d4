//! Huge pages to read into, made ready by a thread of their own while the one before is read into. Where there is another
//! reader, that thread reads, too: every other chunk.
//!
//! ```text
//!   filler:           take ──▶ read ──▶ move ──▶ put back          take, what was read already ──▶ move ──▶ …
//!                       │ orders            ▲ empty                  ▲ ready
//!                       ▼                   │                        │
//!   fill-ahead:       the kernel finds and clears a huge page, and the next chunk is read into it
//! ```
//!
//! A huge page that is moved away leaves nothing behind, and the kernel clears every new one. On a machine with large
//! folios in its page cache that takes longer than reading into it.
//!
//! Invariants:
//!
//! - Nobody waits for the thread but for a chunk that it is reading, as long as for a reader: where nothing is ready, the
//!   filler makes a huge page itself, or does without.
//! - There are at most [`AHEAD`] huge pages more than the one that is being filled, and none while nothing is filled.
//! - What was read ahead is only ever taken for the chunk that it is of, and is not missed where it is not.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::pace::{Pace, Wanted};
use super::turn::Turn;
use crate::page::PageRange;
use crate::source::{Content, PageReader, SourceError};
use crate::staging::Staging;

/// How many huge pages are made ready ahead.
const AHEAD: usize = 2;

/// How a huge page is had.
pub(super) type Populate = fn(&mut Staging);

/// What comes after the chunk that is filled now.
pub(super) struct Ahead<'a> {
    /// The chunk that is likely to, if all of it is missing.
    pub(super) next: Option<PageRange>,
    /// Whose like is to read it.
    pub(super) reader: &'a dyn PageReader,
}

/// A huge page, and what it holds of the chunk that it was taken for, where that was read ahead.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) staging: Staging,
    pub(super) found: Option<Content>,
}

/// A huge page that is ready, and what was read into it.
#[derive(Debug)]
struct Ready {
    staging: Staging,
    holds: Option<(PageRange, Content)>,
}

/// Huge pages that are ready, or being made so.
#[derive(Debug)]
pub(super) struct Stock {
    populate: Populate,
    pace: Pace,
    /// The latest last.
    ready: Vec<Ready>,
    /// Without pages.
    empty: Vec<Staging>,
    helper: Option<Helper>,
}

impl Stock {
    /// `populate`: how the kernel is made to put a huge page under a staging buffer.
    pub(super) fn new(populate: Populate) -> Self {
        Self { populate, pace: Pace::default(), ready: Vec::new(), empty: Vec::new(), helper: None }
    }

    /// A huge page to read `chunk` into, or that was read into already; `None` where one is not worth to be waited for.
    ///
    /// # Errors
    ///
    /// The filler was left while it waited for what is being read.
    pub(super) fn take(
        &mut self,
        chunk: PageRange,
        ahead: Ahead<'_>,
        turn: &Turn,
    ) -> Result<Option<Taken>, SourceError> {
        self.collect();
        if self.is_reading(chunk) {
            turn.while_reading(|| self.await_read())?;
        }
        let of_chunk = |ready: &Ready| ready.holds.is_some_and(|(range, _)| range == chunk);
        if let Some(index) = self.ready.iter().position(of_chunk) {
            let Ready { staging, holds } = self.ready.swap_remove(index);
            return Ok(Some(Taken { staging, found: holds.map(|(_, found)| found) }));
        }
        let ready = self.unused();
        let wanted = self.pace.next();
        let is_helped = match wanted {
            Wanted::Now => self.read_ahead(&ahead) || self.order(AHEAD, ahead.reader),
            Wanted::Ahead => self.order(1, ahead.reader),
            Wanted::Not => true,
        };
        let makes = ready.is_none() && (wanted == Wanted::Now || !is_helped);
        let staging = if makes { self.make() } else { ready };
        Ok(staging.map(|staging| Taken { staging, found: None }))
    }

    /// A huge page that is ready: one that holds nothing, or what was read too early where there are enough of those.
    fn unused(&mut self) -> Option<Staging> {
        let index = self.ready.iter().position(|ready| ready.holds.is_none());
        let index = index.or_else(|| (self.ready.len() >= AHEAD).then_some(0))?;
        Some(self.ready.remove(index).staging)
    }

    /// Takes one back, of which the pages were moved away or not.
    pub(super) fn put_back(&mut self, staging: Staging, is_empty: bool) {
        if is_empty {
            self.empty.push(staging);
        } else {
            self.ready.push(Ready { staging, holds: None });
        }
    }

    /// Nothing is to be filled for now: gives memory and thread back.
    pub(super) fn forget(&mut self) {
        self.helper = None;
        self.ready.clear();
        self.empty.clear();
    }

    /// Takes what was made ready.
    fn collect(&mut self) {
        while let Some(made) = self.helper.as_mut().and_then(|helper| helper.done.try_recv().ok()) {
            self.made(made);
        }
    }

    fn made(&mut self, Made { staging, took, holds }: Made) {
        if let Some(helper) = &mut self.helper {
            helper.ordered -= 1;
            helper.reading = None;
        }
        self.pace.took(took);
        self.ready.push(Ready { staging, holds });
    }

    fn is_reading(&self, chunk: PageRange) -> bool {
        self.helper.as_ref().is_some_and(|helper| helper.reading == Some(chunk))
    }

    /// Waits for the thread to have read what it reads.
    fn await_read(&mut self) {
        while self.helper.as_ref().is_some_and(|helper| helper.reading.is_some()) {
            match self.helper.as_ref().map(|helper| helper.done.recv()) {
                Some(Ok(made)) => self.made(made),
                // It has panicked: the filler does without it, and reads that chunk itself.
                _ => self.helper = None,
            }
        }
    }

    /// Has the next chunk be read; says whether there is somebody who does that, or has.
    fn read_ahead(&mut self, ahead: &Ahead<'_>) -> bool {
        let Some(next) = ahead.next else { return false };
        self.have_helper(ahead.reader);
        if !self.helper.as_ref().is_some_and(|helper| helper.reads && helper.ordered == 0) {
            return self.helper.as_ref().is_some_and(|helper| helper.reading.is_some());
        }
        let is_held = self.ready.iter().any(|ready| ready.holds.is_some_and(|(range, _)| range == next));
        is_held || self.give(Some(next))
    }

    /// Has up to `count` be made ready; says whether there is somebody to do so.
    fn order(&mut self, count: usize, reader: &dyn PageReader) -> bool {
        self.have_helper(reader);
        while let Some(helper) = &self.helper
            && helper.ordered + self.ready.len() < count
        {
            if !self.give(None) {
                return false;
            }
        }
        self.helper.is_some()
    }

    fn have_helper(&mut self, reader: &dyn PageReader) {
        if self.helper.is_none() {
            self.helper = Helper::spawn(self.populate, reader.another());
        }
    }

    /// Gives the thread a huge page to make, and to read a chunk into. Says whether it is there to hear.
    fn give(&mut self, chunk: Option<PageRange>) -> bool {
        let staging = self.empty.pop().or_else(|| Staging::new(1).ok());
        match (&mut self.helper, staging) {
            (Some(helper), Some(staging)) => helper.order(Order { staging, chunk }),
            _ => false,
        }
    }

    fn make(&mut self) -> Option<Staging> {
        let mut staging = self.empty.pop().or_else(|| Staging::new(1).ok())?;
        self.pace.took(timed(self.populate, &mut staging));
        Some(staging)
    }
}

fn timed(populate: Populate, staging: &mut Staging) -> Duration {
    let begun = Instant::now();
    populate(staging);
    begun.elapsed()
}

/// A huge page that is to be made ready, and what is to be read into it.
#[derive(Debug)]
struct Order {
    staging: Staging,
    chunk: Option<PageRange>,
}

/// One that is, how long it took without the reading, and what was read.
#[derive(Debug)]
struct Made {
    staging: Staging,
    took: Duration,
    holds: Option<(PageRange, Content)>,
}

/// The thread that makes huge pages ready. It ends with this.
#[derive(Debug)]
struct Helper {
    /// `None` once it is to end.
    orders: Option<SyncSender<Order>>,
    done: Receiver<Made>,
    /// How many it has.
    ordered: usize,
    /// What it was told to read, and has not.
    reading: Option<PageRange>,
    /// Whether it can.
    reads: bool,
    thread: Option<JoinHandle<()>>,
}

impl Helper {
    /// `None` where the host gives no thread: the filler does without.
    fn spawn(populate: Populate, mut reader: Option<Box<dyn PageReader>>) -> Option<Self> {
        let (orders, ordered) = sync_channel::<Order>(AHEAD);
        let (finished, done) = sync_channel(AHEAD);
        let reads = reader.is_some();
        let work = move || {
            for Order { mut staging, chunk } in ordered {
                let took = timed(populate, &mut staging);
                let holds = chunk.zip(reader.as_mut()).and_then(|(chunk, reader)| {
                    // Whoever wants it reads it again, and is told.
                    let found = reader.read(chunk, staging.bytes_mut()).ok()?;
                    Some((chunk, found))
                });
                if finished.send(Made { staging, took, holds }).is_err() {
                    break;
                }
            }
        };
        let thread = thread::Builder::new().name("fill-ahead".to_owned()).spawn(work).ok()?;
        Some(Self { orders: Some(orders), done, ordered: 0, reading: None, reads, thread: Some(thread) })
    }

    /// Says whether it is there to hear. There is room for all it is ever given at once.
    fn order(&mut self, order: Order) -> bool {
        let chunk = order.chunk;
        let is_heard = self.orders.as_ref().is_some_and(|orders| orders.try_send(order).is_ok());
        if is_heard {
            self.ordered += 1;
            self.reading = self.reading.or(chunk);
        }
        is_heard
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        self.orders = None;
        // A reader that hangs is not waited for: the thread places nothing, and ends when it comes back.
        if self.reading.is_none() {
            // It has at most a few huge pages to get, for which the kernel takes its time, but not for ever. Where it has
            // panicked, there is nothing more to be known.
            let _ = self.thread.take().map(JoinHandle::join);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::{PageIndex, PageSize};
    use crate::source::pattern::{PatternReader, range_is};

    fn chunk(number: u64) -> PageRange {
        PageIndex(number * 512).containing(PageSize::Huge2M)
    }

    /// A huge page for a chunk that nothing is known to come after.
    fn take(stock: &mut Stock) -> Option<Staging> {
        let ahead = Ahead { next: None, reader: &READER };
        let taken = stock.take(chunk(0), ahead, &Turn::default()).unwrap()?;
        assert_eq!(taken.found, None);
        Some(taken.staging)
    }

    const READER: PatternReader = PatternReader { pattern: |_| Some(7), pages: 1 << 20 };
    const LIMIT: Duration = Duration::from_secs(20);

    /// As where huge pages are slow to be had.
    fn slowly(staging: &mut Staging) {
        thread::sleep(super::super::pace::SLOW * 8);
        staging.populate();
    }

    /// Waits until the thread has done all it was told to.
    fn settle(stock: &mut Stock) {
        let deadline = Instant::now() + LIMIT;
        while stock.helper.as_ref().is_some_and(|helper| helper.ordered > 0) {
            assert!(Instant::now() < deadline, "nothing is made ready");
            stock.collect();
            thread::yield_now();
        }
    }

    #[test]
    fn what_was_made_ready_is_taken_and_there_are_never_more_than_a_few() {
        fn at_once(_: &mut Staging) {}
        let mut stock = Stock::new(at_once);
        for _ in 0..10 {
            let staging = take(&mut stock).unwrap();
            settle(&mut stock);
            assert_eq!(stock.ready.len(), AHEAD);
            stock.put_back(staging, true);
            assert!(stock.empty.len() <= 1);
        }
        let staging = take(&mut stock).unwrap();
        stock.put_back(staging, false);
        settle(&mut stock);
        assert_eq!(stock.ready.len(), AHEAD + 1, "what was not moved away is ready");
        stock.forget();
        assert!(stock.ready.is_empty() && stock.empty.is_empty() && stock.helper.is_none());
        assert!(take(&mut stock).is_some(), "and it begins anew");
    }

    #[test]
    fn slow_huge_pages_are_not_waited_for_but_taken_once_they_are_ready() {
        let mut stock = Stock::new(slowly);
        let mut tries = 0;
        while let Some(staging) = take(&mut stock) {
            stock.put_back(staging, true);
            tries += 1;
            assert!(tries < 10, "they are not found to be slow");
        }
        settle(&mut stock);
        let deadline = Instant::now() + LIMIT;
        let (mut copied, mut moved) = (0, 0);
        while moved < 3 {
            assert!(Instant::now() < deadline, "they are not tried again");
            match take(&mut stock) {
                Some(staging) => {
                    moved += 1;
                    stock.put_back(staging, true);
                }
                None => copied += 1,
            }
        }
        assert!(copied >= 8, "{copied} chunks are copied in between");
    }

    #[test]
    fn every_other_chunk_is_read_ahead_and_what_is_not_wanted_then_is_not_in_the_way() {
        let mut stock = Stock::new(Staging::populate);
        let mut take = |number, next| {
            let ahead = Ahead { next: Some(chunk(next)), reader: &READER };
            let taken = stock.take(chunk(number), ahead, &Turn::default()).unwrap().unwrap();
            if taken.found.is_some() {
                assert!(range_is(READER.pattern, chunk(number), taken.staging.bytes()));
            }
            stock.put_back(taken.staging, true);
            settle(&mut stock);
            assert!(stock.ready.len() <= AHEAD + 1 && stock.empty.len() <= AHEAD + 1);
            taken.found.is_some()
        };
        assert_eq!([take(0, 1), take(1, 2), take(2, 3), take(3, 4)], [false, true, false, true]);
        // The guess was wrong, again and again.
        assert_eq!([take(4, 5), take(9, 10), take(20, 21), take(30, 31)], [false; 4]);
        assert!(take(31, 32), "and right at last");
    }
}
