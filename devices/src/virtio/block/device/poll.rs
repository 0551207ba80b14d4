//! Whether to look for the next request for a moment before the queue is left, as KVM does before it halts a vCPU.
//!
//! ```text
//!                     the queue was left for a short time only, often enough
//!        off (sleeps) ─────────────────────────────────────────────────────► on (looks, at most for a moment)
//!             ▲                                                                   │
//!             └───────────────────────── nothing came in time ◄───────────────────┘
//! ```
//!
//! To be woken costs more than a request for what the host has in memory, and a guest that reads block after block
//! makes its next one at once. An idle guest makes none: nothing is looked for, and nothing is spent. A guest whose
//! requests come a little too late is looked for ever more rarely.

use std::time::{Duration, Instant};

/// How long to look for the next request.
pub(super) const LOOK_MAX: Duration = Duration::from_micros(50);

/// How long the queue was left at most when looking might have found the request: being woken takes its part of it.
const SHORT_SLEEP_MAX: Duration = Duration::from_micros(300);

/// After so many failures in a row, and after more, it takes two to the power of this many short sleeps to look again.
const FAILURES_MAX: u32 = 8;

/// What is known of the guest's pace.
#[derive(Debug, Default)]
pub(super) struct Poll {
    on: bool,
    left_at: Option<Instant>,
    short_sleeps: u32,
    failures: u32,
}

impl Poll {
    pub(super) fn is_on(&self) -> bool {
        self.on
    }

    /// The queue is left, and the driver asked to notify.
    pub(super) fn leave(&mut self, now: Instant) {
        self.left_at = Some(now);
    }

    /// There is something in the queue again.
    pub(super) fn come_back(&mut self, now: Instant) {
        let Some(left_at) = self.left_at.take() else { return };
        if now.duration_since(left_at) > SHORT_SLEEP_MAX {
            return;
        }
        self.short_sleeps += 1;
        if self.short_sleeps >= 1 << self.failures {
            (self.on, self.short_sleeps) = (true, 0);
        }
    }

    /// A request came while it was looked for.
    pub(super) fn succeed(&mut self) {
        self.failures = 0;
    }

    /// None came.
    pub(super) fn fail(&mut self) {
        self.on = false;
        self.failures = (self.failures + 1).min(FAILURES_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Leaves the queue for `sleep`, `times` times, and says how often it was looked for requests, always in vain.
    fn looks_in_vain(poll: &mut Poll, sleep: Duration, times: u32) -> u32 {
        let now = Instant::now();
        (0..times)
            .map(|_| {
                poll.leave(now);
                poll.come_back(now + sleep);
                let looked = poll.is_on();
                if looked {
                    poll.fail();
                }
                u32::from(looked)
            })
            .sum()
    }

    #[test]
    fn a_guest_with_seldom_requests_is_never_looked_for() {
        assert_eq!(looks_in_vain(&mut Poll::default(), Duration::from_millis(1), 1000), 0);
    }

    #[test]
    fn requests_that_come_too_late_are_looked_for_ever_more_rarely() {
        let mut poll = Poll::default();
        assert_eq!(looks_in_vain(&mut poll, SHORT_SLEEP_MAX, 1 + 2 + 4 + 8 + 16 + 32 + 64 + 128), 8);
        assert_eq!(looks_in_vain(&mut poll, SHORT_SLEEP_MAX, 256 * 10), 10);
    }

    #[test]
    fn a_guest_that_is_fast_again_is_looked_for_at_once() {
        let mut poll = Poll::default();
        looks_in_vain(&mut poll, SHORT_SLEEP_MAX, 1000);
        while !poll.is_on() {
            poll.leave(Instant::now());
            poll.come_back(Instant::now());
        }
        poll.succeed();
        assert!(poll.is_on(), "as long as it succeeds");
        poll.fail();
        assert_eq!(looks_in_vain(&mut poll, SHORT_SLEEP_MAX, 2), 1);
    }

    #[test]
    fn a_queue_that_was_not_left_tells_nothing() {
        let mut poll = Poll::default();
        poll.come_back(Instant::now());
        assert!(!poll.is_on());
    }
}
