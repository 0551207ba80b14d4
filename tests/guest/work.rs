//! Work that checks itself, round after round, and notices when it was kept from it.

use crate::boot::BootInfo;
use crate::{cpu, ram, say, serial};

/// A report for people and tests, some fifty times a second on processors of 2 to 4 GHz.
const CYCLES_PER_REPORT: u64 = 50_000_000;

/// What has happened since the last report.
struct Stretch {
    since: u64,
    last_step: u64,
    longest_gap: u64,
    pages: u64,
}

impl Stretch {
    fn begin() -> Self {
        let now = cpu::cycles();
        Self { since: now, last_step: now, longest_gap: 0, pages: 0 }
    }

    /// A page is done: says whether it is time for a report.
    fn step(&mut self) -> bool {
        let now = cpu::cycles();
        self.longest_gap = self.longest_gap.max(now.wrapping_sub(self.last_step));
        self.last_step = now;
        self.pages += 1;
        now.wrapping_sub(self.since) >= CYCLES_PER_REPORT
    }
}

/// Writes the last `mib` MiB of RAM round and round, each page as it is to be in that round, after a look at every word
/// of what the round before has left there. One page takes `pace` cycles at least. Goes on until something is typed.
pub fn work(boot: &BootInfo, mib: u64, pace: u64) {
    ram::last_pages(boot, mib).for_each(|page| ram::write_page(page, 0));
    let (mut wrong, mut stretch) = (0u64, Stretch::begin());
    for round in 1u64.. {
        for page in ram::last_pages(boot, mib) {
            let start = cpu::cycles();
            wrong += u64::from(!ram::page_matches(page, round - 1));
            ram::write_page(page, round);
            while cpu::cycles().wrapping_sub(start) < pace {
                core::hint::spin_loop();
            }
            if stretch.step() {
                let Stretch { since, last_step, longest_gap, pages } = stretch;
                let cycles = last_step.wrapping_sub(since);
                say!(
                    "work round {round}: {pages} pages in {cycles} cycles, longest gap {longest_gap}, {wrong} wrong pages"
                );
                if serial::has_input() {
                    return;
                }
                stretch = Stretch::begin();
            }
        }
    }
}
