//! What can go wrong with a memory file.

use std::io;

use super::contents::ContentsError;
use crate::page::PageRange;
use crate::ram::CopyError;
use crate::source::ImageError;

/// Why a memory could not be written to a file. What was written of it is of no use: delete the file.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The pages to write are not in order, overlap, or are not of this memory.
    #[error("{range} cannot be written: name pages of this guest in ascending order, each once")]
    Selection {
        /// The first range that does not fit.
        range: PageRange,
    },
    /// The file could not be made as long as the memory.
    #[error(
        "a memory file cannot be made {bytes} bytes long: write it to a file system that has files of that size"
    )]
    Size {
        /// How long it is to be.
        bytes: u64,
        /// The answer of the host.
        source: io::Error,
    },
    /// There is no room for it.
    #[error(
        "there is no room for the memory file past its offset {offset}: \
         delete it, free {needed_bytes_max} bytes there, and write it again"
    )]
    NoRoom {
        /// What could not be written, in bytes from the start of the file.
        offset: u64,
        /// How much more would have been written at most.
        needed_bytes_max: u64,
        /// The answer of the host.
        source: io::Error,
    },
    /// Writing failed.
    #[error(
        "writing the memory file failed at its offset {offset}: delete it, and write it to another place"
    )]
    File {
        /// What could not be written, in bytes from the start of the file.
        offset: u64,
        /// The answer of the host.
        source: io::Error,
    },
    /// A page of the guest could not be read.
    #[error("the guest's memory cannot be saved whole")]
    Page(#[from] CopyError),
    /// The memfd behind the guest's memory could not be read.
    #[error("reading {range} of the guest's memfd failed: check the host's log for memory errors")]
    Cache {
        /// What was read.
        range: PageRange,
        /// The answer of the host.
        source: io::Error,
    },
    /// The saved file that the guest's memory is mapped from is not whole any more.
    #[error(
        "the file that the guest's memory comes from was {expected} bytes and is {actual}: what is gone cannot be saved; \
         start from another copy of it"
    )]
    CutOff {
        /// How long it is.
        actual: u64,
        /// How long the memory is.
        expected: u64,
    },
    /// The host does not tell which pages there are.
    #[error(
        "the host does not tell which pages the guest has: mount /proc, and let this process read its own"
    )]
    Backed(#[source] io::Error),
    /// It was stopped.
    #[error("writing the memory file was cancelled: delete the file")]
    Cancelled,
}

impl WriteError {
    /// What is made of the host's refusal to write at `offset`.
    pub(super) fn of_write(offset: u64, needed_bytes_max: u64, source: io::Error) -> Self {
        use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull, WriteZero};
        match source.kind() {
            StorageFull | QuotaExceeded | FileTooLarge | WriteZero => {
                Self::NoRoom { offset, needed_bytes_max, source }
            }
            _ => Self::File { offset, source },
        }
    }
}

/// Why a memory file is not what was saved, or cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// It is of another length than the memory.
    #[error(
        "a memory file has {actual} bytes, and its memory {expected}: it is truncated, so take another copy"
    )]
    Size {
        /// How long it is.
        actual: u64,
        /// How long the memory is.
        expected: u64,
    },
    /// Its content is another.
    #[error(
        "{count} pages of a memory file are not what was saved, {} the first: take another copy of the snapshot",
        ranges.first().copied().unwrap_or(PageRange { start: crate::PageIndex(0), count: 0 })
    )]
    Differ {
        /// The first of them.
        ranges: Vec<PageRange>,
        /// How many there are.
        count: u64,
    },
    /// It cannot be read.
    #[error("reading {range} of a memory file failed: check the disk, or take another copy of the snapshot")]
    Read {
        /// What was read.
        range: PageRange,
        /// The answer of the host.
        source: io::Error,
    },
    /// It was stopped.
    #[error("verifying a memory file was cancelled: start it again")]
    Cancelled,
}

/// Why a diff could not be laid over its base.
#[derive(Debug, thiserror::Error)]
pub enum OverlayError {
    /// They are not of one memory. Nothing was written.
    #[error(transparent)]
    Contents(#[from] ContentsError),
    /// The base is not what was saved. Nothing was written.
    #[error("the base of a diff cannot be merged with it")]
    Base(#[source] VerifyError),
    /// The diff is not what was saved. If that was so before, nothing was written.
    #[error("a diff cannot be merged with its base")]
    Diff(#[source] VerifyError),
    /// The base could not be written.
    #[error(
        "the base of a diff was not written at its offset {offset}: make room there, or mend the disk, and merge them again"
    )]
    Write {
        /// Where, in bytes from its start.
        offset: u64,
        /// The answer of the host.
        source: io::Error,
    },
    /// What was written may not be on the disk.
    #[error("the base of a diff could not be brought to the disk: check it, and merge them again")]
    Sync(#[source] io::Error),
}

/// Why memory files could not be opened as one memory.
#[derive(Debug, thiserror::Error)]
pub enum StackError {
    /// One of the files is in the way.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The contents of one are those of another memory.
    #[error(transparent)]
    Contents(#[from] ContentsError),
}
