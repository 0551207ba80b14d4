//! The threads that read and write.
//!
//! ```text
//!   caller's thread   a chunk that somebody waits for ──▶ read ──▶ unprotect ──▶ channel
//!                        ▲                                                          │
//!   writers              └── buffer ◀──────────────── zero? crc32c, write ◀─────────┘ first of all
//!                     else the next chunk, 256 KiB at a time: read ──▶ zero? crc32c, write, and then unprotect
//! ```
//!
//! So what nobody waits for is read into a processor's cache and written from there, and whoever waits does so for the
//! reading of 2 MiB and never for a file. A chunk that is wanted while it is being written is read by the caller's thread
//! all the same: what a writer has of it by then is written once more.
//!
//! Where the host gives no thread, the caller's does both by turns.

use std::fs::File;
use std::num::NonZeroUsize;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread;

use super::begin::Capture;
use super::desk::{BUFFERS_MAX, Buffer, State};
use super::error::CaptureError;
use super::read::Missing;
use super::session::Session;
use crate::fault::Status;
use crate::image::{
    self, BATCH_PAGES, ChunkWriter, Contents, MemoryFile, Part, Progress, WriteError, WriteOptions,
    batch_buffer,
};
use crate::page::PageRange;
use crate::source::PageReader;
use crate::threads;

/// A chunk that somebody waited for, and that was read.
struct Job {
    chunk: PageRange,
    /// The runs of it that the buffer holds, each at its place.
    data: Vec<PageRange>,
    buffer: Buffer,
}

