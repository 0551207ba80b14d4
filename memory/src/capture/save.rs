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
//! reading of 2 MiB, and for the file only once all buffers are full of what others waited for. A chunk that is wanted
//! while it is being written is read by the caller's thread all the same: what a writer has of it by then is written once
//! more. Between its pieces a writer looks whether somebody waits: the caller's thread may not have been let in yet.
//!
//! Where the host gives no thread, the caller's does both by turns.

use std::fs::File;
use std::num::NonZeroUsize;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
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
use crate::page::{BASE_PAGES_PER_HUGE, PageRange};
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
            cold_turn: Mutex::default(),
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
    /// Held by whoever reads what nobody waits for from `missing`: of those one at most is in the way of who does wait.
    cold_turn: Mutex<()>,
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

    /// What `range` is read into.
    fn batch(&mut self, range: PageRange) -> &mut [u8] {
        let length = image::length_of(range);
        if self.batch.len() < length {
            self.batch.resize(length, 0);
        }
        &mut self.batch[..length]
    }
}

impl Work<'_, '_> {
    fn on_threads(&self, writers: usize) -> Vec<Part> {
        let (sender, receiver) = sync_channel(BUFFERS_MAX);
        let receiver = Mutex::new(receiver);
        thread::scope(|scope| {
            let writers: Vec<_> =
                (0..writers).map_while(|_| threads::start(scope, || self.write(&receiver)).ok()).collect();
            let mut parts = Vec::new();
            let done = if writers.is_empty() { self.do_all(&mut parts) } else { self.read(&sender) };
            done.unwrap_or_else(|error| self.fail(error));
            drop(sender);
            for writer in writers {
                parts.extend(writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            }
            parts
        })
    }

    /// Reads what somebody waits for until all is read, or somebody failed.
    fn read(&self, sender: &SyncSender<Job>) -> Result<(), CaptureError> {
        while let Some((chunk, buffer)) = self.session.desk.wait_for_wanted() {
            if let Some(job) = self.read_wanted(chunk, buffer)? {
                // The receiver is there until this has ended.
                let _ = sender.send(job);
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
        loop {
            let done = self.write_next(receiver, &mut written);
            let done = done.and_then(|goes_on| self.write_jobs(&mut written).map(|()| goes_on));
            match done {
                Ok(true) => {}
                Ok(false) => return written.parts,
                Err(error) => {
                    self.fail(error);
                    return written.parts;
                }
            }
        }
    }

    /// Says whether there was something to do.
    fn write_next(
        &self,
        receiver: &Mutex<Receiver<Job>>,
        written: &mut Written,
    ) -> Result<bool, CaptureError> {
        let take = |take: fn(&Receiver<Job>) -> Option<Job>| {
            take(&receiver.lock().unwrap_or_else(PoisonError::into_inner))
        };
        if let Some(job) = take(|receiver| receiver.try_recv().ok()) {
            self.write_job(job, written)?;
        } else if let Some(chunk) = self.session.desk.cold() {
            self.write_cold(chunk, written)?;
        } else if let Some(job) = take(|receiver| receiver.recv().ok()) {
            // What others have yet was wanted.
            self.write_job(job, written)?;
        } else {
            return Ok(false);
        }
        Ok(true)
    }

    /// Reads and writes on this thread alone.
    fn do_all(&self, parts: &mut Vec<Part>) -> Result<(), CaptureError> {
        let mut written = Written::new();
        while let Some(chunk) = self.session.desk.cold() {
            self.write_cold(chunk, &mut written)?;
            self.write_jobs(&mut written)?;
        }
        parts.append(&mut written.parts);
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

    /// Reads a chunk in its order, and writes it piece by piece. Whoever has waited for it meanwhile was let go by another
    /// reading, and this one is left.
    fn write_cold(&self, chunk: usize, written: &mut Written) -> Result<(), CaptureError> {
        let desk = &self.session.desk;
        let range = desk.range(chunk);
        let pages_at_once = if self.is_with_source(chunk) { BASE_PAGES_PER_HUGE } else { BATCH_PAGES };
        let (mut part, mut rest) = (Part::of(range), range);
        while !rest.is_empty() {
            self.look_up(written)?;
            let (batch, later) = rest.split_at(pages_at_once);
            // Once it was let go it may have been written before we had read it, or be thrown away.
            if desk.state(chunk) == State::Read {
                return Ok(());
            }
            let bytes = written.batch(batch);
            let read = self.read_cold(chunk, batch, bytes);
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

    /// Whether pages of `chunk` may be read from their source, of which each reading may take long.
    fn is_with_source(&self, chunk: usize) -> bool {
        self.missing.is_some() && !self.session.plans[chunk].missing.is_empty()
    }

    fn read_cold(
        &self,
        chunk: usize,
        batch: PageRange,
        bytes: &mut [u8],
    ) -> Result<Vec<PageRange>, CaptureError> {
        let turn = || self.cold_turn.lock().unwrap_or_else(PoisonError::into_inner);
        let _turn = self.is_with_source(chunk).then(turn);
        self.session.read(chunk, batch, self.missing, bytes)
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
