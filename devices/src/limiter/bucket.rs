//! One token bucket: pure arithmetic over a clock that is passed in.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// What a token bucket is made from. A bucket of size 0, or one that refills in no time, limits nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenBucketConfig {
    /// How many tokens (bytes or operations) the bucket holds, and how many it gains in `refill_time_ms`.
    pub size: u64,
    /// Tokens that are there once, on top of `size`, and are spent first.
    pub one_time_burst: u64,
    /// How long an empty bucket takes to fill up, in milliseconds.
    pub refill_time_ms: u64,
}

impl TokenBucketConfig {
    /// Whether a bucket of this kind lets everything through.
    #[must_use]
    pub const fn is_unlimited(&self) -> bool {
        self.size == 0 || self.refill_time_ms == 0
    }
}

/// A bucket as it is saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenBucketState {
    /// What the bucket was made from.
    pub config: TokenBucketConfig,
    /// Tokens in it, rounded down; less than none while a large request is being paid for.
    pub tokens: i64,
    /// What is left of the one-time burst, in tokens.
    pub burst_left: u64,
}

/// The longest refill time and the largest size that are told apart: 292 years, and 8 EiB. Larger ones would not
/// fit the products below.
const MAX: u64 = i64::MAX.unsigned_abs();

/// Tokens that refill with time.
///
/// A request is let through when the bucket holds as many tokens as it takes, or is full: so a request larger than
/// the bucket is not stuck for ever. It leaves a debt, and those after it wait until that is paid.
///
/// Amounts are kept in *grains*: a token is as many grains as the refill time has nanoseconds, so that a nanosecond
/// adds exactly `size` grains and no fraction is ever lost.
#[derive(Debug)]
pub struct TokenBucket {
    config: TokenBucketConfig,
    grains: i128,
    burst_left: u64,
    updated: Instant,
}

impl TokenBucket {
    /// A full bucket, or nothing when `config` limits nothing.
    #[must_use]
    pub fn new(config: TokenBucketConfig, now: Instant) -> Option<Self> {
        let full = Self { config, grains: 0, burst_left: config.one_time_burst, updated: now };
        (!config.is_unlimited()).then(|| Self { grains: full.capacity(), ..full })
    }

    /// The bucket that `state` was saved from. Time that passed in between adds nothing.
    #[must_use]
    pub fn restore(state: &TokenBucketState, now: Instant) -> Option<Self> {
        let mut bucket = Self::new(state.config, now)?;
        bucket.grains = bucket.capacity().min(i128::from(state.tokens).saturating_mul(bucket.token()));
        bucket.burst_left = state.burst_left.min(state.config.one_time_burst);
        Some(bucket)
    }

    /// The bucket as it is `now`.
    pub fn save(&mut self, now: Instant) -> TokenBucketState {
        self.refill(now);
        let tokens = self.grains.div_euclid(self.token());
        let tokens = i64::try_from(tokens).unwrap_or(i64::MIN);
        TokenBucketState { config: self.config, tokens, burst_left: self.burst_left }
    }

    /// How long a request of `tokens` has to wait: zero when it may go now.
    pub fn wait(&mut self, tokens: u64, now: Instant) -> Duration {
        self.refill(now);
        let from_bucket = tokens.saturating_sub(self.burst_left);
        let needed = i128::from(from_bucket).saturating_mul(self.token()).min(self.capacity());
        let missing = needed.saturating_sub(self.grains);
        if missing <= 0 {
            return Duration::ZERO;
        }
        let wait_ns = (missing - 1) / self.grains_per_ns() + 1;
        Duration::from_nanos(u64::try_from(wait_ns).unwrap_or(u64::MAX))
    }

    /// Takes `tokens` out, whether they are there or not.
    pub fn take(&mut self, tokens: u64, now: Instant) {
        self.refill(now);
        let from_burst = tokens.min(self.burst_left);
        self.burst_left -= from_burst;
        let from_bucket = i128::from(tokens - from_burst).saturating_mul(self.token());
        self.grains = self.grains.saturating_sub(from_bucket);
    }

    fn refill(&mut self, now: Instant) {
        let elapsed_ns = now.saturating_duration_since(self.updated).as_nanos();
        let elapsed_ns = i128::try_from(elapsed_ns).unwrap_or(i128::MAX);
        let gained = elapsed_ns.saturating_mul(self.grains_per_ns());
        self.grains = self.grains.saturating_add(gained).min(self.capacity());
        self.updated = self.updated.max(now);
    }

    /// Grains in a token: the refill time in nanoseconds.
    fn token(&self) -> i128 {
        i128::from(self.config.refill_time_ms.saturating_mul(1_000_000).min(MAX))
    }

    fn grains_per_ns(&self) -> i128 {
        i128::from(self.config.size.min(MAX))
    }

    fn capacity(&self) -> i128 {
        self.grains_per_ns() * self.token()
    }
}
