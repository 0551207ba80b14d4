//! Who does what at the moment, and since when: what takes too long is told with all that may explain it.

use std::fmt::Write;
use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long anything may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// One thread's doing.
#[derive(Debug, Default)]
struct Slot {
    thread: u64,
    /// When it began, in milliseconds from the start and one; 0 while it does nothing that could take long.
    since: AtomicU64,
    what: Mutex<(&'static str, u64)>,
}

/// All that is watched.
#[derive(Debug)]
pub(super) struct Watch {
    start: Instant,
    slots: Mutex<Vec<Arc<Slot>>>,
}

/// A thread that is watched.
#[derive(Debug)]
pub(super) struct Watched {
    start: Instant,
    slot: Arc<Slot>,
}

impl Watch {
    pub(super) fn new() -> Self {
        Self { start: Instant::now(), slots: Mutex::default() }
    }

    /// Watches the calling thread.
    pub(super) fn this_thread(&self) -> Watched {
        let thread = rustix::thread::gettid().as_raw_nonzero().get();
        let slot = Arc::new(Slot { thread: u64::from(thread.unsigned_abs()), ..Slot::default() });
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&slot));
        Watched { start: self.start, slot }
    }

    /// Who has taken too long, with what.
    pub(super) fn overdue(&self) -> Option<String> {
        let now = millis(self.start);
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let is_overdue = |slot: &Arc<Slot>| {
            let since = slot.since.load(Ordering::Relaxed);
            since > 0 && Duration::from_millis(now.saturating_sub(since)) > PATIENCE
        };
        slots.iter().any(is_overdue).then(|| {
            let mut text = String::new();
            for slot in slots.iter() {
                let (what, number) = *slot.what.lock().unwrap_or_else(PoisonError::into_inner);
                let since = slot.since.load(Ordering::Relaxed);
                let age = if since > 0 { now.saturating_sub(since) } else { 0 };
                // A text takes whatever is written to it.
                let _ = writeln!(text, "  thread {}: {what} {number}, for {age} ms", slot.thread);
            }
            text
        })
    }
}

impl Watched {
    /// Does what may wait.
    pub(super) fn during<T>(&self, what: &'static str, number: u64, work: impl FnOnce() -> T) -> T {
        *self.slot.what.lock().unwrap_or_else(PoisonError::into_inner) = (what, number);
        self.slot.since.store(millis(self.start), Ordering::Relaxed);
        let result = work();
        self.slot.since.store(0, Ordering::Relaxed);
        result
    }
}

fn millis(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX - 1) + 1
}

/// Where each thread of this process is in the kernel.
pub(super) fn threads() -> String {
    let mut text = String::new();
    let Ok(tasks) = fs::read_dir("/proc/self/task") else { return text };
    for task in tasks.flatten() {
        let read = |name: &str| fs::read_to_string(task.path().join(name)).unwrap_or_default();
        let stat = read("stat");
        let state = stat.rsplit(')').next().unwrap_or_default().trim().get(..1).unwrap_or("?").to_owned();
        let (name, wchan) = (read("comm"), read("wchan"));
        let number = task.file_name().to_string_lossy().into_owned();
        let _ = writeln!(text, "  thread {number} ({}) {state} in {wchan}", name.trim());
        read("stack").lines().for_each(|line| {
            let _ = writeln!(text, "      {line}");
        });
    }
    text
}
