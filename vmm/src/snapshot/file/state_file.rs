//! A state file that was read and checked.

use std::ops::Range;

use super::FILE_BYTES_MAX;
use super::error::FormatError;
use super::header::{Architecture, Header};
use super::kind::{Kind, SectionName};
use super::table::{self, Entry};

/// A section of a state file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Section<'a> {
    /// What it is of.
    pub name: SectionName,
    /// The version of its body.
    pub version: u16,
    /// Whether a reader who does not know its kind may pass over it.
    pub optional: bool,
    /// What is in it.
    pub body: &'a [u8],
}

/// A state file whose every checksum fits.
#[derive(Debug, Clone)]
pub struct StateFile {
    header: Header,
    sections: Vec<(Entry, Range<usize>)>,
    bytes: Vec<u8>,
}

impl StateFile {
    /// The state file that `bytes` are, to be loaded on this host: its architecture is this one, and every section
    /// is of a kind that this program knows, or may be passed over.
    ///
    /// # Errors
    ///
    /// [`FormatError`], which says what is wrong and what to do.
    pub fn parse(bytes: Vec<u8>) -> Result<Self, FormatError> {
        let file = Self::inspect(bytes)?;
        if file.header.architecture != Architecture::HOST {
            return Err(FormatError::Architecture { found: file.header.architecture });
        }
        let unknown = file.sections().find(|section| !section.optional && section.name.kind.name().is_none());
        if let Some(Section { name, .. }) = unknown {
            return Err(FormatError::UnknownSection { section: name });
        }
        Ok(file)
    }

    /// The state file that `bytes` are, of any architecture and with any sections: to say what it is.
    ///
    /// # Errors
    ///
    /// [`FormatError`] when it is damaged, or not a state file.
    pub fn inspect(bytes: Vec<u8>) -> Result<Self, FormatError> {
        if bytes.len() > FILE_BYTES_MAX {
            return Err(FormatError::TooLarge { bytes: bytes.len() as u64 });
        }
        let header = Header::decode(&bytes)?;
        let count = usize::try_from(header.section_count).expect("there are at most SECTIONS_MAX");
        let sections = table::decode(&bytes, count)?;
        Ok(Self { header, sections, bytes })
    }

    /// What the header says.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// All sections, in the order in which they were added.
    pub fn sections(&self) -> impl Iterator<Item = Section<'_>> {
        self.sections.iter().map(|(entry, body)| Section {
            name: entry.name,
            version: entry.version,
            optional: entry.optional,
            body: &self.bytes[body.clone()],
        })
    }

    /// The section of that name, if there is one.
    #[must_use]
    pub fn section(&self, kind: Kind, instance: u16) -> Option<Section<'_>> {
        self.sections().find(|section| section.name == SectionName { kind, instance })
    }
}
