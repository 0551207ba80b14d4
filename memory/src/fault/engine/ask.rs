//! Asking the fault thread for something, and not waiting for good: it may hang in its source, as in a read from a disk
//! that is gone, and who asks may have the guest stand still.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use super::FaultEngine;
use crate::fault::order::Order;
use crate::fault::shared::Status;
use crate::fault::write::WriteObserver;
use crate::uffd::Stop;

/// How long a source may be within one call before it is said to hang: longer than a disk takes that is only slow.
const SOURCE_MAX: Duration = Duration::from_secs(5);
/// How long an order may wait for what else the thread does, and how much longer it may take for each GiB: protecting
/// one takes 20 ms.
const ORDER_MAX: Duration = Duration::from_secs(5);
const ORDER_MAX_PER_GIB: Duration = Duration::from_millis(100);
/// How often it is looked whether the thread hangs.
const POLL: Duration = Duration::from_millis(50);

/// Why the fault thread has not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unanswered {
    /// There is none.
    Gone,
    /// It hangs in its source. It obeys when it comes back.
    Hangs,
}

/// Why an observer is not asked before writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ObserveError {
    /// Another one is.
    Busy,
    /// The memory cannot be protected, or nobody serves its faults.
    Unprotectable,
    /// The fault thread hangs in its source.
    Hangs,
}

impl FaultEngine {
    /// Asks `observer` before writes to protected pages, and places pages protected from now on, but protects nothing
    /// that is there: the caller does, through [`protection`](Self::protection), while faults are served.
    ///
    /// # Errors
    ///
    /// [`ObserveError`].
    pub(crate) fn observe(&self, observer: Box<dyn WriteObserver>) -> Result<(), ObserveError> {
        let modes = self.memory.as_ref().map(|memory| memory.modes);
        if self.tracks_writes() || !modes.is_some_and(|modes| modes.write_protect) {
            return Err(ObserveError::Unprotectable);
        }
        match self.ask(|answer| Order::Observe(observer, answer)) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(Stop::Busy)) => Err(ObserveError::Busy),
            Ok(Err(_)) | Err(Unanswered::Gone) => Err(ObserveError::Unprotectable),
            Err(Unanswered::Hangs) => {
                // It is heard after the other, so that one does not stay.
                self.tell(Order::Unobserve);
                Err(ObserveError::Hangs)
            }
        }
    }

    /// Ends what [`observe`](Self::observe) began, but for what is protected yet. Where the fault thread hangs, the
    /// observer may be asked until it comes back.
    pub(crate) fn unobserve(&self) {
        // At once, and also where nobody is there to be asked.
        self.shared.installer.set_protects(false);
        let _ = self.ask(Order::Unobserve);
    }

    /// Waits until the fault thread has done what it was doing: verdicts that were given before this are carried out.
    ///
    /// # Errors
    ///
    /// [`Unanswered`].
    pub(crate) fn settle(&self) -> Result<(), Unanswered> {
        self.ask(Order::Settle)
    }

    /// Whether the fault thread has been within one call of its source for too long.
    pub(super) fn source_hangs(&self) -> bool {
        let limit = if matches!(self.status(), Status::Failed(_)) { POLL } else { SOURCE_MAX };
        self.shared.reading.longer_than(limit).is_some()
    }

    /// Sends an order that is answered.
    pub(super) fn ask<T>(&self, order: impl FnOnce(Sender<T>) -> Order) -> Result<T, Unanswered> {
        let gib = u32::try_from(self.ram().size_bytes() >> 30).unwrap_or(u32::MAX);
        let deadline = Instant::now() + ORDER_MAX + ORDER_MAX_PER_GIB.saturating_mul(gib);
        let (answer, answered) = channel();
        if !self.orders.send(order(answer)) {
            return Err(if self.source_hangs() { Unanswered::Hangs } else { Unanswered::Gone });
        }
        loop {
            match answered.recv_timeout(POLL) {
                Ok(answer) => return Ok(answer),
                Err(RecvTimeoutError::Disconnected) => return Err(Unanswered::Gone),
                Err(RecvTimeoutError::Timeout) if self.source_hangs() || Instant::now() > deadline => {
                    return Err(Unanswered::Hangs);
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// Sends an order whose answer nobody waits for.
    pub(super) fn tell<T>(&self, order: impl FnOnce(Sender<T>) -> Order) {
        self.orders.send(order(channel().0));
    }
}
