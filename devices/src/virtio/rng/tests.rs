use super::*;
use crate::limiter::TokenBucketConfig;
use crate::sync::lock;
use crate::virtio::test_driver::*;

fn driver(limit: &RateLimiterConfig) -> TestDriver<Entropy> {
    let mut driver = TestDriver::new(Entropy::new(limit, EntropyMetrics::default()).unwrap());
    driver.init(feature::EVENT_IDX, 16);
    driver
}

fn unlimited() -> TestDriver<Entropy> {
    driver(&RateLimiterConfig::default())
}

fn metrics(driver: &TestDriver<Entropy>) -> EntropyMetrics {
    lock(&driver.device).metrics.clone()
}

#[test]
fn every_buffer_is_filled_and_nothing_next_to_it() {
    let mut driver = unlimited();
    let head = driver.offer(&[(DATA + 1, 5000, true), (DATA + 0x4000, 0, true), (DATA + 0x8000, 100, true)]);
    driver.notify();
    assert_eq!(driver.take_used(), (head.into(), 5100));
    assert_eq!(driver.bytes(DATA, 1), [0]);
    assert_eq!(driver.bytes(DATA + 5001, 0x8000 - 5001), vec![0; 0x8000 - 5001]);
    assert_eq!(driver.bytes(DATA + 0x8000 + 100, 100), [0; 100]);
    for start in [DATA + 1, DATA + 4090, DATA + 4900, DATA + 0x8000] {
        assert_ne!(driver.bytes(start, 32), [0; 32]);
    }
    assert_eq!(metrics(&driver).entropy_bytes.get(), 5100);
    assert_eq!(metrics(&driver).entropy_event_count.get(), 1);
}

#[test]
fn one_request_gets_a_bounded_amount() {
    let mut driver = unlimited();
    driver.offer(&[(DATA, 1 << 20, true)]);
    driver.notify();
    assert_eq!(driver.take_used().1, REQUEST_BYTES_MAX);
}

#[test]
fn a_request_without_room_stops_the_device() {
    for buffers in [&[(DATA, 16, false)][..], &[(DATA, 0, true)], &[(DATA, 16, true), (DATA, 16, false)]] {
        let mut driver = unlimited();
        driver.offer(buffers);
        driver.expect_device_stops();
        assert_eq!(metrics(&driver).entropy_event_fails.get(), 1);
    }
}

#[test]
fn the_limiter_holds_requests_back_and_lets_them_go_on() {
    let limit = |size| Some(TokenBucketConfig { size, one_time_burst: 0, refill_time_ms: 20 });
    let mut driver = driver(&RateLimiterConfig { bandwidth: limit(100), ops: None });
    for _ in 0..4 {
        driver.offer(&[(DATA, 100, true)]);
    }
    driver.notify();
    for _ in 0..4 {
        assert_eq!(driver.take_used().1, 100);
    }
    assert!(metrics(&driver).entropy_rate_limiter_throttled.get() > 0);
    assert!(metrics(&driver).rate_limiter_event_count.get() > 0);
}

#[test]
fn a_limiter_that_is_lifted_lets_waiting_requests_go() {
    let hour = |size| Some(TokenBucketConfig { size, one_time_burst: 0, refill_time_ms: 3_600_000 });
    let mut driver = driver(&RateLimiterConfig { bandwidth: None, ops: hour(1) });
    driver.offer(&[(DATA, 8, true)]);
    driver.offer(&[(DATA, 8, true)]);
    driver.notify();
    driver.take_used();
    driver.settle();
    assert_eq!(driver.used_waiting(), 0);
    driver.transport.pause();
    let state = driver.transport.save();
    assert_eq!(state.queues[0].next_avail, 1, "the request that waits is not in flight");
    let saved = lock(&driver.device).save();
    assert_eq!(saved.limiter.ops.unwrap().tokens, 0);
    let restored = Entropy::restore(&saved, EntropyMetrics::default()).unwrap();
    let mut moved = driver.moved_to(restored, &state);
    moved.transport.resume().unwrap();
    moved.settle();
    assert_eq!(moved.used_waiting(), 0, "the limit was saved too");
    lock(&moved.device).update_rate_limiter(&RateLimiterConfig { bandwidth: None, ops: hour(0) }).unwrap();
    assert_eq!(moved.take_used().1, 8);
}

#[test]
fn a_state_of_another_version_is_refused() {
    let state = EntropyState { version: 2, limiter: RateLimiterState::default() };
    let refused = Entropy::restore(&state, EntropyMetrics::default());
    assert!(matches!(refused, Err(EntropyError::Version { found: 2 })));
}
