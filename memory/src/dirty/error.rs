//! Why writes cannot be tracked.

use std::io;

use crate::ram::TooManyWatchers;
use crate::uffd::{Features, OpenError, RegisterError, ScanError, Stop};

/// Why writes cannot be tracked.
#[derive(Debug, thiserror::Error)]
pub enum TrackError {
    /// This kernel cannot.
    #[error(
        "this kernel does not tell which pages were written, it lacks {missing}: use KVM's dirty log, or a newer kernel"
    )]
    Lacks {
        /// What it lacks.
        missing: Features,
    },
    /// This kernel cannot find them.
    #[error("this kernel has no PAGEMAP_SCAN to find written pages by (Linux 6.7): use KVM's dirty log")]
    NoScan,
    /// There is no userfaultfd.
    #[error(transparent)]
    Open(OpenError),
    /// The RAM cannot be registered: most of all, because it is.
    #[error(transparent)]
    Register(#[from] RegisterError),
    /// Discards would go unseen.
    #[error(transparent)]
    Watch(#[from] TooManyWatchers),
    /// The kernel did not protect the RAM.
    #[error("guest memory cannot be protected to see writes ({0}): use KVM's dirty log")]
    Protect(Stop),
    /// The kernel did not look.
    #[error(transparent)]
    Scan(ScanError),
    /// The kernel did not end it.
    #[error("the kernel refused to end the tracking of writes: drop the tracker, which closes it")]
    Stop(#[source] io::Error),
}

impl From<OpenError> for TrackError {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Lacks { missing } => Self::Lacks { missing },
            other => Self::Open(other),
        }
    }
}

impl From<ScanError> for TrackError {
    fn from(error: ScanError) -> Self {
        match error {
            ScanError::Unsupported => Self::NoScan,
            other => Self::Scan(other),
        }
    }
}
