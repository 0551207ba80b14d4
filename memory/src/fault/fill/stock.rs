//! Huge pages to read into, made ready by a thread of their own while the one before is read into.
//!
//! ```text
//!   filler:           take ──▶ read ──▶ move ──▶ put back          take ──▶ …
//!                       │ orders            ▲ empty                  ▲ ready
//!                       ▼                   │                        │
//!   fill-ahead:       the kernel finds and clears a huge page ───────┘
//! ```
//!
//! A huge page that is moved away leaves nothing behind, and the kernel clears every new one. On a machine with large
//! folios in its page cache that takes longer than reading into it.
//!
//! Invariants:
//!
//! - Nobody waits for the thread: where nothing is ready, the filler makes a huge page itself, or does without.
//! - There are at most [`AHEAD`] huge pages more than the one that is being filled, and none while nothing is filled.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::pace::{Pace, Wanted};
use crate::staging::Staging;

/// How many huge pages are made ready ahead.
const AHEAD: usize = 2;

/// How a huge page is had.
pub(super) type Populate = fn(&mut Staging);

/// Huge pages that are ready, or being made so.
#[derive(Debug)]
pub(super) struct Stock {
    populate: Populate,
    pace: Pace,
    ready: Vec<Staging>,
    /// Without pages.
    empty: Vec<Staging>,
    helper: Option<Helper>,
}

impl Stock {
    /// `populate`: how the kernel is made to put a huge page under a staging buffer.
    pub(super) fn new(populate: Populate) -> Self {
        Self { populate, pace: Pace::default(), ready: Vec::new(), empty: Vec::new(), helper: None }
    }

    /// A huge page to read a chunk into; `None` where one is not worth to be waited for.
    pub(super) fn take(&mut self) -> Option<Staging> {
        self.collect();
        let ready = self.ready.pop();
        let wanted = self.pace.next();
        let is_helped = match wanted {
            Wanted::Now => self.order(AHEAD),
            Wanted::Ahead => self.order(1),
            Wanted::Not => return ready,
        };
        if ready.is_none() && (wanted == Wanted::Now || !is_helped) { self.make() } else { ready }
    }

    /// Takes one back, of which the pages were moved away or not.
    pub(super) fn put_back(&mut self, staging: Staging, is_empty: bool) {
        if is_empty { &mut self.empty } else { &mut self.ready }.push(staging);
    }

    /// Nothing is to be filled for now: gives memory and thread back.
    pub(super) fn forget(&mut self) {
        self.helper = None;
        self.ready.clear();
        self.empty.clear();
    }

    /// Takes what was made ready.
    fn collect(&mut self) {
        let Some(helper) = &mut self.helper else { return };
        while let Ok((staging, took)) = helper.done.try_recv() {
            helper.ordered -= 1;
            self.pace.took(took);
            self.ready.push(staging);
        }
    }

    /// Has up to `count` be made ready; says whether there is somebody to do so.
    fn order(&mut self, count: usize) -> bool {
        if self.helper.is_none() {
            self.helper = Helper::spawn(self.populate);
        }
        let Some(helper) = &mut self.helper else { return false };
        while helper.ordered + self.ready.len() < count {
            let Some(staging) = self.empty.pop().or_else(|| Staging::new(1).ok()) else { break };
            if !helper.order(staging) {
                return false;
            }
        }
        true
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

/// The thread that makes huge pages ready. It ends with this.
#[derive(Debug)]
struct Helper {
    /// `None` once it is to end.
    orders: Option<SyncSender<Staging>>,
    done: Receiver<(Staging, Duration)>,
    /// How many it has.
    ordered: usize,
    thread: Option<JoinHandle<()>>,
}

impl Helper {
    /// `None` where the host gives no thread: the filler does without.
    fn spawn(populate: Populate) -> Option<Self> {
        let (orders, ordered) = sync_channel::<Staging>(AHEAD);
        let (finished, done) = sync_channel(AHEAD);
        let work = move || {
            for mut staging in ordered {
                let took = timed(populate, &mut staging);
                if finished.send((staging, took)).is_err() {
                    break;
                }
            }
        };
        let thread = thread::Builder::new().name("fill-ahead".to_owned()).spawn(work).ok()?;
        Some(Self { orders: Some(orders), done, ordered: 0, thread: Some(thread) })
    }

    /// Says whether it is there to hear. There is room for all it is ever given at once.
    fn order(&mut self, staging: Staging) -> bool {
        let is_heard = self.orders.as_ref().is_some_and(|orders| orders.try_send(staging).is_ok());
        self.ordered += usize::from(is_heard);
        is_heard
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        self.orders = None;
        // It has at most a few huge pages to get, for which the kernel takes its time, but not for ever. Where it has
        // panicked, there is nothing more to be known.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            let staging = stock.take().unwrap();
            settle(&mut stock);
            assert_eq!(stock.ready.len(), AHEAD);
            stock.put_back(staging, true);
            assert!(stock.empty.len() <= 1);
        }
        let staging = stock.take().unwrap();
        stock.put_back(staging, false);
        settle(&mut stock);
        assert_eq!(stock.ready.len(), AHEAD + 1, "what was not moved away is ready");
        stock.forget();
        assert!(stock.ready.is_empty() && stock.empty.is_empty() && stock.helper.is_none());
        assert!(stock.take().is_some(), "and it begins anew");
    }

    #[test]
    fn slow_huge_pages_are_not_waited_for_but_taken_once_they_are_ready() {
        let mut stock = Stock::new(slowly);
        let mut tries = 0;
        while let Some(staging) = stock.take() {
            stock.put_back(staging, true);
            tries += 1;
            assert!(tries < 10, "they are not found to be slow");
        }
        settle(&mut stock);
        let deadline = Instant::now() + LIMIT;
        let (mut copied, mut moved) = (0, 0);
        while moved < 3 {
            assert!(Instant::now() < deadline, "they are not tried again");
            match stock.take() {
                Some(staging) => {
                    moved += 1;
                    stock.put_back(staging, true);
                }
                None => copied += 1,
            }
        }
        assert!(copied >= 8, "{copied} chunks are copied in between");
    }
}
