//! Where logs, metrics and serial output go: a file, or a named pipe that somebody may or may not read.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

/// Opens `path` for appending, and creates a file where there is none.
///
/// A named pipe is opened without waiting for its reader, and written without waiting for it either: a reader that
/// is slow or gone loses lines, and the VM runs on.
pub(crate) fn open(path: impl AsRef<Path>) -> io::Result<File> {
    let path = path.as_ref();
    let is_pipe = path.metadata().is_ok_and(|metadata| metadata.file_type().is_fifo());
    OpenOptions::new()
        // Reading too keeps a pipe open whose reader comes and goes; otherwise opening one without a reader fails.
        .read(is_pipe)
        .append(true)
        .create(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
}
