//! The header: what a file is, before anything in it is looked at.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic: `\x89FLTLS\r\n` |
//! | 8 | 2 + 2 | format version: major, minor |
//! | 12 | 4 | architecture: ELF's `e_machine` |
//! | 16 | 16 | id |
//! | 32 | 4 | how many sections there are |
//! | 36 | 4 | crc32c of header and table, with these four bytes zero |
//! | 40 | 8 | total length of the file, in bytes |
//!
//! The magic is made as PNG's is: its first byte is no ASCII, so that a text is not taken for it and a copy over seven
//! bits is found out; its last two are what a copy in text mode changes.

use std::fmt;
use std::io;

use rustix::rand::{GetRandomFlags, getrandom};

use super::error::FormatError;
use super::table::ENTRY_BYTES;
use super::{FILE_BYTES_MAX, SECTIONS_MAX};

pub(super) const MAGIC: [u8; 8] = *b"\x89FLTLS\r\n";
/// What of the magic survives any copy as text.
const MAGIC_TEXT: &[u8] = b"FLTLS";
/// How far in [`MAGIC_TEXT`] is found after such a copy: a byte order mark, and the first byte become three.
const MAGIC_TEXT_END: usize = 12;

/// The end of Firecracker's magics, `0x0710_1984_8664_xxxx` and `0x0710_1984_aaaa_xxxx`, as they are in a file.
const FIRECRACKER_MAGICS: [[u8; 6]; 2] =
    [[0x64, 0x86, 0x84, 0x19, 0x10, 0x07], [0xaa, 0xaa, 0x84, 0x19, 0x10, 0x07]];
/// How far in they are looked for: its encoder is not always the same, and may put something before them.
const FIRECRACKER_MAGIC_END: usize = 32;

pub(super) const HEADER_BYTES: usize = 48;
const CHECKSUM_OFFSET: usize = 36;

/// The version of the container's format; sections have versions of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FormatVersion {
    /// Another one means another layout.
    pub major: u16,
    /// A higher one means additions that an older reader may pass over.
    pub minor: u16,
}

impl fmt::Display for FormatVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// The version that is written.
pub const FORMAT_VERSION: FormatVersion = FormatVersion { major: 1, minor: 0 };

/// A processor architecture, by ELF's `e_machine`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Architecture(pub u32);

impl Architecture {
    /// `EM_X86_64`.
    pub const X86_64: Self = Self(62);
    /// `EM_AARCH64`.
    pub const AARCH64: Self = Self(183);
    /// The one this program is built for.
    pub const HOST: Self = if cfg!(target_arch = "aarch64") { Self::AARCH64 } else { Self::X86_64 };
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::X86_64 => f.write_str("x86_64"),
            Self::AARCH64 => f.write_str("aarch64"),
            Self(machine) => write!(f, "architecture {machine}"),
        }
    }
}

/// A snapshot's name for itself, the same wherever it is copied to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SnapshotId(pub [u8; 16]);

