//! The memory file of a snapshot: written, verified, stacked.
//!
//! ```text
//!   page        0   1   2   3   4   5
//!   RAM         a   0   b   b   0   c
//!   full file   a   .   b   b   .   c       a zero page is a hole
//!   Contents    data 0, 2..4, 5; a crc32c of each
//!
//!   then pages 2 and 4 are written, 2 to zero
//!   diff file   .   .   0   .   d   .       all that was written, zero or not; a hole: look below
//!   Contents    data 2, 4; a crc32c of each
//! ```
//!
//! A file is guest RAM as it is: page `n` at `n` times 4 KiB, as long as the RAM. What of it is data is told by its
//! [`Contents`], which are saved apart from it. So a copy that punched holes where zeros were, or lost some pages, is
//! found out; and opening a file asks the file system for nothing but its length.
//!
//! | room | what it is for |
//! |---|---|
//! | `contents` | [`Contents`]: what a file holds, checked when it is loaded; one over another |
//! | `selection` | which pages to write, and how to read them without touching what was never touched |
//! | `write` | RAM to a file, on some threads |
//! | `chunk` | the bytes of a chunk to a file, for `write` and for [`capture`](crate::capture) |
//! | `verify` | a file against its contents |
//! | `overlay` | a diff into its base |
//! | `stack` | a base and its diffs, as a source of checked pages |
//! | `file` | what is asked of a file, so that tests can let it fail |
//! | `progress` | how far it is, and stopping it |
//!
//! Invariants:
//!
//! - Guest memory is read through the kernel, never touched: a page that is poisoned is an error, not a signal.
//! - A page of memory that nobody serves and that the host never backed is not read, and stays as it is.
//! - Contents that were loaded are not trusted: they describe whole pages of one memory, in order, or are refused.
//! - Who writes a file and fails leaves it as it is then. The caller deletes it.

mod chunk;
mod contents;
mod error;
mod file;
mod overlay;
mod progress;
mod selection;
mod stack;
mod verify;
mod write;

pub(crate) use chunk::{ChunkWriter, Part, join};
pub(crate) use contents::outside;
pub use contents::{Contents, ContentsError};
pub use error::{OverlayError, StackError, VerifyError, WriteError};
pub(crate) use file::{BATCH_PAGES, MemoryFile, batch_buffer, length_of, read_all};
pub use overlay::overlay;
pub use progress::Progress;
pub use selection::Selection;
pub(crate) use selection::data_of;
pub use stack::Stack;
pub use verify::{DIFFERING_MAX, verify};
pub(crate) use write::threads;
pub use write::{THREADS_MAX, WriteOptions, write};

#[cfg(test)]
mod tests;
