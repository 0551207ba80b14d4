//! Which thread runs where, and what it has cost.

use std::fs;
use std::thread;
use std::time::Duration;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The processors that this process may use.
pub(crate) fn processors() -> Vec<usize> {
    let allowed = sched_getaffinity(None).expect("a thread has an affinity");
    (0..CpuSet::MAX_CPU).filter(|index| allowed.is_set(*index)).collect()
}

/// Runs `work` on a thread of its own on `processors`. Threads that it starts inherit that.
pub(crate) fn on<T: Send>(processors: &[usize], work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            pin(processors);
            work()
        });
        thread.join().expect("what is measured does not panic")
    })
}

/// Keeps the calling thread on `processors`.
pub(crate) fn pin(processors: &[usize]) {
    let mut set = CpuSet::new();
    processors.iter().for_each(|index| set.set(*index));
    sched_setaffinity(None, &set).expect("a thread may run on processors that its process may use");
}

/// The processor time of this process's threads of that name so far.
pub(crate) fn time_of_threads(name: &str) -> Duration {
    let tasks = fs::read_dir("/proc/self/task").expect("/proc is mounted");
    let spent = tasks.flatten().filter_map(|task| {
        let its_name = fs::read_to_string(task.path().join("comm")).ok()?;
        let statistics = fs::read_to_string(task.path().join("schedstat")).ok()?;
        let nanoseconds = statistics.split_whitespace().next()?.parse().ok()?;
        (its_name.trim_end() == name).then(|| Duration::from_nanos(nanoseconds))
    });
    spent.sum()
}