impl SnapshotId {
    /// A name that no other snapshot has.
    ///
    /// # Errors
    ///
    /// When the host gives no randomness.
    pub fn random() -> io::Result<Self> {
        let mut bytes = [0; 16];
        let count = getrandom(&mut bytes, GetRandomFlags::empty())?;
        // The kernel gives up to 256 bytes whole (getrandom(2)).
        if count == bytes.len() { Ok(Self(bytes)) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    /// The id of the snapshot that begins with `head`, of this format version or a later one.
    pub(super) fn of_head(head: &[u8]) -> Option<Self> {
        if !head.starts_with(&MAGIC) {
            return None;
        }
        head.get(16..32).and_then(|bytes| bytes.try_into().ok()).map(Self)
    }
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What the header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The format's version.
    pub version: FormatVersion,
    /// The architecture of the machine in it.
    pub architecture: Architecture,
    /// The snapshot's name for itself.
    pub id: SnapshotId,
    /// How many sections there are.
    pub section_count: u32,
    /// The length of the whole file, in bytes.
    pub total_bytes: u64,
}

/// The `N` bytes at `offset`.
pub(super) fn field<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    bytes[offset..][..N].try_into().expect("the slice has N bytes")
}

impl Header {
    /// The header, its checksum zero.
    fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..10].copy_from_slice(&self.version.major.to_le_bytes());
        bytes[10..12].copy_from_slice(&self.version.minor.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.architecture.0.to_le_bytes());
        bytes[16..32].copy_from_slice(&self.id.0);
        bytes[32..36].copy_from_slice(&self.section_count.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.total_bytes.to_le_bytes());
        bytes
    }

    /// The header with the checksum of itself and of `table`.
    pub(super) fn encode_with(&self, table: &[u8]) -> [u8; HEADER_BYTES] {
        let mut bytes = self.encode();
        let checksum = crc32c::crc32c_append(crc32c::crc32c(&bytes), table);
        bytes[CHECKSUM_OFFSET..][..4].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// The header of `file`, which is checked along with the table that follows.
    pub(super) fn decode(file: &[u8]) -> Result<Self, FormatError> {
        check_head(file)?;
        if file.len() < HEADER_BYTES {
            return Err(FormatError::Truncated { actual: file.len(), expected: HEADER_BYTES as u64 });
        }
        let header = Self {
            version: version_of(file),
            architecture: Architecture(u32::from_le_bytes(field(file, 12))),
            id: SnapshotId(field(file, 16)),
            section_count: u32::from_le_bytes(field(file, 32)),
            total_bytes: u64::from_le_bytes(field(file, 40)),
        };
        header.check(file)?;
        Ok(header)
    }

    fn check(&self, file: &[u8]) -> Result<(), FormatError> {
        let count = usize::try_from(self.section_count).unwrap_or(usize::MAX);
        if count > SECTIONS_MAX {
            return Err(FormatError::TooManySections { count: self.section_count });
        }
        let (actual, expected) = (file.len(), self.total_bytes);
        match (actual as u64).cmp(&expected) {
            std::cmp::Ordering::Less => return Err(FormatError::Truncated { actual, expected }),
            std::cmp::Ordering::Greater => return Err(FormatError::TooLong { actual, expected }),
            std::cmp::Ordering::Equal => {}
        }
        let table = file.get(HEADER_BYTES..HEADER_BYTES + count * ENTRY_BYTES);
        let checks = table.is_some_and(|table| self.encode_with(table) == file[..HEADER_BYTES]);
        if checks && self.version.major == FORMAT_VERSION.major {
            Ok(())
        } else {
            Err(FormatError::DamagedHeader)
        }
    }
}

fn version_of(file: &[u8]) -> FormatVersion {
    FormatVersion { major: u16::from_le_bytes(field(file, 8)), minor: u16::from_le_bytes(field(file, 10)) }
}

/// Whether `head`, the first bytes of a file, can be those of a state file that this program reads.
pub(super) fn check_head(head: &[u8]) -> Result<(), FormatError> {
    let magic = &head[..head.len().min(MAGIC.len())];
    if head.is_empty() {
        return Err(FormatError::Empty);
    }
    if !MAGIC.starts_with(magic) {
        return Err(what_else(head));
    }
    if head.len() >= 12 && version_of(head).major > FORMAT_VERSION.major {
        return Err(FormatError::Newer { found: version_of(head) });
    }
    Ok(())
}

/// What a file is that does not begin with the magic.
fn what_else(head: &[u8]) -> FormatError {
    let has =
        |end: usize, what: &[u8]| head[..head.len().min(end)].windows(what.len()).any(|part| part == what);
    if FIRECRACKER_MAGICS.iter().any(|magic| has(FIRECRACKER_MAGIC_END, magic)) {
        FormatError::Firecracker
    } else if has(MAGIC_TEXT_END, MAGIC_TEXT) {
        FormatError::TextMode
    } else {
        FormatError::NotASnapshot
    }
}

const _: () = assert!(SECTIONS_MAX * ENTRY_BYTES < FILE_BYTES_MAX);
