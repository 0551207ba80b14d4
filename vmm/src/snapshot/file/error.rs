//! What can be wrong with a state file.

use std::io;
use std::path::PathBuf;

use super::header::{Architecture, FORMAT_VERSION, FormatVersion};
use super::kind::SectionName;
use super::{FILE_BYTES_MAX, SECTIONS_MAX};

/// Why bytes are no state file that can be loaded here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// There are none.
    #[error("it is empty: its writing did not end, so take the snapshot again")]
    Empty,
    /// It is something else.
    #[error(
        "it is not a snapshot's state file: name the file that was given as `snapshot_path` when it was taken"
    )]
    NotASnapshot,
    /// It is a snapshot of Firecracker.
    #[error(
        "it is a snapshot of Firecracker, whose state cannot be loaded: start the guest here and take its snapshot anew"
    )]
    Firecracker,
    /// It was copied as if it were text.
    #[error("it was changed by a copy in text mode: copy it again, in binary mode")]
    TextMode,
    /// It is of a later format.
    #[error(
        "it was written by a newer faultless (format {found}), and this one reads up to {}.x: use that version",
        FORMAT_VERSION.major
    )]
    Newer {
        /// Its format.
        found: FormatVersion,
    },
    /// It is larger than any may be.
    #[error("it has {bytes} bytes, and a state file has at most {FILE_BYTES_MAX}: is it the memory file?")]
    TooLarge {
        /// Its size.
        bytes: u64,
    },
    /// Its end is missing.
    #[error(
        "it is truncated: it has {actual} bytes of {expected}, so copy it again or take the snapshot again"
    )]
    Truncated {
        /// How many bytes it has.
        actual: usize,
        /// How many it should have, or at least.
        expected: u64,
    },
    /// There is something after its end.
    #[error("something was appended to it: it has {actual} bytes instead of {expected}, so copy it again")]
    TooLong {
        /// How many bytes it has.
        actual: usize,
        /// How many it should have.
        expected: u64,
    },
    /// Header or table are not what was written.
    #[error("its header is damaged: restore from another copy of the snapshot")]
    DamagedHeader,
    /// A section is not what was written.
    #[error("its section {section} is damaged: restore from another copy of the snapshot")]
    DamagedSection {
        /// Which.
        section: SectionName,
    },
    /// It says that there are more sections than may be.
    #[error(
        "it has {count} sections, and at most {SECTIONS_MAX} may be: restore from another copy of the snapshot"
    )]
    TooManySections {
        /// How many.
        count: u32,
    },
    /// A section is there twice.
    #[error("it has section {section} twice: take the snapshot again")]
    Twice {
        /// Which.
        section: SectionName,
    },
    /// A section overlaps another one, or leaves a gap.
    #[error("its section {section} begins at byte {actual} instead of {expected}: take the snapshot again")]
    Misplaced {
        /// Which.
        section: SectionName,
        /// Where it begins.
        actual: u64,
        /// Where it has to.
        expected: usize,
    },
    /// A section does not end in the file.
    #[error(
        "its section {section} has {length} bytes, which go beyond the file's end: take the snapshot again"
    )]
    OutOfBounds {
        /// Which.
        section: SectionName,
        /// Its length.
        length: u64,
    },
    /// There are bytes that no section has.
    #[error("its bytes from {offset} on belong to no section: take the snapshot again")]
    Unclaimed {
        /// Where they begin.
        offset: usize,
    },
    /// A section has flags that are not known.
    #[error(
        "its section {section} has flags {flags:#x}, not all of them known: use the faultless that wrote it"
    )]
    UnknownFlags {
        /// Which.
        section: SectionName,
        /// Its flags.
        flags: u32,
    },
    /// A section is not known and may not be passed over.
    #[error(
        "its section {section} is of a kind that this faultless does not know: use the one that wrote it"
    )]
    UnknownSection {
        /// Which.
        section: SectionName,
    },
    /// It is of a machine of another architecture.
    #[error("it is of {found} and this host is {}: restore it on a host of {found}", Architecture::HOST)]
    Architecture {
        /// Which.
        found: Architecture,
    },
}

/// Why a state file cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// There is none.
    #[error("there is no snapshot {}: check the path", path.display())]
    Missing {
        /// Where it should be.
        path: PathBuf,
    },
    /// It cannot be opened or read.
    #[error("cannot read the snapshot {}: check that this user may read it", path.display())]
    Host {
        /// Which.
        path: PathBuf,
        /// The host's answer.
        source: io::Error,
    },
    /// It is a folder, a pipe or the like.
    #[error("the snapshot {} is not a regular file: name the state file itself", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// What is in it is wrong.
    #[error("cannot load the snapshot {}", path.display())]
    Format {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        source: FormatError,
    },
}
