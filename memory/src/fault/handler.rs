//! What is done about a fault.
//!
//! | the page map says | a thread that misses the page is |
//! |---|---|
//! | `Missing` | served by the source, or by the filler where a whole chunk is to come |
//! | `Requested` | served with the answer that is on its way |
//! | `Present` | woken: the page came while the fault was read. From a memfd it may have been unmapped; it is mapped again |
//! | `Removed` | given zeros; or, where a shared memfd has the page, what was written to it since |
//!
//! Invariants:
//!
//! - A removal is marked before anything else is placed, and before any fault read with it is looked at.
//! - A fault is answered by placing the page, by waking the thread, or by a failure that is told. It is left alone only
//!   where the filler is about to place the page, who wakes whoever waits.
//! - The thread touches guest memory only where that cannot fault: see `pre_image`. It waits for nobody who does.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::around::FaultAround;
use super::assemble::Assembly;
use super::fill::FillQueue;
use super::install::{Content, Halt, Placement};
use super::locality::Whereabouts;
use super::pre_image::PreImage;
use super::record::Recorder;
use super::scheduler::Scheduler;
use super::shared::Shared;
use super::statistics::add;
use super::waits::Waits;
use super::write::WriteObserver;
use crate::map::{PageMap, PageState};
use crate::page::{PageIndex, PageRange, PageSize};
use crate::source::Priority;
use crate::uffd::{Event, EventBuffer, Fault, FaultKind, Stop};

/// How often in a row one thread may miss a page that is there before that is taken for a loss.
const STALE_MAX: u32 = 16;

/// How many removals are remembered that came without a word.
const UNANNOUNCED_MAX: usize = 64;

/// What the fault thread knows, but for the source.
pub(super) struct Handler {
    pub(super) shared: Arc<Shared>,
    pub(super) scheduler: Scheduler,
    pub(super) around: FaultAround,
    pub(super) queue: Option<Arc<FillQueue>>,
    pub(super) events: Events,
    pub(super) waits: Waits,
    pub(super) assembly: Assembly,
    pub(super) observer: Option<Box<dyn WriteObserver>>,
    pub(super) pre_image: PreImage,
    pub(super) whereabouts: Whereabouts,
    /// What was removed without the RAM being told. Past a limit it is taken for everything.
    pub(super) unannounced: Vec<PageRange>,
    pub(super) stale: Stale,
    /// The thread whose fault was read last, until it is looked for.
    pub(super) last_thread: Option<i32>,
    /// Runs of an answer that are wanted; kept for its memory.
    pub(super) runs: Vec<(PageRange, Priority)>,
    /// How long a source, or the filler, has for an answer.
    pub(super) answer_limit: Duration,
    /// Whether what the guest writes is in a page cache.
    pub(super) shares_writes: bool,
    /// Whether a page can be made a memory error.
    pub(super) poisons: bool,
    pub(super) granule: PageSize,
    /// Who is told what is wanted.
    pub(super) recorder: Option<Arc<Recorder>>,
    pub(super) started: Instant,
}

/// Events that were read and not looked at yet.
#[derive(Debug, Default)]
pub(super) struct Events {
    buffer: EventBuffer,
    pub(super) faults: VecDeque<Fault>,
    removals: Vec<PageRange>,
}

/// The last fault on a page that was there, and how often it came in a row.
#[derive(Debug, Default)]
pub(super) struct Stale {
    last: Option<(PageIndex, i32)>,
    times: u32,
}

impl Stale {
    /// Says how often that was seen in a row.
    fn again(&mut self, fault: Fault) -> u32 {
        let is_same = self.last.replace((fault.page, fault.thread)) == Some((fault.page, fault.thread));
        self.times = if is_same { self.times + 1 } else { 1 };
        self.times
    }
}

