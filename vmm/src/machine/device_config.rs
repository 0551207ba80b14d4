//! From the contract's words for devices to the devices' own.

use api::types::{CacheType, IoEngine, RateLimiter, TokenBucket};
use devices::limiter::{RateLimiterConfig, TokenBucketConfig};
use devices::virtio::block;

pub(super) fn limiter(limiter: Option<&RateLimiter>) -> RateLimiterConfig {
    let part = |choose: fn(&RateLimiter) -> Option<&TokenBucket>| limiter.and_then(choose).map(bucket);
    RateLimiterConfig { bandwidth: part(|it| it.bandwidth.as_ref()), ops: part(|it| it.ops.as_ref()) }
}

pub(super) fn bucket(bucket: &TokenBucket) -> TokenBucketConfig {
    TokenBucketConfig {
        size: bucket.size,
        one_time_burst: bucket.one_time_burst.unwrap_or(0),
        refill_time_ms: bucket.refill_time,
    }
}

pub(super) fn cache(cache: CacheType) -> block::CacheType {
    match cache {
        CacheType::Unsafe => block::CacheType::Unsafe,
        CacheType::Writeback => block::CacheType::Writeback,
    }
}

pub(super) fn engine(engine: IoEngine) -> block::IoEngine {
    match engine {
        IoEngine::Sync => block::IoEngine::Sync,
        IoEngine::Async => block::IoEngine::Async,
    }
}
