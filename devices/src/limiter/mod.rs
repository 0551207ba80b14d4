//! Rate limiting of a device: bytes and operations, each by a token bucket, and a timer to go on.
//!
//! ```text
//!   admit(ops, bytes) ──► both buckets have enough ──► taken, true
//!                    └──► one has not ──► timer armed for when it will, false
//!   timer readable ──► on_timer() ──► the device looks at its queue again
//! ```
//!
//! The semantics are Firecracker's: size 0 or refill time 0 is no limit; `one_time_burst` is spent first and does not
//! come back; a request larger than a bucket goes through when the bucket is full, and those after it wait for it.
//!
//! Invariants:
//!
//! - A request takes from both buckets or from none.
//! - While [`RateLimiter::is_blocked`], the timer is armed: nobody waits for ever.

mod bucket;

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use vmm_sys_util::timerfd::TimerFd;

pub use bucket::{TokenBucket, TokenBucketConfig, TokenBucketState};

/// What a device's rate limiter is made from, or changed by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateLimiterConfig {
    /// The limit on bytes. When a limiter is changed, nothing here means: as it was.
    pub bandwidth: Option<TokenBucketConfig>,
    /// The limit on operations, likewise.
    pub ops: Option<TokenBucketConfig>,
}

/// A rate limiter as it is saved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateLimiterState {
    /// The bucket of bytes.
    pub bandwidth: Option<TokenBucketState>,
    /// The bucket of operations.
    pub ops: Option<TokenBucketState>,
}

/// The rate limiter of one device. Its descriptor becomes readable when a request that was refused may be tried
/// again.
#[derive(Debug)]
pub struct RateLimiter {
    bandwidth: Option<TokenBucket>,
    ops: Option<TokenBucket>,
    timer: TimerFd,
    blocked: bool,
}

impl RateLimiter {
    /// A limiter whose buckets are full.
    ///
    /// # Errors
    ///
    /// When the host gives no timer.
    pub fn new(config: &RateLimiterConfig) -> io::Result<Self> {
        let now = Instant::now();
        let bucket =
            |config: Option<TokenBucketConfig>| config.and_then(|config| TokenBucket::new(config, now));
        Self::from_buckets(bucket(config.bandwidth), bucket(config.ops))
    }

    /// The limiter that `state` was saved from.
    ///
    /// # Errors
    ///
    /// When the host gives no timer.
    pub fn restore(state: &RateLimiterState) -> io::Result<Self> {
        let now = Instant::now();
        let bucket =
            |state: Option<TokenBucketState>| state.and_then(|state| TokenBucket::restore(&state, now));
        Self::from_buckets(bucket(state.bandwidth), bucket(state.ops))
    }

    fn from_buckets(bandwidth: Option<TokenBucket>, ops: Option<TokenBucket>) -> io::Result<Self> {
        let timer = TimerFd::new().map_err(io::Error::from)?;
        Ok(Self { bandwidth, ops, timer, blocked: false })
    }

    /// The limiter as it is now.
    pub fn save(&mut self) -> RateLimiterState {
        let now = Instant::now();
        let save = |bucket: &mut Option<TokenBucket>| bucket.as_mut().map(|bucket| bucket.save(now));
        RateLimiterState { bandwidth: save(&mut self.bandwidth), ops: save(&mut self.ops) }
    }

    /// Lets a request of `ops` operations and `bytes` through, or refuses it and arms the timer.
    pub fn admit(&mut self, ops: u64, bytes: u64) -> bool {
        if self.blocked {
            return false;
        }
        let wait = self.take_or_wait(ops, bytes, Instant::now());
        wait.is_zero() || !self.block_for(wait)
    }

    /// Takes from both buckets when both have enough (zero), or from none, and says how long to wait.
    fn take_or_wait(&mut self, ops: u64, bytes: u64, now: Instant) -> Duration {
        let mut wait = Duration::ZERO;
        for (bucket, tokens) in [(&mut self.bandwidth, bytes), (&mut self.ops, ops)] {
            wait = wait.max(bucket.as_mut().map_or(Duration::ZERO, |bucket| bucket.wait(tokens, now)));
        }
        if wait.is_zero() {
            for (bucket, tokens) in [(&mut self.bandwidth, bytes), (&mut self.ops, ops)] {
                if let Some(bucket) = bucket {
                    bucket.take(tokens, now);
                }
            }
        }
        wait
    }

    /// Arms the timer. Without one the request has to go through, or its device would wait for ever.
    fn block_for(&mut self, wait: Duration) -> bool {
        // Wake-ups closer than this would cost more than they limit.
        const WAIT_MIN: Duration = Duration::from_micros(100);
        match self.timer.reset(wait.max(WAIT_MIN), None) {
            Ok(()) => self.blocked = true,
            Err(error) => tracing::error!(%error, "cannot arm the timer of a rate limiter: not limiting"),
        }
        self.blocked
    }

    /// Whether a request was refused and the timer has not been seen since.
    #[must_use]
    pub fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// To be called when the descriptor is readable: requests can be tried again.
    pub fn on_timer(&mut self) {
        self.blocked = false;
        // Setting a timerfd clears its count. Reading it could block, had someone re-armed it in between.
        if let Err(error) = self.timer.clear() {
            tracing::error!(%error, "cannot clear the timer of a rate limiter");
        }
    }

    /// Replaces the buckets that `config` names by full ones. A limiter that was blocked is not any more: the device
    /// has to look at its queue again.
    pub fn update(&mut self, config: &RateLimiterConfig) {
        let now = Instant::now();
        for (bucket, config) in [(&mut self.bandwidth, config.bandwidth), (&mut self.ops, config.ops)] {
            if let Some(config) = config {
                *bucket = TokenBucket::new(config, now);
            }
        }
        self.on_timer();
    }
}

impl AsRawFd for RateLimiter {
    fn as_raw_fd(&self) -> RawFd {
        self.timer.as_raw_fd()
    }
}

#[cfg(test)]
mod tests;
