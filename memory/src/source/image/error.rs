//! What can be in the way of an image.

use std::io;
use std::path::PathBuf;

use super::LAYERS_MAX;

/// Why an image cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// There are no files.
    #[error("a memory image has no files: name its base")]
    NoLayers,
    /// There are too many files.
    #[error("a memory image of {count} files is too deep: merge diffs until there are at most {LAYERS_MAX}")]
    TooManyLayers {
        /// How many there are.
        count: usize,
    },
    /// The guest's RAM is not whole pages.
    #[error("{bytes} bytes of guest memory are no whole number of pages: take a multiple of 4096")]
    Memory {
        /// Its size.
        bytes: u64,
    },
    /// A file cannot be opened.
    #[error("memory file {path} cannot be opened: check that it is there and may be read")]
    Open {
        /// Which.
        path: PathBuf,
        /// The answer of the host.
        source: io::Error,
    },
    /// It is a directory, a pipe or the like.
    #[error("memory file {path} is neither a regular file nor a block device: name one that is")]
    Kind {
        /// Which.
        path: PathBuf,
    },
    /// A file is empty.
    #[error("memory file {path} is empty: its writing did not end, so take the snapshot again")]
    Empty {
        /// Which.
        path: PathBuf,
    },
    /// A file's size is not whole pages.
    #[error(
        "memory file {path} has {actual} bytes, no whole number of pages: it is truncated, so copy it again"
    )]
    Unaligned {
        /// Which.
        path: PathBuf,
        /// Its size.
        actual: u64,
    },
    /// A file is of another size than the guest's RAM.
    #[error(
        "memory file {path} has {actual} bytes and the guest {expected}: it is truncated, or of another guest"
    )]
    Size {
        /// Which.
        path: PathBuf,
        /// Its size.
        actual: u64,
        /// The size of the RAM.
        expected: u64,
    },
    /// A file is there twice.
    #[error("memory file {path} is named twice: name each file of the stack once, the base first")]
    Twice {
        /// Which.
        path: PathBuf,
    },
    /// The host does not tell of a file what has to be known.
    #[error("memory file {path} cannot be looked into: copy it to another file system")]
    Host {
        /// Which.
        path: PathBuf,
        /// The answer of the host.
        source: io::Error,
    },
}
