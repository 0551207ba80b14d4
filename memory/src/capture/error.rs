//! What can go wrong with a capture.

use std::io;
use std::sync::Arc;

use crate::fault::{Failure, FaultEngine, ServedMemory, StartError};
use crate::image::WriteError;
use crate::page::PageRange;
use crate::ram::TooManyWatchers;
use crate::source::SourceError;
use crate::uffd::Stop;

/// Why memory could not be captured. Nothing is protected, and the guest goes on.
#[derive(Debug, thiserror::Error)]
pub enum BeginError {
    /// The engine cannot protect memory.
    #[error("guest memory is served without write-protection: start its engine with it, or pause and save")]
    Unprotectable,
    /// Somebody else is told of writes.
    #[error("guest memory is being captured already: wait until that is done, or cancel it")]
    Busy,
    /// The engine has failed.
    #[error("guest memory is not all there, so it cannot be saved")]
    Engine(#[source] Failure),
    /// Who serves the faults of the memory has not done as it was told, for 5 s or more.
    #[error("guest memory is not served: what its pages come from hangs; see to that, and try again")]
    Hangs,
    /// Too much has to know of discards.
    #[error(transparent)]
    Watch(#[from] TooManyWatchers),
    /// The host does not tell which pages there are.
    #[error(
        "the host does not tell which pages the guest has: mount /proc, and let this process read its own"
    )]
    Backed(#[source] io::Error),
    /// The kernel refused.
    #[error("the kernel does not protect {range}: pause the guest and save it")]
    Protect {
        /// What was to be protected.
        range: PageRange,
        /// Its answer.
        source: Stop,
    },
}

/// Why a capture did not become a memory file. What was written of it is of no use: delete the file. The guest goes on.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The file could not be written, the memory not be read, or it was cancelled.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// Pages that the guest does not have yet could not be read from where they are.
    #[error(
        "{range}, which the guest has not touched yet, cannot be saved: see to their source, and try again"
    )]
    Source {
        /// Which.
        range: PageRange,
        /// What the source says.
        source: SourceError,
    },
    /// Pages were thrown away that had not come yet, and there was no reader of their source.
    #[error("{range} were thrown away before they came: capture with a reader of their source")]
    Discarded {
        /// Which.
        range: PageRange,
    },
    /// The engine has failed.
    #[error("guest memory is not all there, so it cannot be saved")]
    Engine(#[source] Failure),
    /// A chunk cannot be written again. Whoever wants to waits: the engine is of no use any more.
    #[error("the kernel does not end the protection of {range}: end the VM")]
    Unprotect {
        /// Which.
        range: PageRange,
        /// Its answer.
        source: Stop,
    },
}

/// Why RAM that is all there could not be served.
#[derive(Debug, thiserror::Error)]
pub enum PresentError {
    /// No userfaultfd can protect a mapped file.
    #[error(
        "memory over a saved file cannot be captured while its guest runs: \
         restore it with the backend type Lazy, or pause the guest and save it"
    )]
    File,
    /// The memory cannot be served, and says why.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The host does not tell which pages there are.
    #[error(
        "the host does not tell which pages the guest has: mount /proc, and let this process read its own"
    )]
    Backed(#[source] io::Error),
}

/// Why RAM did not come back from its engine.
#[derive(thiserror::Error)]
pub enum ReleaseError {
    /// It is used yet.
    #[error("guest memory is being captured yet: end that first")]
    Busy(Arc<FaultEngine>),
    /// The kernel refused.
    #[error("guest memory cannot be taken from its userfaultfd: resume an engine with it, or end the VM")]
    Kernel {
        /// The memory. Whoever misses a page of it waits.
        memory: ServedMemory,
        /// The kernel's answer, if it was one.
        source: Option<io::Error>,
    },
}

impl std::fmt::Debug for ReleaseError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Busy(_) => f.write_str("Busy"),
            Self::Kernel { source, .. } => f.debug_tuple("Kernel").field(source).finish(),
        }
    }
}
