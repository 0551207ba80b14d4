//! Putting a state file together.

use super::header::{Architecture, FORMAT_VERSION, HEADER_BYTES, Header, SnapshotId};
use super::kind::{Kind, SectionName};
use super::table::{ENTRY_BYTES, Entry, aligned, bodies_offset};
use super::{FILE_BYTES_MAX, SECTIONS_MAX};

/// Why sections do not make a state file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// There are too many.
    #[error(
        "the snapshot has {count} sections and {SECTIONS_MAX} fit: take it of a machine with fewer devices"
    )]
    TooManySections {
        /// How many there are.
        count: usize,
    },
    /// They are too long.
    #[error(
        "the snapshot's state has {bytes} bytes and {FILE_BYTES_MAX} fit: take it of a machine with less memory"
    )]
    TooLong {
        /// The length of the file they would make.
        bytes: usize,
    },
    /// Two have the same name.
    #[error("the snapshot has two sections {section}: this is a bug, so please report it")]
    Twice {
        /// Which.
        section: SectionName,
    },
}

#[derive(Debug)]
struct Part {
    name: SectionName,
    version: u16,
    optional: bool,
    body: Vec<u8>,
}

/// Collects sections, and makes a file of them.
#[derive(Debug)]
pub struct Builder {
    id: SnapshotId,
    architecture: Architecture,
    parts: Vec<Part>,
}

impl Builder {
    /// A file without sections, for a machine of this host's architecture.
    #[must_use]
    pub fn new(id: SnapshotId) -> Self {
        Self::for_architecture(id, Architecture::HOST)
    }

    /// A file without sections, for a machine of `architecture`.
    #[must_use]
    pub fn for_architecture(id: SnapshotId, architecture: Architecture) -> Self {
        Self { id, architecture, parts: Vec::new() }
    }

    /// Adds a section that every reader has to know. `version` is that of `body`.
    pub fn add(&mut self, kind: Kind, version: u16, instance: u16, body: Vec<u8>) -> &mut Self {
        self.parts.push(Part { name: SectionName { kind, instance }, version, optional: false, body });
        self
    }

    /// Adds a section that a reader who does not know its kind may pass over.
    pub fn add_optional(&mut self, kind: Kind, version: u16, instance: u16, body: Vec<u8>) -> &mut Self {
        self.parts.push(Part { name: SectionName { kind, instance }, version, optional: true, body });
        self
    }

    /// The file's bytes.
    ///
    /// # Errors
    ///
    /// [`BuildError`] when no reader would take the file.
    pub fn finish(&self) -> Result<Vec<u8>, BuildError> {
        let total_bytes = self.check()?;
        let mut bodies = Vec::with_capacity(total_bytes - bodies_offset(self.parts.len()));
        let mut table = Vec::with_capacity(self.parts.len() * ENTRY_BYTES);
        for part in &self.parts {
            let start = bodies.len();
            bodies.extend_from_slice(&part.body);
            bodies.resize(aligned(bodies.len()), 0);
            let entry = Entry {
                name: part.name,
                version: part.version,
                optional: part.optional,
                offset: (bodies_offset(self.parts.len()) + start) as u64,
                length: part.body.len() as u64,
                checksum: crc32c::crc32c(&bodies[start..]),
            };
            table.extend_from_slice(&entry.encode());
        }
        let header = Header {
            version: FORMAT_VERSION,
            architecture: self.architecture,
            id: self.id,
            section_count: u32::try_from(self.parts.len()).expect("there are at most SECTIONS_MAX"),
            total_bytes: total_bytes as u64,
        };
        let header: [u8; HEADER_BYTES] = header.encode_with(&table);
        Ok([&header[..], &table, &bodies].concat())
    }

    /// The length of the file, if it has one that may be.
    fn check(&self) -> Result<usize, BuildError> {
        let count = self.parts.len();
        if count > SECTIONS_MAX {
            return Err(BuildError::TooManySections { count });
        }
        let mut names = std::collections::HashSet::with_capacity(count);
        if let Some(part) = self.parts.iter().find(|part| !names.insert(part.name)) {
            return Err(BuildError::Twice { section: part.name });
        }
        let bodies = self.parts.iter().map(|part| aligned(part.body.len()));
        let bytes = bodies.fold(bodies_offset(count), usize::saturating_add);
        if bytes <= FILE_BYTES_MAX { Ok(bytes) } else { Err(BuildError::TooLong { bytes }) }
    }
}
