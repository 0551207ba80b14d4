//! Since when a thread is within a call that may hang.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The beginning of a call, for those who watch over the thread that makes it.
#[derive(Debug)]
pub(crate) struct Heartbeat {
    epoch: Instant,
    /// Nanoseconds from the epoch to the call's beginning, and one more; 0 where there is no call.
    since: AtomicU64,
}

impl Default for Heartbeat {
    fn default() -> Self {
        Self { epoch: Instant::now(), since: AtomicU64::new(0) }
    }
}

impl Heartbeat {
    /// A call begins.
    pub(crate) fn begin(&self) {
        let now = u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.since.store(now.saturating_add(1), Ordering::Relaxed);
    }

    /// It has ended.
    pub(crate) fn end(&self) {
        self.since.store(0, Ordering::Relaxed);
    }

    /// Whether there is a call.
    pub(crate) fn is_running(&self) -> bool {
        self.since.load(Ordering::Relaxed) != 0
    }

    /// When the call will have taken `limit`; `None` where there is none.
    pub(crate) fn deadline(&self, limit: Duration) -> Option<Instant> {
        let since = self.since.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.epoch + Duration::from_nanos(since) + limit)
    }

    /// How long the call has taken, if there is one that takes longer than `limit`.
    pub(crate) fn longer_than(&self, limit: Duration) -> Option<Duration> {
        let since = self.since.load(Ordering::Relaxed).checked_sub(1)?;
        let elapsed = self.epoch.elapsed().saturating_sub(Duration::from_nanos(since));
        (elapsed > limit).then_some(elapsed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_known_from_its_beginning_to_its_end() {
        let heartbeat = Heartbeat::default();
        let limit = Duration::from_secs(3600);
        assert!(!heartbeat.is_running());
        assert_eq!((heartbeat.deadline(limit), heartbeat.longer_than(Duration::ZERO)), (None, None));
        let before = Instant::now();
        heartbeat.begin();
        let deadline = heartbeat.deadline(limit).unwrap();
        assert!(heartbeat.is_running() && deadline >= before + limit && deadline <= Instant::now() + limit);
        assert_eq!(heartbeat.longer_than(limit), None);
        heartbeat.end();
        assert!(!heartbeat.is_running() && heartbeat.deadline(limit).is_none());
    }
}
