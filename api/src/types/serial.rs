//! `PUT /serial`: where the guest's console goes.

use super::TokenBucket;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The 16550 serial port.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = SerialDevice)]
pub struct Serial {
    /// File or named pipe that gets the guest's output; the process's own stdout when absent.
    pub serial_out_path: Option<String>,
    /// Bytes beyond this are dropped and counted, so that a guest cannot fill the host's disk.
    pub rate_limiter: Option<TokenBucket>,
}
