//! Reading a state file.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::FILE_BYTES_MAX;
use super::error::{FileError, FormatError};
use super::header::{HEADER_BYTES, check_head};
use super::state_file::StateFile;

/// Reads the state file at `path`, and checks all of it.
///
/// # Errors
///
/// [`FileError`], which says what is wrong and what to do.
pub fn read(path: &Path) -> Result<StateFile, FileError> {
    let file = open(path)?;
    let host = |source| FileError::Host { path: path.to_owned(), source };
    let format = |source| FileError::Format { path: path.to_owned(), source };
    let head = read_up_to(&file, HEADER_BYTES).map_err(host)?;
    // What it is not is said without reading gigabytes of it.
    check_head(&head).map_err(format)?;
    let file_bytes = file.metadata().map_err(host)?.len();
    if file_bytes > FILE_BYTES_MAX as u64 {
        return Err(format(FormatError::TooLarge { bytes: file_bytes }));
    }
    let mut bytes = head;
    bytes.append(&mut read_up_to(&file, FILE_BYTES_MAX + 1).map_err(host)?);
    StateFile::parse(bytes).map_err(format)
}

/// Opens a regular file. Opening a pipe would wait for its other side without `O_NONBLOCK`.
pub(super) fn open(path: &Path) -> Result<File, FileError> {
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open(path);
    let file = opened.map_err(|source| match source.kind() {
        ErrorKind::NotFound => FileError::Missing { path: path.to_owned() },
        // A socket.
        _ if source.raw_os_error() == Some(libc::ENXIO) => FileError::NotAFile { path: path.to_owned() },
        _ => FileError::Host { path: path.to_owned(), source },
    })?;
    let metadata = file.metadata().map_err(|source| FileError::Host { path: path.to_owned(), source })?;
    if metadata.is_file() { Ok(file) } else { Err(FileError::NotAFile { path: path.to_owned() }) }
}

/// What there is from here on, at most `bytes_max` of it.
fn read_up_to(file: &File, bytes_max: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(bytes_max as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}
