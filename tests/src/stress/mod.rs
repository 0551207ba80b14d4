//! Memory under stress: threads read, write and throw pages away while engines serve them, are stopped and follow each
//! other, and every byte is compared with a model.
//!
//! ```text
//!   seed ──▶ scenario ──▶ memory, source, engine ──▶ workers  read, write: the model says what a page holds
//!                                  ▲                 discarders  throw away: it is zero
//!                                  │                 helper   prefetches, allows writes, pages out
//!                               control  protects, stops, resumes; in the end releases
//!   watchdog: what takes more than 20 s is a failure, told with where each thread is
//! ```
//!
//! A seed gives a round's setting and what each thread does; how they race is the machine's.

mod content;
mod control;
mod kernel;
mod model;
mod observer;
mod round;
mod scenario;
mod setup;
mod watch;
mod whole;
mod workers;

use std::fs;

pub use round::Seen;
use scenario::Machine;

/// What a machine gives for rounds beyond memory.
#[derive(Debug, Clone, Copy)]
pub struct Extras {
    /// Free huge pages of hugetlb, of which rounds may take eight.
    pub huge_pages: u64,
    /// Whether pages are paged out.
    pub pages_out: bool,
    /// Whether rounds are short, of little memory.
    pub is_quick: bool,
}

impl Extras {
    /// What there is without changing anything.
    #[must_use]
    pub fn found() -> Self {
        let pool = "/sys/kernel/mm/hugepages/hugepages-2048kB";
        let number = |name: &str| {
            let text = fs::read_to_string(format!("{pool}/{name}")).unwrap_or_default();
            text.trim().parse::<u64>().unwrap_or(0)
        };
        let huge_pages = number("free_hugepages").saturating_sub(number("resv_hugepages"));
        Self { huge_pages, pages_out: has_swap(), is_quick: false }
    }
}

/// Whether the machine swaps.
#[must_use]
pub fn has_swap() -> bool {
    fs::read_to_string("/proc/swaps").is_ok_and(|swaps| swaps.lines().count() > 1)
}

/// Runs the round of `seed`.
///
/// # Errors
///
/// What went wrong, and how to have it again. A round that hangs ends the process.
pub fn round(seed: u64, extras: Extras) -> Result<Seen, String> {
    let machine =
        Machine { huge_pages: extras.huge_pages, has_swap: extras.pages_out, is_quick: extras.is_quick };
    round::run(seed, machine)
        .map_err(|failure| format!("stress: round {seed} failed ({extras:?}): {failure}\n{}", again(seed)))
}

/// How a round is had again.
fn again(seed: u64) -> String {
    format!("stress: again: make stress STRESS_ARGS='--round {seed}', with --quick if a test has failed")
}
