//! Token buckets, as drives, the entropy device and the serial port carry them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A bucket that holds `size` tokens and refills completely in `refill_time` milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenBucket {
    /// How many tokens (bytes or operations) the bucket holds; 0 means no limit.
    pub size: u64,
    /// Tokens that may be spent once, at the start, before the bucket is touched.
    pub one_time_burst: Option<u64>,
    /// Milliseconds until an empty bucket is full again; 0 means no limit.
    pub refill_time: u64,
}

/// Independent limits on bytes and on operations.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RateLimiter {
    /// Tokens are bytes.
    pub bandwidth: Option<TokenBucket>,
    /// Tokens are operations.
    pub ops: Option<TokenBucket>,
}
