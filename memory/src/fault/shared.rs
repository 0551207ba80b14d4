//! What the threads of an engine, and those who look at it, have in common.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};

use super::gate::Gate;
use super::heartbeat::Heartbeat;
use super::install::{Halt, Installer, Placement};
use super::statistics::{Statistics, Verb};
use crate::map::{PageMap, PageState};
use crate::page::PageRange;
use crate::uffd::{Registered, Stop};

/// How long a removal may stay unread, which the fault thread reads between two placements.
const REMOVAL_TIMEOUT: Duration = Duration::from_secs(2);
/// After so many tries discards are held up.
pub(super) const TRIES_BEFORE_HOLD: u32 = 16;
const REMOVAL_POLL: Duration = Duration::from_micros(50);

/// How an engine is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// Faults are served.
    Serving,
    /// Pages were lost, or nobody serves faults any more: the guest cannot go on.
    Failed(Failure),
    /// It was stopped. Whoever faults waits for the next engine.
    Stopped,
}

/// Why a guest cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{cause} ({})", if *.is_guest_told { "the guest gets a memory error there" } else { "whoever wants them waits: end the VM" })]
pub struct Failure {
    /// The first pages that it concerns.
    pub pages: PageRange,
    /// The cause, for people.
    pub cause: String,
    /// Whether who wants the pages gets a memory error; else they wait, and the VM has to be ended.
    pub is_guest_told: bool,
}

/// What the threads of an engine have in common.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) registered: Arc<Registered>,
    pub(crate) map: Arc<PageMap>,
    pub(crate) installer: Installer,
    pub(crate) statistics: Arc<Statistics>,
    pub(crate) gate: Arc<Gate>,
    /// The fault thread's calls of its source.
    pub(crate) reading: Heartbeat,
    status: Mutex<Status>,
    failed: OwnedFd,
}

impl Shared {
    pub(crate) fn new(
        registered: Arc<Registered>,
        map: Arc<PageMap>,
        gate: Arc<Gate>,
        source: &'static str,
        shares_cache: bool,
    ) -> io::Result<Self> {
        let statistics = Arc::new(Statistics::new(source));
        let installer =
            Installer::new(Arc::clone(&registered), Arc::clone(&map), Arc::clone(&statistics), shares_cache);
        let failed = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let status = Mutex::new(Status::Serving);
        Ok(Self {
            registered,
            map,
            installer,
            statistics,
            gate,
            reading: Heartbeat::default(),
            status,
            failed,
        })
    }

    pub(crate) fn status(&self) -> Status {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The first failure stays: what follows is its consequence.
    pub(crate) fn fail(&self, failure: Failure) {
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        if !matches!(*status, Status::Failed(_)) {
            *status = Status::Failed(failure);
            // It cannot be full: it is written once.
            let _ = rustix::io::write(&self.failed, &1_u64.to_ne_bytes());
        }
    }

    /// Nobody serves faults any more.
    pub(crate) fn fail_all(&self, cause: &str) {
        let pages = self.registered.ram().pages();
        self.fail(Failure { pages, cause: cause.to_owned(), is_guest_told: false });
    }

    pub(crate) fn stopped(&self) {
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        if *status == Status::Serving {
            *status = Status::Stopped;
        }
    }

    /// What becomes readable when the engine has failed.
    pub(crate) fn failure_fd(&self) -> BorrowedFd<'_> {
        self.failed.as_fd()
    }

    /// Places claimed pages from a thread that reads no events: within passages, and waiting for removals to be read.
    /// Pages that are removed meanwhile are left out.
    pub(crate) fn place_in_passages(&self, placement: Placement<'_>) -> Result<(), Halt> {
        let deadline = Instant::now() + REMOVAL_TIMEOUT;
        let mut rest = placement.range;
        let (mut tries, mut hold) = (0, None);
        while !rest.is_empty() {
            let passage = self.gate.enter(rest);
            let result = self.place_claimed(placement.part(rest));
            drop(passage);
            match result {
                Ok(_) => break,
                Err(halt) if halt.stop == Stop::Again && Instant::now() < deadline => {
                    rest = halt.rest;
                    tries += 1;
                    if tries == TRIES_BEFORE_HOLD {
                        hold = Some(self.gate.hold_discards());
                    }
                    thread::sleep(REMOVAL_POLL);
                }
                Err(halt) => return Err(halt),
            }
        }
        drop(hold);
        Ok(())
    }

    /// Places those of the pages that are claimed; others were removed since they were.
    pub(crate) fn place_claimed(&self, placement: Placement<'_>) -> Result<Verb, Halt> {
        let range = placement.range;
        let mut verb = Verb::Copy;
        let mut rest = range;
        while !rest.is_empty() {
            let run = self.map.first_run(rest, PageState::Requested);
            if run.is_empty() {
                break;
            }
            rest = PageRange::between(run.end(), range.end());
            // A huge page of which a part is removed is being removed.
            let run = run.narrowed(self.registered.ram().backing().page_size());
            if run.is_empty() {
                continue;
            }
            let left = |halt: Halt| Halt { rest: PageRange::between(halt.rest.start, range.end()), ..halt };
            verb = self.installer.place(placement.part(run)).map_err(left)?;
        }
        Ok(verb)
    }
}
