//! The threads that read and write.
//!
//! ```text
//!   caller's thread   next chunk ──▶ read ──▶ unprotect ──▶ channel
//!                        ▲                                     │
//!   writers              └── buffer ◀── zero? crc32c, write ◀──┘
//! ```
//!
//! Where the host gives no thread, the caller's writes, too.

use std::fs::File;
use std::num::NonZeroUsize;
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread;

use super::begin::Capture;
use super::desk::{BUFFERS_MAX, Buffer};
use super::error::CaptureError;
use super::read::Missing;
use super::session::Session;
use crate::fault::Status;
use crate::image::{self, ChunkWriter, Contents, MemoryFile, Part, Progress, WriteError, WriteOptions};
use crate::page::PageRange;
use crate::source::PageReader;
use crate::threads;

/// A chunk that was read.
struct Job {
    chunk: PageRange,
    /// The runs of it that the buffer holds, each at its place.
    data: Vec<PageRange>,
    buffer: Buffer,
}

impl Capture {
    /// Saves the memory to `file`, which loses what it had: never name a file that this guest's pages still come from.
    /// The caller's thread reads, and [`WriteOptions::threads`] others write; `None` is half as many as there are
    /// processors, and the caller's own where the host gives none. Have the file open and empty before the moment: emptying one takes long, and who writes waits. Pages that the guest does not have yet are
    /// read from `missing`, and left where they are; without it they come into the guest, as if it had touched them.
    ///
    /// Not to be called on a thread that the guest, or a discard of its memory, waits for. The file is not synced.
    ///
    /// # Errors
    ///
    /// [`CaptureError`]. The file is of no use then. Nothing is protected in any case, and nobody waits.
    pub fn save(
        self,
        file: &File,
        missing: Option<&mut dyn PageReader>,
        options: &WriteOptions<'_>,
    ) -> Result<Contents, CaptureError> {
        self.save_to(file, missing, options)
    }

    pub(super) fn save_to(
        self,
        file: &dyn MemoryFile,
        mut missing: Missing<'_>,
        options: &WriteOptions<'_>,
    ) -> Result<Contents, CaptureError> {
        let pages = self.0.ram().pages();
        let unwatched = Progress::default();
        let work = Work {
            session: &self.0,
            writer: ChunkWriter::new(file, pages, pages.count, true)?,
            progress: options.progress.unwrap_or(&unwatched),
            failure: Mutex::default(),
        };
        let mut parts =
            work.on_threads(image::threads(options.threads.or_else(spare_threads), pages), &mut missing);
        match work.failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(image::join(pages, &mut parts)),
        }
    }
}

/// How many threads write where nobody says how many: on half of the processors, as the guest runs, too.
fn spare_threads() -> Option<NonZeroUsize> {
    let all = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    NonZeroUsize::new((all / 2).max(1))
}

/// A capture that is being saved, shared by the threads that do it.
struct Work<'a> {
    session: &'a Session,
    writer: ChunkWriter<'a>,
    progress: &'a Progress,
    /// The first of them.
    failure: Mutex<Option<CaptureError>>,
}

/// Lets nobody wait for a buffer of a thread that is no more.
struct Farewell<'a>(&'a Session);

impl Drop for Farewell<'_> {
    fn drop(&mut self) {
        self.0.desk.stop();
    }
}

impl Work<'_> {
    fn on_threads(&self, writers: usize, missing: &mut Missing<'_>) -> Vec<Part> {
        let (sender, receiver) = sync_channel(BUFFERS_MAX);
        let receiver = Mutex::new(receiver);
        thread::scope(|scope| {
            let writers: Vec<_> =
                (0..writers).map_while(|_| threads::start(scope, || self.write(&receiver)).ok()).collect();
            let (mut own, is_alone) = (Vec::new(), writers.is_empty());
            let parts = &mut own;
            let hand_on =
                move |job| if is_alone { self.write_job(job, parts) } else { sender.send(job).is_ok() };
            if let Err(error) = self.read(missing, hand_on) {
                self.fail(error);
            }
            let parts = writers.into_iter().map(|writer| writer.join());
            own.extend(
                parts.flat_map(|parts| parts.unwrap_or_else(|panic| std::panic::resume_unwind(panic))),
            );
            own
        })
    }

    /// Reads chunks until there are no more, or somebody failed. `hand_on` says whether to go on.
    fn read(
        &self,
        missing: &mut Missing<'_>,
        mut hand_on: impl FnMut(Job) -> bool,
    ) -> Result<(), CaptureError> {
        let Session { desk, protection, engine, .. } = self.session;
        while let Some((chunk, mut buffer)) = desk.next() {
            self.check_cancelled()?;
            let range = desk.range(chunk);
            let data = self.session.read_chunk(chunk, missing, &mut buffer)?;
            desk.read(chunk);
            protection.unprotect(range).map_err(|source| CaptureError::Unprotect { range, source })?;
            if let Status::Failed(failure) = engine.status() {
                return Err(CaptureError::Engine(failure));
            }
            if !hand_on(Job { chunk: range, data, buffer }) {
                break;
            }
        }
        Ok(())
    }

    /// Writes what was read until nothing more is.
    fn write(&self, receiver: &Mutex<Receiver<Job>>) -> Vec<Part> {
        let _farewell = Farewell(self.session);
        let mut parts = Vec::new();
        loop {
            let job = receiver.lock().unwrap_or_else(PoisonError::into_inner).recv();
            if !job.is_ok_and(|job| self.write_job(job, &mut parts)) {
                return parts;
            }
        }
    }

    /// Writes what was read of one chunk; says whether that was done.
    fn write_job(&self, Job { chunk, data, buffer }: Job, parts: &mut Vec<Part>) -> bool {
        match self.write_chunk(chunk, &data, &buffer) {
            Ok(part) => parts.push(part),
            Err(error) => {
                self.fail(error);
                return false;
            }
        }
        self.session.desk.give_back(buffer);
        true
    }

    fn write_chunk(&self, chunk: PageRange, data: &[PageRange], buffer: &[u8]) -> Result<Part, CaptureError> {
        self.check_cancelled()?;
        let mut part = Part::of(chunk);
        for &run in data {
            let bytes = &buffer[image::length_of(PageRange::between(chunk.start, run.start))..];
            self.writer.write(run, &bytes[..image::length_of(run)], &mut part)?;
        }
        self.writer.finish(chunk.count);
        self.progress.add(chunk.count);
        Ok(part)
    }

    fn check_cancelled(&self) -> Result<(), CaptureError> {
        if self.progress.is_cancelled() { Err(WriteError::Cancelled.into()) } else { Ok(()) }
    }

    fn fail(&self, error: CaptureError) {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        self.session.desk.stop();
    }
}
