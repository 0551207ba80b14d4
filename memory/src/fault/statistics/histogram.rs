//! A histogram of latencies that is written and read at the same time.

use std::sync::atomic::{AtomicU64, Ordering};

/// How many buckets a doubling of the value is divided into: a value is known to an eighth.
const BUCKET_BITS: u32 = 3;
const BUCKETS_PER_DOUBLING: u64 = 1 << BUCKET_BITS;
/// Values of 2^40 ns, some 18 minutes, and more are all in the last bucket.
const DOUBLINGS_MAX: u32 = 40;
const BUCKETS: usize = ((DOUBLINGS_MAX - BUCKET_BITS + 1) as usize) << BUCKET_BITS;

/// Counts of latencies in nanoseconds, in buckets that grow with the value.
#[derive(Debug)]
pub(crate) struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    nanoseconds_max: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: [const { AtomicU64::new(0) }; BUCKETS], nanoseconds_max: AtomicU64::new(0) }
    }
}

impl Histogram {
    pub(crate) fn record(&self, nanoseconds: u64) {
        self.buckets[bucket_of(nanoseconds)].fetch_add(1, Ordering::Relaxed);
        self.nanoseconds_max.fetch_max(nanoseconds, Ordering::Relaxed);
    }

    /// What was recorded so far. What is recorded meanwhile may be in it or not.
    pub(crate) fn snapshot(&self) -> Latency {
        let counts: Vec<_> = self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect();
        let count = counts.iter().sum();
        let nanoseconds_max = self.nanoseconds_max.load(Ordering::Relaxed);
        Latency { counts, count, nanoseconds_max }
    }
}

/// Latencies as they were recorded up to some moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Latency {
    counts: Vec<u64>,
    /// How many there are.
    pub count: u64,
    /// The longest, in nanoseconds.
    pub nanoseconds_max: u64,
}

impl Latency {
    /// The latency in nanoseconds that `per_mille` of a thousand do not exceed, to an eighth; 0 where there are none.
    #[must_use]
    pub fn quantile_ns(&self, per_mille: u64) -> u64 {
        let rank = (self.count * per_mille.min(1000)).div_ceil(1000).max(1);
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return upper_bound(bucket).min(self.nanoseconds_max);
            }
        }
        0
    }
}

fn bucket_of(nanoseconds: u64) -> usize {
    let doublings = nanoseconds.checked_ilog2().unwrap_or(0);
    let bucket = if doublings < BUCKET_BITS {
        nanoseconds
    } else {
        let place = nanoseconds >> (doublings - BUCKET_BITS) & (BUCKETS_PER_DOUBLING - 1);
        u64::from(doublings - BUCKET_BITS + 1) * BUCKETS_PER_DOUBLING + place
    };
    usize::try_from(bucket).map_or(BUCKETS - 1, |bucket| bucket.min(BUCKETS - 1))
}

/// The largest value of a bucket.
fn upper_bound(bucket: usize) -> u64 {
    let next = bucket as u64 + 1;
    let (doublings, place) = (next / BUCKETS_PER_DOUBLING, next % BUCKETS_PER_DOUBLING);
    match doublings.checked_sub(1) {
        None => place - 1,
        Some(shift) => ((BUCKETS_PER_DOUBLING + place) << shift) - 1,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn quantiles_are_right_to_an_eighth() {
        let histogram = Histogram::default();
        (1..=1000).for_each(|value| histogram.record(value * 100));
        let latency = histogram.snapshot();
        assert_eq!((latency.count, latency.nanoseconds_max), (1000, 100_000));
        assert!((50_000..=56_250).contains(&latency.quantile_ns(500)), "{}", latency.quantile_ns(500));
        assert!((99_000..=100_000).contains(&latency.quantile_ns(990)));
        assert_eq!(latency.quantile_ns(1000), 100_000);
        assert_eq!(Histogram::default().snapshot().quantile_ns(500), 0);
    }

    proptest! {
        #[test]
        fn a_value_is_in_the_bucket_that_ends_at_it_or_just_after(value in 0..1_u64 << 40) {
            let bound = upper_bound(bucket_of(value));
            prop_assert!(bound >= value && bound <= value + value / BUCKETS_PER_DOUBLING, "{} {}", value, bound);
        }
    }
}
