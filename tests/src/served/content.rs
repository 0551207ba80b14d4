//! What the served guest's memory holds: from 2 MiB up, what the guest's own `fill` would have written.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use memory::source::{Content, PageReader, SourceError};
use memory::{PageIndex, PageRange};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

use super::{RAM_MIB, SEED};
use crate::cache::{self, CacheError};
use crate::guest::{PAGE_BYTES, fill_page};

/// Below this is the guest itself, and what its loader writes: zero before that.
const FIRST_PAGE: PageIndex = PageIndex((2 << 20) / PAGE_BYTES);
const PAGE: usize = 4096;

/// Writes what `page` holds.
pub fn write(page: PageIndex, into: &mut [u8]) {
    if page < FIRST_PAGE {
        into.fill(0);
    } else {
        fill_page(page.offset(), SEED, into);
    }
}

/// Whether `bytes` are what the pages of `range` hold.
pub fn is_in(range: PageRange, bytes: &[u8]) -> bool {
    let mut expected = [0; PAGE];
    let mut pages = range.pages().zip(bytes.chunks(PAGE));
    bytes.len() as u64 == range.bytes()
        && pages.all(|(page, bytes)| {
            write(page, &mut expected);
            expected == bytes
        })
}

/// Reads it without a file.
#[derive(Debug, Clone, Copy)]
pub struct GuestContent;

impl PageReader for GuestContent {
    fn name(&self) -> &'static str {
        "guest"
    }

    fn read(&mut self, range: PageRange, into: &mut [u8]) -> Result<Content, SourceError> {
        if range.end() <= FIRST_PAGE {
            return Ok(Content::Zero);
        }
        range.pages().zip(into.chunks_mut(PAGE)).for_each(|(page, bytes)| write(page, bytes));
        Ok(Content::Bytes)
    }
}

/// A file of it, made once for a machine.
///
/// # Errors
///
/// [`CacheError`] where it cannot be written.
pub fn image() -> Result<PathBuf, CacheError> {
    cache::build_once(&format!("images/guest-ram-{RAM_MIB}-{SEED}"), |path| {
        write_image(path).map_err(|source| CacheError::Io { path: path.to_owned(), source })
    })
}

fn write_image(path: &Path) -> io::Result<()> {
    let file = File::create(path)?;
    write_all(&file)?;
    (&file).flush()
}

/// A memfd of it, which cannot be shrunk.
pub(super) fn memfd() -> io::Result<OwnedFd> {
    let memfd = memfd_create("guest-ram", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let file = File::from(memfd);
    write_all(&file)?;
    fcntl_add_seals(&file, SealFlags::SHRINK)?;
    Ok(file.into())
}

/// Whether `memfd` still holds what [`memfd`] has put there.
pub(super) fn is_unchanged(memfd: &File) -> bool {
    let mut bytes = [0; PAGE];
    let mut pages = all().pages();
    pages.all(|page| memfd.read_exact_at(&mut bytes, page.offset()).is_ok() && is_in(page.alone(), &bytes))
}

fn write_all(file: &File) -> io::Result<()> {
    file.set_len(RAM_MIB << 20)?;
    let mut bytes = [0; PAGE];
    for page in PageRange::between(FIRST_PAGE, all().end()).pages() {
        write(page, &mut bytes);
        file.write_all_at(&bytes, page.offset())?;
    }
    Ok(())
}

fn all() -> PageRange {
    PageRange::between(PageIndex(0), PageIndex::at_offset(RAM_MIB << 20))
}
