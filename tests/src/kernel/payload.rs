//! The kernel proper inside a bzImage: an ELF, compressed.
//!
//! The setup header (Linux Documentation/arch/x86/boot.rst, protocol 2.08 and later) tells where the payload is; its
//! first bytes tell the compression. Behind all but a gzip payload stand four bytes with the unpacked size, which the
//! unpacking programs take for rubbish.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use thiserror::Error;

use super::{KernelError, read};

const SETUP_SECTORS: usize = 0x1f1;
const HEADER_MAGIC: usize = 0x202;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
const SECTOR_BYTES: usize = 512;
const SIZE_BYTES: usize = 4;

/// What is wrong with a file that should be a bzImage.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PayloadError {
    /// It does not have the setup header of a bzImage.
    #[error("not a bzImage: no \"HdrS\" at offset 0x202")]
    NotBzImage,
    /// The payload would end behind the end of the file.
    #[error("truncated: its payload ends behind the end of the file")]
    Truncated,
    /// The payload begins with none of the known magic numbers.
    #[error("its payload is compressed in a way not known here (gzip, xz, zstd and lz4 are)")]
    UnknownCompression,
}

pub(super) fn extract_elf(image: &Path, output: &Path) -> Result<(), KernelError> {
    let bytes = read(image)?;
    let payload =
        Payload::find(&bytes).map_err(|source| KernelError::Payload { path: image.to_owned(), source })?;
    let failed =
        |reason: String| KernelError::Unpack { program: payload.program, path: image.to_owned(), reason };
    let to = File::create(output).map_err(|source| KernelError::Io { path: output.to_owned(), source })?;
    let mut unpacker = Command::new(payload.program)
        .arg("-dcq")
        .stdin(Stdio::piped())
        .stdout(to)
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    let mut stdin = unpacker.stdin.take().expect("stdin was asked to be a pipe");
    let written = stdin.write_all(payload.compressed);
    drop(stdin);
    let status = unpacker.wait().map_err(|error| failed(error.to_string()))?;
    written.map_err(|error| failed(error.to_string()))?;
    if status.success() { Ok(()) } else { Err(failed(status.to_string())) }
}

#[derive(Debug, PartialEq, Eq)]
struct Payload<'a> {
    program: &'static str,
    compressed: &'a [u8],
}

impl<'a> Payload<'a> {
    fn find(image: &'a [u8]) -> Result<Self, PayloadError> {
        if image.get(HEADER_MAGIC..HEADER_MAGIC + 4) != Some(b"HdrS") {
            return Err(PayloadError::NotBzImage);
        }
        let sectors = match image[SETUP_SECTORS] {
            0 => 4,
            count => usize::from(count),
        };
        let start = (sectors + 1) * SECTOR_BYTES + field(image, PAYLOAD_OFFSET)?;
        let payload =
            image.get(start..start + field(image, PAYLOAD_LENGTH)?).ok_or(PayloadError::Truncated)?;
        let without_size = &payload[..payload.len().saturating_sub(SIZE_BYTES)];
        match payload {
            [0x1f, 0x8b, ..] => Ok(Self { program: "gzip", compressed: payload }),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Ok(Self { program: "xz", compressed: without_size }),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Ok(Self { program: "zstd", compressed: without_size }),
            [0x02, 0x21, 0x4c, 0x18, ..] => Ok(Self { program: "lz4", compressed: without_size }),
            _ => Err(PayloadError::UnknownCompression),
        }
    }
}

/// A little-endian 32-bit field of the setup header.
fn field(image: &[u8], offset: usize) -> Result<usize, PayloadError> {
    let bytes = image.get(offset..offset + 4).ok_or(PayloadError::Truncated)?;
    let value = u32::from_le_bytes(bytes.try_into().expect("the slice is four bytes long"));
    Ok(usize::try_from(value).expect("a usize is at least 32 bits here"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bz_image(payload: &[u8], claimed: u32) -> Vec<u8> {
        let mut image = vec![0u8; 2 * SECTOR_BYTES + 16];
        image[SETUP_SECTORS] = 1;
        image[HEADER_MAGIC..HEADER_MAGIC + 4].copy_from_slice(b"HdrS");
        image[PAYLOAD_OFFSET..PAYLOAD_OFFSET + 4].copy_from_slice(&16u32.to_le_bytes());
        image[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&claimed.to_le_bytes());
        image.extend_from_slice(payload);
        image
    }

    #[test]
    fn the_trailing_size_is_no_part_of_what_is_unpacked() {
        let image = bz_image(&[0x28, 0xb5, 0x2f, 0xfd, 7, 1, 2, 3, 4], 9);
        let expected = Payload { program: "zstd", compressed: &[0x28, 0xb5, 0x2f, 0xfd, 7] };
        assert_eq!(Payload::find(&image), Ok(expected));
    }

    #[test]
    fn what_is_no_whole_bzimage_is_refused() {
        assert_eq!(Payload::find(b"MZ"), Err(PayloadError::NotBzImage));
        assert_eq!(Payload::find(&bz_image(&[0x1f, 0x8b], 3)), Err(PayloadError::Truncated));
        assert_eq!(Payload::find(&bz_image(b"abcdef", 6)), Err(PayloadError::UnknownCompression));
    }
}
