//! An engine: its threads, and what is asked of them from outside.

pub(super) mod ask;
mod spawn;

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::around::AroundPolicy;
use super::fill::{FillOptions, FillerEnd, FillerThread};
use super::locality::Locality;
use super::order::{Order, Orders, orders};
use super::protection::Protection;
use super::record::{RecordLimits, Recorder};
use super::scheduler::Limits;
use super::serve::Ended;
use super::served::{ServedMemory, StartError};
use super::shared::{Shared, Status};
use super::statistics::Report;
use super::write::WriteObserver;
use crate::map::PageMap;
use crate::page::PageRange;
use crate::ram::GuestRam;
use crate::source::{PageReader, PageSource};
use crate::uffd::{Feature, Stop};
use ask::Unanswered;
use spawn::Parts;

/// How often it is looked whether a thread has stopped.
const STOP_POLL: Duration = Duration::from_micros(200);

/// How an engine works.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// Bounds on what is asked of the source.
    pub limits: Limits,
    /// What is fetched around a page that is wanted.
    pub around: AroundPolicy,
    /// What is filled without being wanted. Without a reader there is nothing to fill from.
    pub fill: FillOptions,
    /// Where the thread that serves faults runs.
    pub locality: Locality,
    /// Whether memory can be protected against writes.
    pub write_protect: bool,
    /// Whether the kernel notes who writes: see [`ServedMemory::tracked`]. It excludes `write_protect`, which is not
    /// looked at then.
    pub track_writes: bool,
    /// How much is recorded of what is wanted; nothing where there is none.
    pub record: Option<RecordLimits>,
}

/// What is left of an engine that was stopped.
pub struct Stopped {
    /// The memory, for the next one.
    pub memory: ServedMemory,
    /// The source; none where the thread that had it has panicked.
    pub source: Option<Box<dyn PageSource>>,
    /// Who was asked before writes, if memory was protected. It still is: with the next engine every write is allowed,
    /// and told to nobody, until memory is protected again.
    pub observer: Option<Box<dyn WriteObserver>>,
    /// The filler's reader, if there was one that came back.
    pub reader: Option<Box<dyn PageReader>>,
    /// Whether the filler was left behind, as its reader did not come back within 2 s. It has claimed no page and places
    /// none any more, so the memory can be served, or released, as ever; but its thread, its reader and a mapping of the
    /// memory stay until the read ends.
    pub filler_hangs: bool,
}

/// Serves the faults of guest memory.
pub struct FaultEngine {
    memory: Option<ServedMemory>,
    pub(super) shared: Arc<Shared>,
    orders: Orders,
    server: Option<JoinHandle<Ended>>,
    filler: Option<FillerThread>,
    recorder: Option<Arc<Recorder>>,
}

impl FaultEngine {
    /// Serves `ram` from `source`, on demand; and, if there is a reader of the same content, fills whole chunks and what
    /// [`Options::fill`] says from there.
    ///
    /// # Errors
    ///
    /// [`StartError`].
    pub fn start(
        ram: GuestRam,
        source: Box<dyn PageSource>,
        reader: Option<Box<dyn PageReader>>,
        options: &Options,
    ) -> Result<Self, StartError> {
        let memory = match options.track_writes {
            true => ServedMemory::tracked(ram)?,
            false => ServedMemory::new(ram, options.write_protect)?,
        };
        Self::resume(memory, source, reader, options)
    }