impl Capture {
    /// Saves the memory to `file`, which loses what it had: never name a file that this guest's pages still come from.
    /// The caller's thread reads what somebody waits for, and [`WriteOptions::threads`] others all else; `None` is half as
    /// many as there are processors, and the caller's own where the host gives none. Have the file open and empty before
    /// the moment: emptying one takes long, and who writes waits. Pages that the guest does not have yet are read from
    /// `missing`, and left where they are; without it they come into the guest, as if it had touched them.
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
        missing: Option<&mut dyn PageReader>,
        options: &WriteOptions<'_>,
    ) -> Result<Contents, CaptureError> {
        let pages = self.0.ram().pages();
        let unwatched = Progress::default();
        let missing: Missing<'_> = missing.map(Mutex::new);
        let work = Work {
            session: &self.0,
            missing: &missing,
            writer: ChunkWriter::new(file, pages, pages.count, true)?,
            progress: options.progress.unwrap_or(&unwatched),
            failure: Mutex::default(),
        };
        let mut parts = work.on_threads(image::threads(options.threads.or_else(spare_threads), pages));
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
struct Work<'a, 'm> {
    session: &'a Session,
    missing: &'a Missing<'m>,
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

/// What one writer has written, and what it reads into.
struct Written {
    parts: Vec<Part>,
    batch: Vec<u8>,
    /// What it has read itself because somebody waited for it.
    jobs: Vec<Job>,
}

impl Written {
    fn new() -> Self {
        Self { parts: Vec::new(), batch: batch_buffer(), jobs: Vec::new() }
    }
}

impl Work<'_, '_> {
    fn on_threads(&self, writers: usize) -> Vec<Part> {
        let (sender, receiver) = sync_channel(BUFFERS_MAX);
        let receiver = Mutex::new(receiver);
        thread::scope(|scope| {
            let writers: Vec<_> =
                (0..writers).map_while(|_| threads::start(scope, || self.write(&receiver)).ok()).collect();
            let mut own = Written::new();
            let done = if writers.is_empty() { self.do_all(&mut own) } else { self.read(&sender) };
            done.unwrap_or_else(|error| self.fail(error));
            drop(sender);
            let mut parts = own.parts;
            for writer in writers {
                parts.extend(writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            }
            parts
        })
    }

    /// Reads what somebody waits for until all is read, or somebody failed.
    fn read(&self, sender: &SyncSender<Job>) -> Result<(), CaptureError> {
        while let Some((chunk, buffer)) = self.session.desk.wait_for_wanted() {
            let is_taken = self.read_wanted(chunk, buffer)?.is_none_or(|job| sender.send(job).is_ok());
            if !is_taken {
                break;
            }
        }
        Ok(())
    }

    /// Writes until all is written, or somebody failed: first what was read because somebody waited for it.
    fn write(&self, receiver: &Mutex<Receiver<Job>>) -> Vec<Part> {
        let _farewell = Farewell(self.session);
        // It takes a little longer, then.
        let _ = threads::be_background();
        let mut written = Written::new();
        let done = loop {
            let job = receiver.lock().unwrap_or_else(PoisonError::into_inner).try_recv();
            let done = match job {
                Ok(job) => self.write_job(job, &mut written),
                Err(TryRecvError::Disconnected) => break Ok(()),
                Err(TryRecvError::Empty) => match self.session.desk.cold() {
                    Some(chunk) => self.write_cold(chunk, &mut written),
                    // What others have yet may be wanted.
                    None => match receiver.lock().unwrap_or_else(PoisonError::into_inner).recv() {
                        Ok(job) => self.write_job(job, &mut written),
                        Err(_) => break Ok(()),
                    },
                },
            };
            let done = done.and_then(|()| self.write_jobs(&mut written));
            if done.is_err() {
                break done;
            }
        };
        done.unwrap_or_else(|error| self.fail(error));
        written.parts
    }

    /// Reads and writes on this thread alone.
    fn do_all(&self, written: &mut Written) -> Result<(), CaptureError> {
        while let Some(chunk) = self.session.desk.cold() {
            self.write_cold(chunk, written)?;
            self.write_jobs(written)?;
        }
        Ok(())
    }

    /// Reads a chunk that somebody waits for, and lets it go. Nothing, where somebody else has.
    fn read_wanted(&self, chunk: usize, mut buffer: Buffer) -> Result<Option<Job>, CaptureError> {
        self.check_cancelled()?;
        let desk = &self.session.desk;
        let range = desk.range(chunk);
        let read = self.session.read(chunk, range, self.missing, &mut buffer);
        if desk.state(chunk) == State::Read {
            desk.give_back(buffer);
            return Ok(None);
        }
        let data = read?;
        if !self.let_go(chunk)? {
            desk.give_back(buffer);
            return Ok(None);
        }
        Ok(Some(Job { chunk: range, data, buffer }))
    }

    /// Reads what somebody waits for just now: who reads nothing else may not have been let in yet.
    fn look_up(&self, written: &mut Written) -> Result<(), CaptureError> {
        self.check_cancelled()?;
        while let Some((chunk, buffer)) = self.session.desk.wanted() {
            written.jobs.extend(self.read_wanted(chunk, buffer)?);
        }
        Ok(())
    }

    /// Reads a chunk that nobody waits for, and writes it piece by piece. Whoever has waited for it meanwhile was let go
    /// by another reading, and this one is left.
    fn write_cold(&self, chunk: usize, written: &mut Written) -> Result<(), CaptureError> {
        let desk = &self.session.desk;
        let range = desk.range(chunk);
        let (mut part, mut rest) = (Part::of(range), range);
        while !rest.is_empty() {
            self.look_up(written)?;
            let (batch, later) = rest.split_at(BATCH_PAGES);
            let bytes = &mut written.batch[..image::length_of(batch)];
            let read = self.session.read(chunk, batch, self.missing, bytes);
            // Once it was let go it may have been written before we had read it.
            if desk.state(chunk) == State::Read {
                return Ok(());
            }
            for run in read? {
                self.write_run(batch, run, bytes, &mut part)?;
            }
            rest = later;
        }
        if self.let_go(chunk)? {
            self.finish(part, range, written);
        }
        Ok(())
    }

    /// Writes what this thread has read because somebody waited.
    fn write_jobs(&self, written: &mut Written) -> Result<(), CaptureError> {
        while let Some(job) = written.jobs.pop() {
            self.write_job(job, written)?;
        }
        Ok(())
    }

    /// Writes what was read of one chunk.
    fn write_job(&self, job: Job, written: &mut Written) -> Result<(), CaptureError> {
        let Job { chunk, data, buffer } = job;
        let mut part = Part::of(chunk);
        for run in data {
            let mut rest = run;
            while !rest.is_empty() {
                self.look_up(written)?;
                let (batch, later) = rest.split_at(BATCH_PAGES);
                self.write_run(chunk, batch, &buffer, &mut part)?;
                rest = later;
            }
        }
        self.finish(part, chunk, written);
        self.session.desk.give_back(buffer);
        Ok(())
    }

    /// Writes `run`, which is of `range`, from `bytes`, which has each page of that at its place.
    fn write_run(
        &self,
        range: PageRange,
        run: PageRange,
        bytes: &[u8],
        part: &mut Part,
    ) -> Result<(), CaptureError> {
        let bytes = &bytes[image::length_of(PageRange::between(range.start, run.start))..];
        Ok(self.writer.write(run, &bytes[..image::length_of(run)], part)?)
    }

    fn finish(&self, part: Part, chunk: PageRange, written: &mut Written) {
        written.parts.push(part);
        self.writer.finish(chunk.count);
        self.progress.add(chunk.count);
    }

    /// A chunk was read: it may be written from now on. Says whether this reading counts, and not another thread's.
    fn let_go(&self, chunk: usize) -> Result<bool, CaptureError> {
        let Session { desk, protection, engine, .. } = self.session;
        let range = desk.range(chunk);
        if !desk.read(chunk) {
            return Ok(false);
        }
        protection.unprotect(range).map_err(|source| CaptureError::Unprotect { range, source })?;
        match engine.status() {
            Status::Failed(failure) => Err(CaptureError::Engine(failure)),
            _ => Ok(true),
        }
    }

    fn check_cancelled(&self) -> Result<(), CaptureError> {
        if self.progress.is_cancelled() { Err(WriteError::Cancelled.into()) } else { Ok(()) }
    }

    fn fail(&self, error: CaptureError) {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        self.session.desk.stop();
    }
}
