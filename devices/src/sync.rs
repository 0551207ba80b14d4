//! Taking locks.

use std::sync::{Mutex, MutexGuard};

/// Locks `mutex`.
///
/// A lock is poisoned only when a thread panicked while it held it. What it guards may then be half changed, so the
/// panic is passed on: a device must not go on from a state that nobody thought of.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no thread panics while it holds a device's lock")
}
