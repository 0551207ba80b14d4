//! Chunks of memory to a file: what is done with the bytes of one, wherever they were read.

use std::sync::atomic::{AtomicU64, Ordering};

use super::contents::Contents;
use super::error::WriteError;
use super::file::{BATCH_PAGES, MemoryFile, each_page, is_zero, length_of, write_all};
use crate::page::{PageIndex, PageRange};

/// What was written of a chunk.
#[derive(Debug)]
pub(crate) struct Part {
    chunk: PageRange,
    data: Vec<PageRange>,
    sums: Vec<u32>,
}

impl Part {
    /// Of `chunk`, nothing yet.
    pub(crate) fn of(chunk: PageRange) -> Self {
        Self { chunk, data: Vec::new(), sums: Vec::new() }
    }
}

/// Joins what was written of the memory `pages`, by whom and in whatever order.
pub(crate) fn join(pages: PageRange, parts: &mut [Part]) -> Contents {
    parts.sort_unstable_by_key(|part| part.chunk.start);
    let mut contents = Contents::empty(pages);
    let mut end = PageIndex(0);
    for part in parts {
        let mut sums = part.sums.as_slice();
        for &range in &part.data {
            let (now, later) = sums.split_at(usize::try_from(range.count).expect("one for each page"));
            contents.push(&mut end, range, now);
            sums = later;
        }
    }
    contents
}

/// Writes to a memory file. All threads that do share one.
pub(crate) struct ChunkWriter<'a> {
    file: &'a dyn MemoryFile,
    skips_zero: bool,
    /// How many pages may still be written.
    left: AtomicU64,
}

impl<'a> ChunkWriter<'a> {
    /// Makes `file` one hole of the length of `pages`, of which at most `count` will be written.
    pub(crate) fn new(
        file: &'a dyn MemoryFile,
        pages: PageRange,
        count: u64,
        skips_zero: bool,
    ) -> Result<Self, WriteError> {
        let bytes = pages.bytes();
        file.reset(bytes).map_err(|source| WriteError::Size { bytes, source })?;
        Ok(Self { file, skips_zero, left: AtomicU64::new(count) })
    }

    /// So many pages need no more room.
    pub(crate) fn finish(&self, count: u64) {
        self.left.fetch_sub(count, Ordering::Relaxed);
    }

    /// Writes what is data of `range`, whose content is `bytes`, in pieces that stay in a processor's cache.
    pub(crate) fn write(&self, range: PageRange, bytes: &[u8], part: &mut Part) -> Result<(), WriteError> {
        let (mut rest, mut bytes) = (range, bytes);
        while !rest.is_empty() {
            let (now, later) = rest.split_at(BATCH_PAGES);
            let (these, others) = bytes.split_at(length_of(now));
            self.write_batch(now, these, part)?;
            (rest, bytes) = (later, others);
        }
        Ok(())
    }

    fn write_batch(&self, range: PageRange, bytes: &[u8], part: &mut Part) -> Result<(), WriteError> {
        for data in data_of(range, bytes, |page| !self.skips_zero || !is_zero(page)) {
            let skipped = length_of(PageRange::between(range.start, data.start));
            let bytes = &bytes[skipped..][..length_of(data)];
            part.sums.extend(each_page(data, bytes).map(|(_, page)| crc32c::crc32c(page)));
            part.data.push(data);
            write_all(self.file, bytes, data.start.offset()).map_err(|(offset, source)| {
                let needed = PageRange { start: data.start, count: self.left.load(Ordering::Relaxed) };
                WriteError::of_write(offset, needed.bytes(), source)
            })?;
        }
        Ok(())
    }
}

/// The runs of `range` whose pages are data, by what `is_data` says of the bytes of each.
fn data_of(range: PageRange, bytes: &[u8], is_data: impl Fn(&[u8]) -> bool) -> Vec<PageRange> {
    let mut runs: Vec<PageRange> = Vec::new();
    for (page, bytes) in each_page(range, bytes) {
        match runs.last_mut() {
            _ if !is_data(bytes) => {}
            Some(last) if last.end() == page => last.count += 1,
            _ => runs.push(page.alone()),
        }
    }
    runs
}
