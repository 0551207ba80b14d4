use proptest::prelude::*;
use vmm_sys_util::poll::PollContext;

use super::*;

fn config(size: u64, one_time_burst: u64, refill_time_ms: u64) -> TokenBucketConfig {
    TokenBucketConfig { size, one_time_burst, refill_time_ms }
}

fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

#[test]
fn a_bucket_spends_its_burst_then_itself_then_waits_for_the_refill() {
    let start = Instant::now();
    let mut bucket = TokenBucket::new(config(1000, 500, 100), start).unwrap();
    assert_eq!(bucket.wait(1500, start), Duration::ZERO);
    bucket.take(1500, start);
    assert_eq!(bucket.wait(1, start), Duration::from_micros(100));
    assert_eq!(bucket.wait(1000, start), ms(100));
    assert_eq!(bucket.wait(1000, start + ms(40)), ms(60));
    bucket.take(400, start + ms(40));
    assert_eq!(bucket.wait(1000, start + ms(40)), ms(100), "the burst does not come back");
}

#[test]
fn a_request_larger_than_the_bucket_goes_when_it_is_full_and_is_paid_for_by_waiting() {
    let start = Instant::now();
    let mut bucket = TokenBucket::new(config(1000, 0, 100), start).unwrap();
    assert_eq!(bucket.wait(10_000, start), Duration::ZERO);
    bucket.take(10_000, start);
    assert_eq!(bucket.wait(1000, start), ms(1000), "nine buckets of debt, and one to fill");
    assert_eq!(bucket.wait(0, start + ms(899)), ms(1));
    assert_eq!(bucket.wait(0, start + ms(900)), Duration::ZERO);
}

#[test]
fn nothing_is_a_bucket_without_limit() {
    let now = Instant::now();
    assert!(TokenBucket::new(config(0, 5, 100), now).is_none());
    assert!(TokenBucket::new(config(5, 5, 0), now).is_none());
}

#[test]
fn extremes_do_not_overflow() {
    let start = Instant::now();
    let mut bucket = TokenBucket::new(config(u64::MAX, u64::MAX, u64::MAX), start).unwrap();
    bucket.take(u64::MAX, start);
    bucket.take(u64::MAX, start);
    bucket.take(u64::MAX, start);
    assert!(bucket.wait(u64::MAX, start + Duration::from_secs(1 << 30)) > Duration::ZERO);
    let state = bucket.save(start);
    assert_eq!(state.burst_left, 0);
    assert!(state.tokens < 0);
}

#[test]
fn a_saved_bucket_goes_on_where_it_was() {
    let start = Instant::now();
    let mut bucket = TokenBucket::new(config(1000, 50, 100), start).unwrap();
    bucket.take(3020, start);
    let state = bucket.save(start);
    assert_eq!(state, TokenBucketState { config: config(1000, 50, 100), tokens: -1970, burst_left: 0 });
    let later = start + ms(5000);
    let mut restored = TokenBucket::restore(&state, later).unwrap();
    assert_eq!(restored.wait(0, later), ms(197), "time while it was saved adds nothing");
}

#[test]
fn a_request_takes_from_both_buckets_or_from_none() {
    let (bandwidth, ops) = (Some(config(1000, 0, 3_600_000)), Some(config(2, 0, 3_600_000)));
    let mut limiter = RateLimiter::new(&RateLimiterConfig { bandwidth, ops }).unwrap();
    assert!(limiter.admit(1, 900));
    assert!(!limiter.admit(1, 900));
    assert!(limiter.is_blocked());
    assert_eq!(limiter.save().ops.unwrap().tokens, 1, "the refused request took no operation");
    assert!(!limiter.admit(0, 0), "blocked until the timer");
    limiter.update(&RateLimiterConfig { bandwidth: Some(config(0, 0, 0)), ops: None });
    assert!(!limiter.is_blocked());
    assert!(limiter.admit(1, 1 << 40));
    assert!(!limiter.admit(1, 0), "the bucket of operations was left as it was");
}

#[test]
fn the_timer_wakes_a_blocked_limiter() {
    let ops = Some(config(1, 0, 1));
    let mut limiter = RateLimiter::new(&RateLimiterConfig { bandwidth: None, ops }).unwrap();
    while limiter.admit(1, 0) {}
    let poll = PollContext::new().unwrap();
    poll.add(&limiter, ()).unwrap();
    assert_eq!(poll.wait_timeout(ms(10_000)).unwrap().iter_readable().count(), 1);
    limiter.on_timer();
    assert!(limiter.admit(1, 0));
    let restored = RateLimiter::restore(&limiter.save()).unwrap();
    assert!(!restored.is_blocked());
}

proptest! {
    /// Against a plain model: what passes in any stretch of time is at most what was there, plus what came in, plus
    /// one request's overdraft; and whoever waits as told does get through.
    #[test]
    fn what_passes_is_bounded_and_nobody_starves(
        size in 1_u64..5000,
        burst in 0_u64..5000,
        refill_ms in 1_u64..500,
        requests in prop::collection::vec((0_u64..8000, 0_u64..50_000), 1..200),
    ) {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(config(size, burst, refill_ms), start).unwrap();
        let (mut now, mut passed, mut largest) = (start, 0_u64, 0_u64);
        for (tokens, pause_us) in requests {
            now += Duration::from_micros(pause_us);
            now += bucket.wait(tokens, now);
            prop_assert_eq!(bucket.wait(tokens, now), Duration::ZERO);
            bucket.take(tokens, now);
            passed += tokens;
            largest = largest.max(tokens);
            let gained = u128::from(size) * (now - start).as_nanos() / (u128::from(refill_ms) * 1_000_000);
            let overdraft = u128::from(largest.saturating_sub(size));
            prop_assert!(u128::from(passed) <= u128::from(size + burst) + gained + overdraft);
        }
    }
}