    /// Serves memory that had an engine before. Whoever waits is served, whatever became of that one.
    ///
    /// # Errors
    ///
    /// [`StartError`]. The memory is dropped then, and its userfaultfd stays open: see [`ServedMemory`].
    pub fn resume(
        memory: ServedMemory,
        source: Box<dyn PageSource>,
        reader: Option<Box<dyn PageReader>>,
        options: &Options,
    ) -> Result<Self, StartError> {
        let shares_cache = memory.modes.minor;
        let (registered, map) = (Arc::clone(&memory.registered), Arc::clone(&memory.map));
        let all = registered.ram().pages();
        memory.take_claims_back()?;
        let shared =
            Arc::new(Shared::new(registered, map, Arc::clone(&memory.gate), source.name(), shares_cache)?);
        if memory.tracks_writes() {
            shared.installer.track_writes();
        }
        let (orders, inbox) = orders()?;
        let filler = match reader {
            Some(reader) => Some(spawn::filler(&shared, reader, options.fill, &memory)?),
            None => None,
        };
        let queue = filler.as_ref().map(|filler| Arc::clone(&filler.queue));
        let poisons = memory.features.has(Feature::POISON);
        let recorder = options.record.map(|limits| Arc::new(Recorder::new(limits)));
        let parts = Parts { inbox, queue: queue.clone(), recorder: recorder.clone(), poisons };
        let server = spawn::server(Arc::clone(&shared), source, parts, options);
        let server = server.inspect_err(|_| queue.iter().for_each(|queue| queue.stop()))?;
        // Those whose faults the engine before had read do not fault again by themselves.
        shared.installer.wake(all);
        Ok(Self { memory: Some(memory), shared, orders, server: Some(server), filler, recorder })
    }

    /// Somebody may want `range` soon.
    pub fn prefetch(&self, range: PageRange) {
        let range = range.intersection(self.ram().pages());
        match &self.filler {
            Some(filler) => filler.queue.ahead(range),
            None => drop(self.orders.send(Order::Prefetch(range))),
        }
    }

    /// Begins to fill what is missing, where [`FillOptions::everything`] is wanted and was to wait for this.
    pub fn fill(&self) {
        if let Some(filler) = &self.filler {
            filler.queue.begin_rest();
        }
    }

    /// Whether whole chunks of 2 MiB are filled as huge pages, which takes less than page by page: the kernel can, and so
    /// can the memory, and there is somebody to fill them.
    #[must_use]
    pub fn moves_chunks(&self) -> bool {
        self.filler.as_ref().is_some_and(|filler| filler.queue.moves())
    }

    /// Whether no page is with the source any more. Some may be on their way.
    #[must_use]
    pub fn is_filled(&self) -> bool {
        let all = self.ram().pages();
        self.map().next_missing(all.start, all.end()).is_none()
    }

    /// Which pages were wanted so far, in the order in which they first were, each with what was fetched around it; some
    /// are in several ranges. The record ends with this. It is empty without [`Options::record`].
    #[must_use]
    pub fn take_record(&self) -> Vec<PageRange> {
        self.recorder.as_ref().map(|recorder| recorder.take()).unwrap_or_default()
    }

    /// Protects all memory against writes; `observer` is asked before one lands. When this returns, no write has landed
    /// that it was not asked about.
    ///
    /// # Errors
    ///
    /// The kernel's refusal; then nothing is protected. [`Stop::NotRegistered`] where [`Options::write_protect`] was not
    /// asked for, or nobody serves faults, or the source has not come back for 5 s. [`Stop::Unsupported`] where the kernel [notes who writes](Self::tracks_writes),
    /// and so asks nobody.
    pub fn protect(&self, observer: Box<dyn WriteObserver>) -> Result<(), Stop> {
        if self.tracks_writes() {
            return Err(Stop::Unsupported);
        }
        let modes = self.memory.as_ref().map(|memory| memory.modes);
        if !modes.is_some_and(|modes| modes.write_protect) {
            return Err(Stop::NotRegistered);
        }
        self.ask(|answer| Order::Protect(observer, answer)).unwrap_or_else(|unanswered| {
            if matches!(unanswered, Unanswered::Hangs) {
                self.tell(Order::Unprotect);
            }
            Err(Stop::NotRegistered)
        })
    }

