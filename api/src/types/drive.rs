//! `PUT` and `PATCH /drives/{drive_id}`: block devices.

use super::{Invalid, RateLimiter, check_resource_id};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What a guest's flush means.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum CacheType {
    /// A flush is acknowledged without being done: fast, and lost with the host.
    #[default]
    Unsafe,
    /// A flush reaches stable storage before it is acknowledged.
    Writeback,
}

/// How the host does the I/O.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum IoEngine {
    /// Blocking system calls on the device's thread.
    #[default]
    Sync,
    /// io_uring.
    Async,
}

/// A block device, as it is given before boot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Drive {
    /// Names the drive in later requests; letters, digits and underscores.
    pub drive_id: String,
    /// The id of the partition to boot from, for a root device that is partitioned.
    pub partuuid: Option<String>,
    /// Whether the guest mounts this as its root; at most one drive is.
    pub is_root_device: bool,
    /// What a guest's flush means.
    #[serde(default)]
    #[schema(default = "Unsafe")]
    pub cache_type: CacheType,
    /// Whether the guest may only read; `false` when absent.
    pub is_read_only: Option<bool>,
    /// Path on the host of the file or block device.
    pub path_on_host: Option<String>,
    /// Limits on bytes and operations.
    pub rate_limiter: Option<RateLimiter>,
    /// How the host does the I/O; `Sync` when absent.
    pub io_engine: Option<IoEngine>,
    /// Socket of a vhost-user backend; known to the contract, not supported.
    pub socket: Option<String>,
}

impl Drive {
    /// Refuses an id or a combination of fields that no host could serve.
    pub fn validate(&self) -> Result<(), Invalid> {
        check_resource_id(&self.drive_id)?;
        if self.socket.is_some() {
            return Err(Invalid::DriveSocket);
        }
        match self.path_on_host.as_deref() {
            None | Some("") => Err(Invalid::DrivePath),
            Some(_) => Ok(()),
        }
    }
}

/// What can change about a drive while the guest runs; absent fields stay as they are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = PartialDrive)]
pub struct DrivePatch {
    /// The drive to change.
    pub drive_id: String,
    /// Another backing file. The same path again makes the guest look at the file's size anew.
    pub path_on_host: Option<String>,
    /// Other limits; a bucket of size 0 removes its limit.
    pub rate_limiter: Option<RateLimiter>,
}

impl DrivePatch {
    /// Refuses an id that no drive can have, and a path of no characters.
    pub fn validate(&self) -> Result<(), Invalid> {
        check_resource_id(&self.drive_id)?;
        match self.path_on_host.as_deref() {
            Some("") => Err(Invalid::DrivePath),
            _ => Ok(()),
        }
    }
}
