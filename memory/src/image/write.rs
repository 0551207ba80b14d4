//! Guest RAM to a file.
//!
//! ```text
//!   chunk of 2 MiB ── find ──▶ pages to look at ── in batches of 256 KiB ──▶ buffer ──▶ file
//!                                                        read                zero? crc32c
//!   each thread takes the next chunk; what each wrote is joined to one Contents in the end
//! ```
//!
//! Most of the time is the file system's: tmpfs lets one thread at a time write to a file, and finds it a page at a
//! time. While one writes another reads, and more than two help little there.

use std::fs::File;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use super::chunk::{ChunkWriter, Part, join};
use super::contents::Contents;
use super::error::WriteError;
use super::file::{BATCH_PAGES, MemoryFile, batch_buffer, length_of};
use super::progress::Progress;
use super::selection::{Found, Selected, Selection, Through};
use crate::page::{BASE_PAGES_PER_HUGE, PageIndex, PageRange};
use crate::ram::GuestRam;
use crate::threads;

/// How many threads write at most.
pub const THREADS_MAX: usize = 8;

/// How a memory is written.
#[derive(Debug, Clone, Copy, Default)]
pub struct WriteOptions<'a> {
    /// On how many threads, the caller's one of them, but for a [capture](crate::capture), which says so; `None` for as many as there are processors. At most
    /// [`THREADS_MAX`], and fewer where the host gives no more.
    pub threads: Option<NonZeroUsize>,
    /// Where to tell how far it is.
    pub progress: Option<&'a Progress>,
}

/// Writes the memory `ram`, or what is selected of it, to `file`, which loses what it had: never name a file that this
/// guest's pages still come from. The guest stands still meanwhile.
///
/// The file is not synced; it is in the page cache when this returns.
///
/// # Errors
///
/// [`WriteError`]. The file is of no use then.
pub fn write(
    ram: &GuestRam,
    selection: Selection<'_>,
    file: &File,
    options: &WriteOptions<'_>,
) -> Result<Contents, WriteError> {
    write_to(ram, selection, file, options)
}

pub(super) fn write_to(
    ram: &GuestRam,
    selection: Selection<'_>,
    file: &dyn MemoryFile,
    options: &WriteOptions<'_>,
) -> Result<Contents, WriteError> {
    let selected = Selected::new(ram, selection)?;
    let pages = ram.pages();
    let writer = ChunkWriter::new(file, pages, selected.count_in(pages), selected.skips_zero())?;
    let unwatched = Progress::default();
    let work = Work {
        pages,
        selected,
        writer,
        next: AtomicU64::new(0),
        is_stopped: AtomicBool::new(false),
        progress: options.progress.unwrap_or(&unwatched),
    };
    let mut parts = work.on_threads(threads(options.threads, pages))?;
    if work.progress.is_cancelled() {
        return Err(WriteError::Cancelled);
    }
    Ok(join(pages, &mut parts))
}

/// How many threads are worth starting.
pub(crate) fn threads(wanted: Option<NonZeroUsize>, pages: PageRange) -> usize {
    let wanted = wanted.or_else(|| thread::available_parallelism().ok()).map_or(1, NonZeroUsize::get);
    let chunks = usize::try_from(pages.count.div_ceil(BASE_PAGES_PER_HUGE)).unwrap_or(usize::MAX);
    wanted.min(THREADS_MAX).min(chunks).max(1)
}

/// A memory that is being written, shared by the threads that do it.
struct Work<'a> {
    pages: PageRange,
    selected: Selected<'a>,
    writer: ChunkWriter<'a>,
    /// The next chunk to be taken.
    next: AtomicU64,
    /// One of the threads failed.
    is_stopped: AtomicBool,
    progress: &'a Progress,
}

impl Work<'_> {
    fn on_threads(&self, threads: usize) -> Result<Vec<Part>, WriteError> {
        thread::scope(|scope| {
            // With fewer than were wanted it takes longer, and that is all.
            let others: Vec<_> =
                (1..threads).map_while(|_| threads::start(scope, || self.run()).ok()).collect();
            let mut all = self.run();
            for other in others {
                let parts = other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                if let Ok(all) = &mut all {
                    match parts {
                        Ok(parts) => all.extend(parts),
                        Err(error) => return Err(error),
                    }
                }
            }
            all
        })
    }

    /// Writes chunks until there are no more.
    fn run(&self) -> Result<Vec<Part>, WriteError> {
        let mut buffer = batch_buffer();
        let mut parts = Vec::new();
        while let Some(chunk) = self.take() {
            let written = self.write_chunk(chunk, &mut buffer);
            if written.is_err() {
                self.is_stopped.store(true, Ordering::Relaxed);
            }
            parts.push(written?);
            self.writer.finish(self.selected.count_in(chunk));
            self.progress.add(chunk.count);
        }
        Ok(parts)
    }

    fn take(&self) -> Option<PageRange> {
        if self.is_stopped.load(Ordering::Relaxed) || self.progress.is_cancelled() {
            return None;
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let start = PageIndex(number.saturating_mul(BASE_PAGES_PER_HUGE));
        let chunk = PageRange { start, count: BASE_PAGES_PER_HUGE }.intersection(self.pages);
        (!chunk.is_empty()).then_some(chunk)
    }

    fn write_chunk(&self, chunk: PageRange, buffer: &mut [u8]) -> Result<Part, WriteError> {
        let mut part = Part::of(chunk);
        for batch in batches(&self.selected.find(chunk)?) {
            let bytes = &mut buffer[..batch.ranges.iter().map(|range| length_of(*range)).sum()];
            self.selected.read(&batch.ranges, batch.through, bytes)?;
            let mut rest = &*bytes;
            for range in batch.ranges {
                let (now, later) = rest.split_at(length_of(range));
                self.writer.write(range, now, &mut part)?;
                rest = later;
            }
        }
        Ok(part)
    }
}

/// Pages that are read at once, in one way.
struct Batch {
    through: Through,
    ranges: Vec<PageRange>,
    count: u64,
}

/// Cuts `found` into batches.
fn batches(found: &[Found]) -> Vec<Batch> {
    let mut batches: Vec<Batch> = Vec::new();
    for &Found { range, through } in found {
        let mut rest = range;
        while !rest.is_empty() {
            let fits = |batch: &&mut Batch| batch.through == through && batch.count < BATCH_PAGES;
            let Some(batch) = batches.last_mut().filter(fits) else {
                batches.push(Batch { through, ranges: Vec::new(), count: 0 });
                continue;
            };
            let (now, later) = rest.split_at(BATCH_PAGES - batch.count);
            batch.ranges.push(now);
            batch.count += now.count;
            rest = later;
        }
    }
    batches
}
