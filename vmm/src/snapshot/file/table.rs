//! The section table, and where bodies have to be.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | kind |
//! | 4 | 2 | version of the body |
//! | 6 | 2 | instance |
//! | 8 | 8 | offset of the body in the file, in bytes |
//! | 16 | 8 | length of the body, in bytes |
//! | 24 | 4 | crc32c of the body and of the zeros up to the next multiple of 8 |
//! | 28 | 4 | flags: bit 0 is set if a reader that does not know the kind may pass over it |

use std::collections::HashSet;
use std::ops::Range;

use super::error::FormatError;
use super::header::{HEADER_BYTES, field};
use super::kind::{Kind, SectionName};

pub(super) const ENTRY_BYTES: usize = 32;
const FLAG_OPTIONAL: u32 = 1;
const ALIGN_BYTES: usize = 8;

/// One line of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub name: SectionName,
    pub version: u16,
    pub optional: bool,
    pub offset: u64,
    pub length: u64,
    pub checksum: u32,
}

impl Entry {
    pub(super) fn encode(&self) -> [u8; ENTRY_BYTES] {
        let mut bytes = [0; ENTRY_BYTES];
        bytes[..4].copy_from_slice(&self.name.kind.0.to_le_bytes());
        bytes[4..6].copy_from_slice(&self.version.to_le_bytes());
        bytes[6..8].copy_from_slice(&self.name.instance.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.offset.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.length.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.checksum.to_le_bytes());
        bytes[28..32].copy_from_slice(&(if self.optional { FLAG_OPTIONAL } else { 0 }).to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let name = SectionName {
            kind: Kind(u32::from_le_bytes(field(bytes, 0))),
            instance: u16::from_le_bytes(field(bytes, 6)),
        };
        let flags = u32::from_le_bytes(field(bytes, 28));
        if flags & !FLAG_OPTIONAL != 0 {
            return Err(FormatError::UnknownFlags { section: name, flags });
        }
        Ok(Self {
            name,
            version: u16::from_le_bytes(field(bytes, 4)),
            optional: flags & FLAG_OPTIONAL != 0,
            offset: u64::from_le_bytes(field(bytes, 8)),
            length: u64::from_le_bytes(field(bytes, 16)),
            checksum: u32::from_le_bytes(field(bytes, 24)),
        })
    }
}

/// `bytes`, up to the next place where a body may begin.
pub(super) fn aligned(bytes: usize) -> usize {
    bytes.next_multiple_of(ALIGN_BYTES)
}

/// Where the first body of `count` begins.
pub(super) fn bodies_offset(count: usize) -> usize {
    HEADER_BYTES + count * ENTRY_BYTES
}

/// The table of `count` sections in `file`, each with where its body is. Header and table have been checked against
/// their checksum; the bodies are checked here.
pub(super) fn decode(file: &[u8], count: usize) -> Result<Vec<(Entry, Range<usize>)>, FormatError> {
    let mut names = HashSet::with_capacity(count);
    let mut sections = Vec::with_capacity(count);
    let mut offset = bodies_offset(count);
    for entry in file[HEADER_BYTES..offset].chunks_exact(ENTRY_BYTES) {
        let entry = Entry::decode(entry)?;
        if !names.insert(entry.name) {
            return Err(FormatError::Twice { section: entry.name });
        }
        let body = place_of(&entry, offset, file.len())?;
        offset = aligned(body.end);
        if crc32c::crc32c(&file[body.start..offset]) != entry.checksum {
            return Err(FormatError::DamagedSection { section: entry.name });
        }
        sections.push((entry, body));
    }
    if offset == file.len() { Ok(sections) } else { Err(FormatError::Unclaimed { offset }) }
}

/// Where the body of `entry` is, which has to begin at `offset` and to end in the file.
fn place_of(entry: &Entry, offset: usize, file_bytes: usize) -> Result<Range<usize>, FormatError> {
    let section = entry.name;
    if entry.offset != offset as u64 {
        return Err(FormatError::Misplaced { section, actual: entry.offset, expected: offset });
    }
    let end = usize::try_from(entry.length).ok().and_then(|length| offset.checked_add(length));
    let end = end.filter(|&end| end <= file_bytes && aligned(end) <= file_bytes);
    let out = FormatError::OutOfBounds { section, length: entry.length };
    end.map(|end| offset..end).ok_or(out)
}
