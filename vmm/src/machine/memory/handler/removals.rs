//! What the guest has given back. Its handler was told, and gives zeros there; the handler after it was not.
//!
//! ```text
//!   GuestRam::discard ── before ──▶ madvise ─────────────▶ after
//!                          │           │ waits until the     │
//!              noted, one more         │ removal is read     one fewer on their way
//!              on its way              ▼
//!                              whoever reads it, the handler or `settle`
//! ```
//!
//! Invariant: while a handler is being replaced, no removal begins. One that is unread is in the way of every page that
//! is to be placed, and a guest that gives back page after page would leave no time between two of them.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use memory::ram::DiscardWatcher;
use memory::uffd::{EventBuffer, Placed, Registered, Stop, Wake};
use memory::{BackingKind, GuestRam, PageIndex, PageRange, PageSize};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use super::HandOverError;

const PAGES_PER_WORD: u64 = u64::BITS as u64;
/// How long is waited between two looks at what is on its way.
const SETTLE_PAUSE: Duration = Duration::from_millis(1);

/// What was ever given back: 32 KiB for each GiB of RAM. It stays noted, as a page that is missing after it was given
/// back is zero from then on.
#[derive(Debug)]
pub(super) struct Removals {
    noted: Mutex<Noted>,
    has_settled: Condvar,
}

#[derive(Debug)]
struct Noted {
    pages: Box<[u64]>,
    /// How many are between their announcement and their end.
    on_their_way: usize,
    /// Whether others have to wait before they begin.
    is_settling: bool,
}

impl Removals {
    pub(super) fn of(ram: &GuestRam) -> Self {
        let words = usize::try_from(ram.pages().count.div_ceil(PAGES_PER_WORD));
        let pages = vec![0; words.expect("a mapping of this process fits its own pointers")];
        let noted = Noted { pages: pages.into(), on_their_way: 0, is_settling: false };
        Self { noted: Mutex::new(noted), has_settled: Condvar::new() }
    }

    /// Brings removals that wait for a handler to their end, and makes all that was given back zero. Removals that
    /// begin afterwards wait for the next handler.
    ///
    /// A fault that is read on the way is told to nobody: whoever calls this wakes those who wait.
    pub(super) fn settle(&self, registered: &Registered, time_limit: Duration) -> Result<(), HandOverError> {
        self.noted().is_settling = true;
        let settled = self.settle_alone(registered, Instant::now() + time_limit);
        self.noted().is_settling = false;
        self.has_settled.notify_all();
        settled
    }

    fn settle_alone(&self, registered: &Registered, deadline: Instant) -> Result<(), HandOverError> {
        // The flag is shared with whoever else has the descriptor, and may not be as it was left.
        let fd = registered.fd();
        let flags = fcntl_getfl(fd).and_then(|flags| fcntl_setfl(fd, flags | OFlags::NONBLOCK));
        flags.map_err(|error| HandOverError::Events(error.into()))?;
        let mut buffer = EventBuffer::default();
        loop {
            let read = registered.read_events(&mut buffer, &mut |_| {}).map_err(HandOverError::Events)?;
            if self.noted().on_their_way == 0 && self.make_zero(registered)? {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(HandOverError::Unsettled);
            }
            if read == 0 {
                thread::sleep(SETTLE_PAUSE);
            }
        }
    }

    /// Says whether it came to the end: mappings that are changing are in the way.
    fn make_zero(&self, registered: &Registered) -> Result<bool, HandOverError> {
        let runs = self.noted().runs();
        for mut rest in runs {
            while !rest.is_empty() {
                let (step, size) = zero(registered, rest);
                let over = match step.stop {
                    None => 0,
                    // It was touched since, and has content of its own.
                    Some(Stop::Exists) => size.base_pages(),
                    // The next attempt tells what is in the way.
                    Some(Stop::Again) if step.pages > 0 => 0,
                    Some(Stop::Again) => return Ok(false),
                    Some(stop) => return Err(HandOverError::Zero(stop)),
                };
                rest = rest.split_at(step.pages + over).1;
            }
        }
        Ok(true)
    }

