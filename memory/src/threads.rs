//! Threads: those that share a piece of work and end with it, and how urgent one is.
//!
//! The host may give none: they are as many as their cgroup or their user may have. Whoever asks does the work itself
//! then.

mod slice;

use std::io;
use std::thread::{Scope, ScopedJoinHandle};

pub use slice::{be_background, be_urgent};

/// Has `work` done on another thread.
///
/// # Errors
///
/// The host gives no thread.
pub(crate) fn start<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    work: impl FnOnce() -> T + Send + 'scope,
) -> io::Result<ScopedJoinHandle<'scope, T>> {
    builder().spawn_scoped(scope, work)
}

/// What a thread is made with.
#[cfg(not(test))]
pub(crate) fn builder() -> std::thread::Builder {
    std::thread::Builder::new()
}

#[cfg(test)]
pub(crate) use scarce::builder;

/// A host that gives few threads, for tests.
#[cfg(test)]
pub(crate) mod scarce {
    use std::cell::Cell;
    use std::thread::Builder;

    thread_local! {
        /// How many more this thread is given.
        static LEFT: Cell<usize> = const { Cell::new(usize::MAX) };
    }

    /// Does something on a thread that is given no more than so many others; gives what it has done.
    pub(crate) fn with_threads<T>(count: usize, act: impl FnOnce() -> T) -> T {
        LEFT.set(count);
        let done = act();
        LEFT.set(usize::MAX);
        done
    }

    /// One thread less. The host itself refuses a stack of that size.
    pub(crate) fn builder() -> Builder {
        let left = LEFT.get();
        LEFT.set(left.saturating_sub(1));
        if left == 0 { Builder::new().stack_size(1 << 62) } else { Builder::new() }
    }

    #[test]
    fn the_host_refuses_what_is_more() {
        let given = |count| {
            with_threads(count, || {
                std::thread::scope(|scope| (0..3).filter(|_| super::start(scope, || ()).is_ok()).count())
            })
        };
        assert_eq!([given(0), given(2), given(4)], [0, 2, 3]);
    }
}
