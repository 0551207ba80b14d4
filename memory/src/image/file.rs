//! What is asked of a memory file.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use rustix::io::Errno;

use crate::page::{PageIndex, PageRange};

/// How many pages are read at once: what stays in a processor's cache between reading, checking and writing.
pub(crate) const BATCH_PAGES: u64 = 64;

/// A file that a memory is written to. Tests have one that fails when it is told to.
pub(crate) trait MemoryFile: Sync {
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

/// Reads all of `range` into `bytes`, which is as long.
pub(crate) fn read_all(file: impl AsFd, range: PageRange, bytes: &mut [u8]) -> io::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        match rustix::io::pread(&file, &mut bytes[done..], range.start.offset() + done as u64) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(more) => done += more,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Memory for one batch.
pub(crate) fn batch_buffer() -> Vec<u8> {
    vec![0; length_of(PageRange { start: PageIndex(0), count: BATCH_PAGES })]
}

/// The pages of a batch, and their content each.
pub(super) fn each_page(range: PageRange, bytes: &[u8]) -> impl Iterator<Item = (PageIndex, &[u8])> {
    range.pages().zip(bytes.chunks(length_of(PageIndex(0).alone())))
}

/// Whether all of `bytes` is zero. It looks at a block at a time, which the compiler makes a few wide instructions of.
pub(super) fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(256).all(|block| block.iter().fold(0, |all, byte| all | byte) == 0)
}

/// How long `range` is in memory.
pub(crate) fn length_of(range: PageRange) -> usize {
    usize::try_from(range.bytes()).expect("what is read at once fits the addresses of this process")
}