    /// A note is whole at any time, whoever panicked beside it.
    fn noted(&self) -> MutexGuard<'_, Noted> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DiscardWatcher for Removals {
    fn before_discard(&self, range: PageRange) {
        let noted = self.has_settled.wait_while(self.noted(), |noted| noted.is_settling);
        let mut noted = noted.unwrap_or_else(PoisonError::into_inner);
        noted.on_their_way += 1;
        noted.note(range);
    }

    fn after_discard(&self, _range: PageRange) {
        self.noted().on_their_way -= 1;
    }
}

impl Noted {
    fn note(&mut self, range: PageRange) {
        let (mut page, end) = (range.start.0, range.end().0);
        for word in self.pages.iter_mut().skip(index(page)) {
            if page >= end {
                break;
            }
            let first = page % PAGES_PER_WORD;
            let count = (end - page).min(PAGES_PER_WORD - first);
            *word |= (u64::MAX >> (PAGES_PER_WORD - count)) << first;
            page += count;
        }
    }

    /// The pages noted, as runs.
    fn runs(&self) -> Vec<PageRange> {
        let mut runs: Vec<PageRange> = Vec::new();
        for (nth, &word) in self.pages.iter().enumerate() {
            let mut rest = word;
            while rest != 0 {
                let first = u64::from(rest.trailing_zeros());
                let count = u64::from((rest >> first).trailing_ones());
                rest &= u64::MAX.checked_shl(u32::try_from(first + count).unwrap_or(u32::MAX)).unwrap_or(0);
                let start = PageIndex(nth as u64 * PAGES_PER_WORD + first);
                match runs.last_mut() {
                    Some(last) if last.end() == start => last.count += count,
                    _ => runs.push(PageRange { start, count }),
                }
            }
        }
        runs
    }
}

fn index(page: u64) -> usize {
    usize::try_from(page / PAGES_PER_WORD).unwrap_or(usize::MAX)
}

/// Makes pages from the start of `range` zero, as many as one call does, and says how large they are.
fn zero(registered: &Registered, range: PageRange) -> (Placed, PageSize) {
    if registered.ram().backing().kind() != BackingKind::Hugetlb {
        return (registered.zero(range, Wake::Now), PageSize::Base4K);
    }
    // ZEROPAGE is not for hugetlb.
    let (one, _) = range.split_at(PageSize::Huge2M.base_pages());
    let zeros = vec![0; usize::try_from(one.bytes()).expect("2 MiB fit a pointer")];
    (registered.copy(one, &zeros, false, Wake::Now), PageSize::Huge2M)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noted(ranges: &[(u64, u64)]) -> Vec<(u64, u64)> {
        let mut noted = Noted { pages: vec![0; 4].into(), on_their_way: 0, is_settling: false };
        for &(start, end) in ranges {
            noted.note(PageRange::between(PageIndex(start), PageIndex(end)));
        }
        noted.runs().into_iter().map(|run| (run.start.0, run.end().0)).collect()
    }

    #[test]
    fn what_is_noted_comes_back_as_runs() {
        assert_eq!(noted(&[]), []);
        assert_eq!(noted(&[(5, 5)]), []);
        assert_eq!(noted(&[(3, 5), (0, 1), (4, 7)]), [(0, 1), (3, 7)]);
        assert_eq!(noted(&[(63, 65), (127, 128)]), [(63, 65), (127, 128)]);
        assert_eq!(noted(&[(0, 64), (64, 128)]), [(0, 128)]);
        assert_eq!(noted(&[(0, 256)]), [(0, 256)]);
        assert_eq!(noted(&[(1, 255)]), [(1, 255)]);
        assert_eq!(noted(&[(200, 256), (0, 2)]), [(0, 2), (200, 256)]);
    }

    #[test]
    fn every_page_is_noted_alone() {
        for page in 0..256 {
            assert_eq!(noted(&[(page, page + 1)]), [(page, page + 1)]);
        }
    }
}
