//! The state file of a snapshot: a container of sections, and no knowledge of what is in them.
//!
//! ```text
//!   0        header, 48 bytes        magic, format version, architecture, id, section count, crc32c, total length
//!   48       section table           32 bytes a section: kind, version, instance, offset, length, crc32c, flags
//!   …        bodies                  in the table's order, each at the next multiple of 8, filled up with zeros
//! ```
//!
//! All numbers are little-endian. The table says what is there without a look at any body.
//!
//! ```text
//!    save   Builder ──► bytes ──► Aside ──► place(memory, state)           written aside, synced, renamed
//!    load   read(path) ──► StateFile ──► section(kind, instance)           checked whole before anything is used
//!                              └── memory_path(id, path)                   which file is its memory
//! ```
//!
//! Invariants:
//!
//! - There is one way to write given sections: a file with gaps, overlaps or anything appended is refused.
//! - Each byte is covered by a checksum, or has only one value that is accepted.
//! - Nothing is allocated by what a file says of itself, but by how large it is, and that has a limit.
//! - Magic, format version and id stay where they are in all formats to come.
//! - Whenever a save is cut off, the snapshot that was there before is still there whole (see [`place`]).

mod aside;
mod builder;
mod error;
mod header;
mod kind;
mod place;
mod read;
mod state_file;
mod table;

pub use aside::{Aside, AsideError};
pub use builder::{BuildError, Builder};
pub use error::{FileError, FormatError};
pub use header::{Architecture, FORMAT_VERSION, FormatVersion, Header, SnapshotId};
pub use kind::{Kind, SectionName};
pub use place::{id_at, memory_path, place};
pub use read::read;
pub use state_file::{Section, StateFile};

/// The largest state file that is written or read, in bytes: 1 GiB. The memory is not in it.
pub const FILE_BYTES_MAX: usize = 1 << 30;

/// How many sections a file has at most.
pub const SECTIONS_MAX: usize = 1024;

#[cfg(test)]
mod tests;
