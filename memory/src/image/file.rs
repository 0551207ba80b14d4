//! What is asked of a memory file.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::page::PageRange;

/// A file that a memory is written to. Tests have one that fails when it is told to.
pub(super) trait MemoryFile: Sync {
    /// Makes it `bytes` long, all of it a hole.
    fn reset(&self, bytes: u64) -> io::Result<()>;

    /// Writes some of `bytes` at `offset`, and says how many.
    fn write_some(&self, bytes: &[u8], offset: u64) -> io::Result<usize>;
}

impl MemoryFile for File {
    fn reset(&self, bytes: u64) -> io::Result<()> {
        self.set_len(0)?;
        self.set_len(bytes)
    }

    fn write_some(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        self.write_at(bytes, offset)
    }
}

/// Writes all of `bytes` at `offset`. An error comes with the offset that was not written.
pub(super) fn write_all(
    file: &(impl MemoryFile + ?Sized),
    bytes: &[u8],
    offset: u64,
) -> Result<(), (u64, io::Error)> {
    let mut done = 0;
    while done < bytes.len() {
        let at = offset + done as u64;
        match file.write_some(&bytes[done..], at) {
            Ok(0) => return Err((at, io::ErrorKind::WriteZero.into())),
            Ok(more) => done += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err((at, error)),
        }
    }
    Ok(())
}

/// How long `range` is in memory.
pub(super) fn length_of(range: PageRange) -> usize {
    usize::try_from(range.bytes()).expect("what is read at once fits the addresses of this process")
}
