//! How much may be said of what a guest causes: a guest sets its own pace, and a log has an end.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tracing::Metadata;
use tracing::callsite::Identifier;

/// Where events come from whose pace a guest sets.
const GUEST_PACED: [&str; 2] = ["devices", "vmm::vcpu"];
/// How many lines one place in the code may log in a window.
const LINES_MAX: u32 = 10;
/// How long a window is.
const WINDOW: Duration = Duration::from_secs(5);

/// The budgets of all places that have logged, at most one for each place in the program's code.
#[derive(Debug, Default)]
pub(super) struct Budgets(HashMap<Identifier, Budget>);

#[derive(Debug)]
struct Budget {
    since: Instant,
    lines: u32,
    left_out: u64,
}

impl Budgets {
    /// Whether an event may be logged at `now`: then, how many like it were left out before. `None` leaves it out.
    pub(super) fn admit(&mut self, metadata: &Metadata<'_>, now: Instant) -> Option<u64> {
        if !GUEST_PACED.iter().any(|prefix| metadata.target().starts_with(prefix)) {
            return Some(0);
        }
        let fresh = || Budget { since: now, lines: 0, left_out: 0 };
        self.0.entry(metadata.callsite()).or_insert_with(fresh).admit(now)
    }
}

impl Budget {
    fn admit(&mut self, now: Instant) -> Option<u64> {
        if now.saturating_duration_since(self.since) >= WINDOW {
            (self.since, self.lines) = (now, 0);
        }
        if self.lines == LINES_MAX {
            self.left_out += 1;
            return None;
        }
        self.lines += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_has_so_many_lines_and_the_next_tells_of_the_rest() {
        let start = Instant::now();
        let mut budget = Budget { since: start, lines: 0, left_out: 0 };
        for _ in 0..LINES_MAX {
            assert_eq!(budget.admit(start), Some(0));
        }
        assert_eq!(budget.admit(start + WINDOW / 2), None);
        assert_eq!(budget.admit(start + WINDOW / 2), None);
        assert_eq!(budget.admit(start + WINDOW), Some(2));
        assert_eq!(budget.admit(start + WINDOW), Some(0));
    }
}
