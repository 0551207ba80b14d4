//! Whether huge pages are quick enough to be had: pure.
//!
//! ```text
//!            on average slower than SLOW
//!   quick ─────────────────────────────────▶ slow: so many chunks are copied ──▶ one is tried ─┐
//!     ▲                                        ▲                                               │
//!     │  the average of those tried is quick   │  slow again: twice as many are copied         │
//!     └────────────────────────────────────────┴───────────────────────────────────────────────┘
//! ```
//!
//! A huge page is slow where the kernel has to move others out of its way first, or where a virtual machine's own host
//! has to find the memory for it.

use std::time::Duration;

/// From where on a chunk is there sooner when it is copied: a copy of 2 MiB takes about half as long, and a huge page
/// that is at hand about a tenth.
pub(super) const SLOW: Duration = Duration::from_millis(1);
/// A single huge page counts for no more than that, so that it is not remembered for ever.
const TOOK_MAX: Duration = Duration::from_millis(16);
/// How many chunks are copied before a huge page is tried again: at first, and at most, which is 1 GiB.
const REST_MIN: u32 = 8;
const REST_MAX: u32 = 512;
/// What the last huge page counts in the average: while they are quick, so that a single slow one changes nothing, and
/// while they are not.
const SHARE_QUICK: u32 = 8;
const SHARE_SLOW: u32 = 2;

/// What to do for a chunk that could be moved in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// Huge pages are quick: one is waited for.
    Now,
    /// One is tried, and not waited for.
    Ahead,
    /// None is to be had: the chunk is copied.
    Not,
}

/// How long huge pages took, and what follows from it.
#[derive(Debug, Default)]
pub(super) struct Pace {
    average: Duration,
    /// How many chunks are copied between two tries while huge pages are slow; 0 while they are quick.
    rest: u32,
    /// How many of those are left.
    left: u32,
}

impl Pace {
    /// Another chunk is to be filled.
    pub(super) fn next(&mut self) -> Wanted {
        if self.rest == 0 {
            return Wanted::Now;
        }
        if self.left == 0 {
            return Wanted::Ahead;
        }
        self.left -= 1;
        Wanted::Not
    }

    /// A huge page was had, and took so long.
    pub(super) fn took(&mut self, took: Duration) {
        let share = if self.rest == 0 { SHARE_QUICK } else { SHARE_SLOW };
        self.average = (self.average * (share - 1) + took.min(TOOK_MAX)) / share;
        if self.average <= SLOW {
            self.rest = 0;
        } else if took > SLOW {
            self.rest = (self.rest * 2).clamp(REST_MIN, REST_MAX);
        } else {
            self.rest = REST_MIN;
        }
        self.left = self.rest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUICK_ONE: Duration = Duration::from_micros(85);
    const SLOW_ONE: Duration = Duration::from_millis(4);

    /// How many chunks are copied before the next try.
    fn copied(pace: &mut Pace) -> u32 {
        let mut copied = 0;
        while pace.next() == Wanted::Not {
            copied += 1;
        }
        copied
    }

    fn slow() -> Pace {
        let mut pace = Pace::default();
        (0..3).for_each(|_| pace.took(SLOW_ONE));
        pace
    }

    #[test]
    fn one_slow_huge_page_now_and_then_changes_nothing() {
        let mut pace = Pace::default();
        for round in 0..100 {
            pace.took(if round % 10 == 0 { SLOW_ONE } else { QUICK_ONE });
            assert_eq!(pace.next(), Wanted::Now, "round {round}");
        }
    }

    #[test]
    fn slow_huge_pages_are_tried_ever_more_seldom_and_never_given_up() {
        let mut pace = slow();
        let mut rests = Vec::new();
        for _ in 0..8 {
            rests.push(copied(&mut pace));
            assert_eq!(pace.next(), Wanted::Ahead, "it is tried until it is told how long it took");
            pace.took(SLOW_ONE);
        }
        assert_eq!(rests, [8, 16, 32, 64, 128, 256, 512, 512]);
    }

    #[test]
    fn huge_pages_that_are_quick_again_are_soon_waited_for() {
        let mut pace = slow();
        (0..20).for_each(|_| pace.took(Duration::from_secs(9)));
        let mut tries = 0;
        while pace.next() != Wanted::Now {
            pace.took(QUICK_ONE);
            tries += 1;
        }
        assert_eq!(tries, 5);
    }
}
