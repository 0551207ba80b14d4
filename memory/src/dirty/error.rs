//! Why writes cannot be tracked.

use std::io;

use crate::ram::TooManyWatchers;
use crate::uffd::{Features, OpenError, RegisterError, ScanError, Stop};

/// Why writes cannot be tracked.
#[derive(Debug, thiserror::Error)]
pub enum TrackError {
    /// This kernel cannot.
    #[error(
        "this kernel does not tell which pages were written, it lacks {missing}: use a newer one, or take diffs \
         without `track_dirty_pages`"
    )]
    Lacks {
        /// What it lacks.
        missing: Features,
    },
    /// This kernel cannot find them.
    #[error(
        "this kernel has no PAGEMAP_SCAN to find written pages by (Linux 6.7): use a newer one, or take diffs without \
         `track_dirty_pages`"
    )]
    NoScan,
    /// This host has no means at all.
    #[error(
        "this host does not tell which pages were written: that takes Linux 6.7 and a userfaultfd, or a kernel with \
         CONFIG_MEM_SOFT_DIRTY (`faultless doctor` says what there is); without `track_dirty_pages` a diff holds every \
         page that the host has of the guest"
    )]
    NoMeans,
    /// The memory is another process's, too.
    #[error(
        "writes to memory that is shared with other processes cannot be followed while it is served: take full \
         snapshots of it"
    )]
    Shared,
    /// The page tables cannot be read, or their bits not be cleared.
    #[error("the host does not let this process look at its own page tables: mount /proc where it runs")]
    Pagemap(#[source] io::Error),
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
    #[error(
        "guest memory cannot be protected to see writes ({0}): see that the host has memory for page tables"
    )]
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
