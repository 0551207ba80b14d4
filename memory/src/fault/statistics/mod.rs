//! What the engine has done: counted while it runs, and readable by anyone at any time.
//!
//! A latency is that of a demanded page, from when its fault was read to when it was placed and its threads woken. The
//! kernel keeps no time of the fault itself: what a thread waits before its fault is read is not in it.

mod histogram;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use histogram::Histogram;
pub use histogram::Latency;

/// A way of resolving a fault, by the name of the kernel's request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verb {
    /// `UFFDIO_COPY`.
    Copy,
    /// `UFFDIO_ZEROPAGE`.
    Zero,
    /// `UFFDIO_CONTINUE`.
    Continue,
    /// `UFFDIO_MOVE`.
    Move,
    /// `UFFDIO_POISON`.
    Poison,
    /// `UFFDIO_WRITEPROTECT`, of a page that somebody wants to write.
    Unprotect,
}

impl Verb {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Copy, Self::Zero, Self::Continue, Self::Move, Self::Poison, Self::Unprotect];

    /// Its name, in lower case.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::Zero => "zero",
            Self::Continue => "continue",
            Self::Move => "move",
            Self::Poison => "poison",
            Self::Unprotect => "unprotect",
        }
    }
}

macro_rules! counters {
    ($($(#[doc = $doc:literal])* $name:ident),* $(,)?) => {
        /// How often something has happened, in pages where nothing else is said.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub struct Counts { $($(#[doc = $doc])* pub $name: u64,)* }

        impl Counts {
            /// Each as its name, what it counts, and how often.
            #[must_use]
            pub fn list(&self) -> Vec<(&'static str, &'static str, u64)> {
                vec![$((stringify!($name), concat!($($doc),*).trim_matches([' ', '.']), self.$name),)*]
            }
        }

        #[derive(Debug, Default)]
        pub(crate) struct Counters { $(pub(crate) $name: AtomicU64,)* }

        impl Counters {
            fn snapshot(&self) -> Counts {
                Counts { $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }
    };
}

counters! {
    /// Faults that were read, of every kind.
    faults,
    /// Pages placed because somebody waited for them.
    demanded,
    /// Pages placed before anybody wanted them.
    prefetched,
    /// Pages placed by the background fill.
    filled,
    /// Pages of those filled that were copied, and not moved in as huge pages, as huge pages were slow to be had.
    huge_pages_slow,
    /// Pages that were there already when they were to be placed.
    redundant,
    /// Pages of those placed that were zero.
    zero,
    /// Pages that were thrown away.
    removed,
    /// Times that a page had to be asked for or placed again.
    retried,
    /// Faults on pages that had been placed by the time they were read.
    stale,
    /// Faults of threads that wanted to write a protected page.
    write_protected,
    /// Answers of the source, in pages, that nobody had asked for or that came twice.
    unwanted,
    /// Times that the background fill could not read or place something; whoever wants it is served all the same.
    fill_failures,
    /// Pages that could not be had.
    lost,
}

/// Adds to a counter.
pub(crate) fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

/// Counters and latencies of one engine and its source.
#[derive(Debug)]
pub(crate) struct Statistics {
    source: &'static str,
    pub(crate) counters: Counters,
    latencies: [Histogram; Verb::ALL.len()],
}

impl Statistics {
    pub(crate) fn new(source: &'static str) -> Self {
        Self { source, counters: Counters::default(), latencies: Default::default() }
    }

    pub(crate) fn record(&self, verb: Verb, waited: Duration) {
        self.latencies[verb as usize].record(u64::try_from(waited.as_nanos()).unwrap_or(u64::MAX));
    }

    pub(crate) fn snapshot(&self) -> Report {
        let latencies = Verb::ALL.iter().zip(&self.latencies);
        let latencies = latencies.map(|(verb, histogram)| (self.source, *verb, histogram.snapshot()));
        let latencies = latencies.filter(|(_, _, latency)| latency.count > 0).collect();
        Report { counts: self.counters.snapshot(), latencies }
    }
}

/// What an engine had done at some moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// How often what has happened.
    pub counts: Counts,
    /// How long demanded pages took, by source and verb; those without any are left out.
    pub latencies: Vec<(&'static str, Verb, Latency)>,
}
