//! Protecting pages step by step, on another thread than the one that serves faults: those go on being served.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::shared::Shared;
use crate::page::PageRange;
use crate::uffd::{Placed, Stop};

/// How long the kernel may put it off, which it does while a removal is unread.
const TIMEOUT: Duration = Duration::from_secs(2);
/// How long to wait before it is asked again.
const RETRY: Duration = Duration::from_micros(50);

/// Protects pages of an engine's memory, and ends that. Any thread may, as long as it waits for no guest.
#[derive(Debug, Clone)]
pub(crate) struct Protection(Arc<Shared>);

impl Protection {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self(shared)
    }

    /// Protects pages of `range`: those that are there, and those that are missing as far as the kernel marks them.
    ///
    /// # Errors
    ///
    /// The kernel's refusal, or that it put it off for 2 s.
    pub(crate) fn protect(&self, range: PageRange) -> Result<(), Stop> {
        patiently(range, |rest| self.0.registered.protect(rest))
    }

    /// Lets pages be written again, and wakes whoever waits to.
    ///
    /// # Errors
    ///
    /// As of [`protect`](Self::protect).
    pub(crate) fn unprotect(&self, range: PageRange) -> Result<(), Stop> {
        patiently(range, |rest| self.0.registered.unprotect(rest))
    }

    /// The same, if it can be done at once: for the thread that serves faults, and for whoever has waited already.
    pub(crate) fn unprotect_now(&self, range: PageRange) {
        // What could not be done is asked for again by who writes there.
        let _ = self.0.registered.unprotect(range);
    }
}

/// Asks the kernel for one piece after the other.
fn patiently(range: PageRange, ask: impl Fn(PageRange) -> Placed) -> Result<(), Stop> {
    let deadline = Instant::now() + TIMEOUT;
    let mut rest = range;
    while !rest.is_empty() {
        let Placed { pages, stop } = ask(rest);
        rest = rest.split_at(pages).1;
        match stop {
            None => {}
            Some(Stop::Again | Stop::NoMemory) if Instant::now() < deadline => thread::sleep(RETRY),
            Some(stop) => return Err(stop),
        }
    }
    Ok(())
}