impl Handler {
    /// The time in ticks, which are milliseconds.
    pub(super) fn tick(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Reads a batch of events, and marks the removals in it; gives how many there were.
    pub(super) fn read_events(&mut self) -> io::Result<usize> {
        self.shared.gate.forget_ended();
        let Events { buffer, faults, removals } = &mut self.events;
        let count = self.shared.registered.read_events(buffer, &mut |event| match event {
            Event::Fault(fault) => faults.push_back(fault),
            Event::Removed(range) => removals.push(range),
        })?;
        while let Some(range) = self.events.removals.pop() {
            self.removed(range);
        }
        Ok(count)
    }

    fn removed(&mut self, range: PageRange) {
        let range = range.intersection(self.shared.registered.ram().pages());
        self.shared.map.remove(range);
        if !self.shared.gate.is_known(range) {
            self.note_unannounced(range);
        }
        add(&self.shared.statistics.counters.removed, range.count);
        self.scheduler.remove(range);
        self.waits.remove(range);
        // Whoever waits faults again, and is given zeros: also for an answer that was about to be placed.
        self.shared.installer.wake(range);
    }

    /// Somebody throws pages away without telling the RAM. When that is done is not known.
    fn note_unannounced(&mut self, range: PageRange) {
        if self.unannounced.len() == UNANNOUNCED_MAX {
            self.unannounced = vec![self.shared.registered.ram().pages()];
        }
        self.unannounced.push(range);
    }

    /// Whether faults can be taken that were not read yet.
    pub(super) fn has_room(&self) -> bool {
        self.scheduler.has_room() && self.events.faults.is_empty()
    }

    /// Whether nothing can be done before something happens.
    pub(super) fn can_wait(&self) -> bool {
        self.events.faults.is_empty() || !self.scheduler.has_room()
    }

    /// How long until something is to be tried again, or has taken too long.
    pub(super) fn until_next_tick(&self) -> Option<Duration> {
        let ticks = self.scheduler.next_tick().map(|tick| tick.saturating_sub(self.tick()));
        // A tick more, or it would be woken within the one before.
        let answer = ticks.map(|ticks| Duration::from_millis(ticks.saturating_add(1)));
        let chunk = self.queue.as_ref().and_then(|queue| queue.deadline(self.answer_limit));
        let chunk = chunk.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        answer.into_iter().chain(chunk).min()
    }

    /// Looks at the faults that were read, as far as there is room.
    pub(super) fn take_faults(&mut self) {
        if self.events.faults.is_empty() {
            return;
        }
        let now = Instant::now();
        while self.scheduler.has_room()
            && let Some(fault) = self.events.faults.pop_front()
        {
            add(&self.shared.statistics.counters.faults, 1);
            self.last_thread = Some(fault.thread);
            match fault.kind {
                FaultKind::WriteProtected => self.write(fault.page, now),
                FaultKind::Missing | FaultKind::Minor => self.absent(fault, now),
            }
        }
    }

    /// What can wait until those who waited go on.
    pub(super) fn afterwards(&mut self) {
        if let Some(thread) = self.last_thread.take() {
            self.whereabouts.served(thread);
        }
    }

    fn absent(&mut self, fault: Fault, now: Instant) {
        match self.shared.map.get(fault.page) {
            PageState::Missing => self.missing(fault.page, now),
            PageState::Requested => self.requested(fault.page, now),
            PageState::Present => self.present(fault, now),
            // What is in a shared cache was written since it was thrown away.
            PageState::Removed if fault.kind == FaultKind::Minor && self.shares_writes => {
                self.give(fault.page, Content::InPlace, now);
            }
            PageState::Removed => self.give(fault.page, Content::Zero, now),
        }
    }

    fn missing(&mut self, page: PageIndex, now: Instant) {
        let window = self.around.window(page);
        self.note(page, window);
        if let Some(queue) = &self.queue
            && self.is_for_filler(queue, page, window)
        {
            return;
        }
        let granule = page.containing(self.granule);
        if !claim(&self.shared.map, granule) {
            // Somebody else was faster, and wakes whoever waits once the page is there; it may be so already.
            return self.shared.installer.wake(granule);
        }
        self.waits.begin(granule.start, now);
        self.scheduler.demand(page);
        self.scheduler.prefetch(window);
    }

    fn note(&self, page: PageIndex, window: PageRange) {
        let Some(recorder) = &self.recorder else { return };
        let is_there = |range| self.shared.map.first_run(range, PageState::Present) == range;
        recorder.note(page, window, is_there);
    }

    /// Whether the filler has the chunk that `page` is in, or takes it over: one that a guest walks into, and of which
    /// every page is missing, is moved in as a huge page.
    fn is_for_filler(&self, queue: &FillQueue, page: PageIndex, window: PageRange) -> bool {
        let chunk = page.containing(PageSize::Huge2M);
        queue.fault_at(page);
        queue.is_urgent(chunk)
            || FaultAround::is_chunk(window)
                && self.shared.map.first_run(chunk, PageState::Missing) == chunk
                && queue.take_over(chunk)
    }

    fn requested(&mut self, page: PageIndex, now: Instant) {
        self.note(page, page.alone());
        // What the scheduler does not know is the filler's, who is about to place it and to wake whoever waits.
        if self.scheduler.knows(page) {
            self.waits.begin(page.containing(self.granule).start, now);
            self.scheduler.demand(page);
        }
    }

    fn present(&mut self, fault: Fault, now: Instant) {
        let granule = fault.page.containing(self.granule);
        add(&self.shared.statistics.counters.stale, 1);
        if fault.kind == FaultKind::Minor {
            // The host has unmapped what is in the page cache, to swap it out for example.
            return self.give(fault.page, Content::InPlace, now);
        }
        self.note(fault.page, fault.page.alone());
        if self.stale.again(fault) >= STALE_MAX {
            return self.lose(granule, "the page was in guest memory and is not any more");
        }
        self.shared.installer.wake(granule);
    }

    /// Places a page that was claimed by nobody, as no source is needed for what it is to hold.
    fn give(&mut self, page: PageIndex, content: Content<'_>, now: Instant) {
        let placement = Placement { range: page.containing(self.granule), content };
        let is_cached = matches!(content, Content::InPlace) && !self.shares_writes;
        let attempt = |shared: &Shared, part: Placement<'_>| {
            // It may have been thrown away only just now, and then what a private mapping's memfd has is stale.
            if is_cached && shared.map.get(part.range.start) == PageState::Removed {
                return Err(Halt { rest: part.range, stop: Stop::NoSource });
            }
            shared.installer.place(part)
        };
        match self.place(placement, attempt) {
            Ok(verb) => {
                add(&self.shared.statistics.counters.demanded, placement.range.count);
                self.shared.statistics.record(verb, now.elapsed());
            }
            // It left the page cache in this moment: whoever waits is to say anew what is missing.
            Err(Halt { rest, stop: Stop::NoSource }) => self.shared.installer.wake(rest),
            Err(halt) => self.lose(halt.rest, &halt.stop.to_string()),
        }
    }
}

/// Claims a whole granule; says whether all of it was missing.
pub(super) fn claim(map: &PageMap, granule: PageRange) -> bool {
    if granule.count == 1 { !map.claim(granule).is_empty() } else { map.claim_all(granule) }
}
