//! What a guest at work reports of itself, again and again.

use std::thread;
use std::time::{Duration, Instant};

use tests::vmm::{Vmm, WAIT};

use crate::clock::Clock;
use crate::guest::number_before;

const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Some reports of `work`, one after the other.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Work {
    reports: usize,
    pages: u64,
    cycles: u64,
    longest_gap: u64,
}

impl Work {
    pub(crate) fn longest_gap_ms(self, clock: Clock) -> f64 {
        clock.ms(self.longest_gap)
    }

    /// Thousands of pages that it wrote in each second.
    pub(crate) fn thousand_pages_s(self, clock: Clock) -> f64 {
        self.pages as f64 / clock.ms(self.cycles)
    }
}

/// How much a guest has printed by now.
pub(crate) fn mark(vmm: &Vmm) -> usize {
    vmm.console().len()
}

/// What a guest has reported since `mark`, once it has `more` reports behind what is there now.
pub(crate) fn work_since(vmm: &Vmm, mark: usize, more: usize) -> Work {
    let wanted = reports(&vmm.console()[mark..]).reports + more;
    let deadline = Instant::now() + WAIT;
    loop {
        let work = reports(&vmm.console()[mark..]);
        if work.reports >= wanted {
            return work;
        }
        assert!(Instant::now() < deadline, "the guest does not go on:\n{}\n{}", vmm.console(), vmm.log());
        thread::sleep(POLL_INTERVAL);
    }
}

/// The reports in what was printed, but for one that began before or is not whole.
fn reports(printed: &str) -> Work {
    let whole = printed.rfind('\n').map_or("", |end| &printed[..end]);
    let lines = whole.lines().filter(|line| line.starts_with("guest: work round"));
    lines.fold(Work::default(), |work, line| {
        assert!(
            line.trim_end().ends_with(" 0 wrong pages"),
            "the guest's memory is not what it wrote: {line}"
        );
        let gap = line.split("longest gap ").nth(1).and_then(|rest| rest.split(',').next());
        let gap = gap.and_then(|gap| gap.parse().ok()).expect("a report has its longest gap");
        Work {
            reports: work.reports + 1,
            pages: work.pages + number_before(line, "pages"),
            cycles: work.cycles + number_before(line, "cycles"),
            longest_gap: work.longest_gap.max(gap),
        }
    })
}