    /// Ends it, and lets go on whoever waits to write; gives the observer back, if there was one. Where the source has
    /// not come back for 5 s it gives none, and that is done as soon as it does.
    pub fn unprotect(&self) -> Option<Box<dyn WriteObserver>> {
        if self.tracks_writes() {
            return None;
        }
        self.ask(Order::Unprotect).ok().flatten()
    }

    /// What protects pages, on any thread.
    pub(crate) fn protection(&self) -> Protection {
        Protection::new(Arc::clone(&self.shared))
    }

    /// Lets pages be written that an observer has had wait.
    pub fn allow_writes(&self, range: PageRange) {
        if self.tracks_writes() {
            return;
        }
        self.orders.send(Order::Allow(range));
    }

    /// Whether the kernel notes who writes, for a [`crate::dirty::Tracker`] over registered memory.
    #[must_use]
    pub fn tracks_writes(&self) -> bool {
        self.memory.as_ref().is_some_and(ServedMemory::tracks_writes)
    }

    /// What the engine has done so far.
    #[must_use]
    pub fn report(&self) -> Report {
        self.shared.statistics.snapshot()
    }

    /// How the engine is.
    #[must_use]
    pub fn status(&self) -> Status {
        self.shared.status()
    }

    /// Says that the engine has failed where its source has not come back for `limit` from being asked for pages, or for answers, as
    /// from a disk that hangs. The thread that serves cannot say so itself then; whoever watches over it asks now and
    /// again.
    pub fn check(&self, limit: Duration) {
        if let Some(since) = self.shared.reading.longer_than(limit) {
            self.shared
                .fail_all(&format!("the source hangs: it has not come back for {} s", since.as_secs()));
        }
    }

    /// What becomes readable when the engine has failed.
    #[must_use]
    pub fn failure_fd(&self) -> BorrowedFd<'_> {
        self.shared.failure_fd()
    }

    /// What stood in the way of the background fill last, if anything. Pages are served on demand all the same.
    #[must_use]
    pub fn fill_failure(&self) -> Option<String> {
        self.filler.as_ref().and_then(|filler| filler.queue.failure())
    }

    /// What is known of each page.
    #[must_use]
    pub fn map(&self) -> &PageMap {
        &self.shared.map
    }

    /// The RAM.
    #[must_use]
    pub fn ram(&self) -> &GuestRam {
        self.shared.registered.ram()
    }

    /// Stops serving. Whoever misses a page from now on waits for the next engine. For a filler's reader that hangs it
    /// is waited for a bounded time: see [`Stopped::filler_hangs`].
    #[must_use = "whoever waits for a page waits for what is done with this"]
    pub fn stop(mut self) -> Stopped {
        let filler = self.stop_filler();
        let filler_hangs = matches!(filler, Some(FillerEnd::Hangs));
        let reader = match filler {
            Some(FillerEnd::Stopped(reader)) => Some(reader),
            Some(FillerEnd::Hangs | FillerEnd::Panicked) | None => None,
        };
        let (source, observer) = self.stop_server().map_or((None, None), |it| (Some(it.source), it.observer));
        let memory = self.memory.take().expect("only this takes it, and consumes the engine");
        // Where it cannot be done, the next engine says so.
        let _ = memory.take_claims_back();
        Stopped { memory, source, observer, reader, filler_hangs }
    }

    /// To be called before the server is stopped: the filler may wait for a removal to be read.
    fn stop_filler(&mut self) -> Option<FillerEnd> {
        self.filler.take().map(FillerThread::stop)
    }

    fn stop_server(&mut self) -> Option<Ended> {
        self.orders.send(Order::Stop);
        self.server.take()?.join().ok()
    }
}

impl Drop for FaultEngine {
    /// A thread whose source has not come back for 5 s is left behind: it ends when that does.
    fn drop(&mut self) {
        self.stop_filler();
        self.orders.send(Order::Stop);
        let server = self.server.take();
        while server.as_ref().is_some_and(|server| !server.is_finished()) && !self.source_hangs() {
            thread::sleep(STOP_POLL);
        }
    }
}
