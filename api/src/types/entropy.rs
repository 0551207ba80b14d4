//! `PUT /entropy`: the guest's source of randomness.

use super::RateLimiter;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A virtio entropy device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = EntropyDevice)]
pub struct Entropy {
    /// Limits on bytes and operations.
    pub rate_limiter: Option<RateLimiter>,
}
