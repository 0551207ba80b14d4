//! The block device (virtio 1.2, 5.2).
//!
//! ```text
//!   queue ──► Ring::pop ──► Request::parse ──► limiter ──► engine ──► file or block device
//!               checked        pure                      sync: preadv/pwritev, at once
//!                                                        io_uring: many at a time, completed by an eventfd
//!   used  ◄── status byte ◄──────────────────────────────────┘
//! ```
//!
//! Data goes between the disk and guest memory without a copy in between: the buffers of a request become the
//! vectors of one system call.
//!
//! Invariants:
//!
//! - A request is answered once: with its status in its last byte, and in the used ring.
//! - A request that makes sense but cannot be done gets an error; one that makes no sense stops the device.
//! - The disk is locked while it is open: writable by one, or read-only by many.
//! - A file is closed only after everything in flight on it has ended.

mod device;
mod disk;
mod engine;
mod iovec;
mod request;

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::limiter::{RateLimiterConfig, RateLimiterState};
pub use device::Block;
pub use disk::DiskError;

/// Whether this host lets this process use io_uring.
///
/// # Errors
///
/// The host's refusal.
pub fn check_io_uring() -> io::Result<()> {
    io_uring::IoUring::new(1).map(drop)
}

/// The version of [`BlockState`] that is written.
pub const BLOCK_STATE_VERSION: u32 = 1;

/// What happens when the guest flushes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum CacheType {
    /// The guest is not offered to flush: what it wrote may be lost when the host fails.
    #[default]
    Unsafe,
    /// A flush returns once all that was written is on the disk.
    Writeback,
}

/// How requests are done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum IoEngine {
    /// One after the other, on the device loop.
    #[default]
    Sync,
    /// Many at a time, through io_uring.
    Async,
}

/// What a block device is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockConfig {
    /// A disk image, or a block device.
    pub path: PathBuf,
    /// Whether the guest may only read.
    pub read_only: bool,
    /// What happens when the guest flushes.
    pub cache: CacheType,
    /// How requests are done.
    pub engine: IoEngine,
    /// How fast they are done.
    pub limiter: RateLimiterConfig,
}

/// A block device as it is saved, next to its transport.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockState {
    /// [`BLOCK_STATE_VERSION`] when it was saved.
    pub version: u32,
    /// The disk image, or block device.
    pub path: PathBuf,
    /// Whether the guest may only read.
    pub read_only: bool,
    /// What happens when the guest flushes.
    pub cache: CacheType,
    /// How requests are done.
    pub engine: IoEngine,
    /// The rate limiter.
    pub limiter: RateLimiterState,
    /// What the guest reads as the device's serial number: it stays, whatever file there is now.
    pub device_id: [u8; 20],
    /// The capacity that the guest knows, in sectors of 512 bytes.
    pub sectors: u64,
    /// Whether the disk was changed in a pause, so that the guest is still to be told.
    pub config_unannounced: bool,
}

/// Why a block device could not be made or changed.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// The disk cannot be used.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The host has no io_uring for this process.
    #[error(
        "this host refuses io_uring ({source}): set the drive's `io_engine` to Sync, \
         or allow it with `sysctl kernel.io_uring_disabled=0` and in the seccomp profile"
    )]
    NoIoUring {
        /// The host's answer.
        source: io::Error,
    },
    /// The host refused something else.
    #[error("cannot make {part} for the drive")]
    Host {
        /// What was refused.
        part: &'static str,
        /// The host's answer.
        source: io::Error,
    },
    /// The disk is not as large as it was.
    #[error(
        "the file behind the drive, {}, is {actual_bytes} bytes and was {saved_bytes}: \
         restore with the disk as it was when the snapshot was taken, or with a copy of it",
        path.display()
    )]
    SizeChanged {
        /// The file, or block device.
        path: PathBuf,
        /// How large it is, in whole sectors.
        actual_bytes: u64,
        /// How large it was, in whole sectors.
        saved_bytes: u64,
    },
    /// The saved state is of a version that this program does not know.
    #[error("the drive was saved in version {found}, and this program knows up to {BLOCK_STATE_VERSION}")]
    Version {
        /// The version found.
        found: u32,
    },
}

#[cfg(test)]
mod tests;
