//! What is done to the engine while threads work: it is stopped and started, memory is protected, pages are asked for.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use memory::fault::{FaultEngine, ServedMemory, Status, Stopped};
use memory::map::PageState;
use memory::source::pattern::Sequence;
use memory::{PageIndex, PageRange};

use super::kernel::page_out;
use super::model::Phase;
use super::observer::{Log, Observer};
use super::round::Round;
use super::scenario::{Kind, Origin, origin};
use super::watch::Watched;
use super::workers::Worker;

/// Who has the engine.
pub(super) struct Control<'a> {
    round: &'a Round,
    chance: Sequence,
    watched: Watched,
    /// Whether the source that serves lasts.
    lasts: bool,
}

impl<'a> Control<'a> {
    /// Starts the first engine.
    pub(super) fn start(round: &'a Round) -> Self {
        let (chance, watched) = (Sequence::new(round.scenario.seed ^ 2), round.watch.this_thread());
        let mut control = Self { round, chance, watched, lasts: true };
        let memory = ServedMemory::new(round.ram.clone(), round.scenario.options.write_protect);
        control.resume(memory.expect("memory of every kind can be served"), round.scenario.origin);
        control
    }

    /// Plays with the engine until the round's time is over, and sees that all is right at its end.
    pub(super) fn run(mut self, workers: Vec<ScopedJoinHandle<'_, ()>>) {
        let deadline = Instant::now() + self.round.scenario.length;
        while !self.round.is_over() && Instant::now() < deadline {
            thread::sleep(Duration::from_micros(500 + self.chance.below(40_000)));
            match self.chance.below(3) {
                0 if self.round.scenario.habits.protects => self.protect(),
                1 if self.round.scenario.habits.stops => self.restart(),
                _ => {}
            }
        }
        if !self.lasts {
            self.restart_with(Origin::Pattern);
        }
        self.round.end();
        for worker in workers {
            if let Err(panic) = worker.join() {
                std::panic::resume_unwind(panic);
            }
        }
        self.finish();
    }

    /// Protects memory, has threads write for a while, and ends it.
    fn protect(&mut self) {
        let round = self.round;
        let generation = round.generation.fetch_add(1, Ordering::Relaxed);
        let log = Log::new(generation);
        let observer = Observer {
            log: std::sync::Arc::clone(&log),
            chance: Sequence::new(self.chance.next_u64()),
            wait_percent: round.scenario.habits.wait_percent,
        };
        round.model.set_log(log);
        round.model.set_phase(Phase::Begins(generation));
        let protect = || with_engine(round, |engine| engine.protect(Box::new(observer)));
        if let Some(Err(stop)) = self.watched.during("protects", generation, protect) {
            round.fail(&format!("memory cannot be protected: {stop}"));
        }
        round.model.set_phase(Phase::On(generation));
        thread::sleep(Duration::from_micros(self.chance.below(30_000)));
        round.model.set_phase(Phase::Off);
        if self.chance.happens(20) && round.scenario.habits.stops {
            return self.restart();
        }
        let unprotect = || with_engine(round, |engine| engine.unprotect().is_some());
        if self.watched.during("ends protecting", generation, unprotect) == Some(false) {
            round.fail("the observer did not come back");
        }
    }

    fn restart(&mut self) {
        let origin = origin(&mut self.chance, self.round.scenario.kind);
        self.restart_with(origin);
    }

    fn restart_with(&mut self, origin: Origin) {
        let Some(stopped) = self.stop() else { return };
        thread::sleep(Duration::from_micros(self.chance.below(5_000)));
        self.resume(stopped.memory, origin);
    }

    fn stop(&mut self) -> Option<Stopped> {
        let round = self.round;
        let stop = || {
            let mut engine = round.engine.write().unwrap_or_else(PoisonError::into_inner);
            let engine = engine.take()?;
            let (status, fill_failure) = (engine.status(), engine.fill_failure());
            if status != Status::Serving {
                round.fail(&format!("the engine is {status:?} (fill: {fill_failure:?})"));
            }
            // What was done since is not counted.
            round.counts.lock().unwrap_or_else(PoisonError::into_inner).push(engine.report().counts);
            Some(engine.stop())
        };
        let stopped = self.watched.during("stops the engine", 0, stop)?;
        if stopped.source.is_none() {
            round.fail("the fault thread has panicked");
        }
        Some(stopped)
    }

    fn resume(&mut self, memory: ServedMemory, origin: Origin) {
        let (round, chance) = (self.round, &mut self.chance);
        self.lasts = !matches!(origin, Origin::Dying(_));
        let source = round.content.source(origin);
        let reader = round.scenario.fills.then(|| round.content.reader(chance));
        let resume = || FaultEngine::resume(memory, source, reader, &round.scenario.options);
        match self.watched.during("starts an engine", 0, resume) {
            Ok(engine) => *round.engine.write().unwrap_or_else(PoisonError::into_inner) = Some(engine),
            Err(error) => round.fail(&format!("an engine cannot be started: {error}")),
        }
    }

    /// Reads all there is, through the engine and after it.
    fn finish(&mut self) {
        let round = self.round;
        let mut reader = Worker::new(round, 200);
        (0..round.scenario.pages).for_each(|page| reader.check(page));
        self.check_counts();
        let Some(stopped) = self.stop() else { return };
        match stopped.memory.release() {
            Ok(_) => (0..round.scenario.pages).for_each(|page| reader.check(page)),
            Err((_, error)) => round.fail(&format!("memory is not released: {error:?}")),
        }
    }

    fn check_counts(&self) {
        let round = self.round;
        let deadline = Instant::now() + Duration::from_secs(2);
        let counted = || {
            let states = [PageState::Missing, PageState::Requested, PageState::Present, PageState::Removed];
            with_engine(round, |engine| states.map(|state| engine.map().count(state))).unwrap_or_default()
        };
        // Who is woken may be here before the page is noted.
        while counted()[..2] != [0, 0] && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
        let [missing, requested, present, removed] = counted();
        let discards = round.scenario.habits.discarders > 0;
        let is_right = missing == 0 && requested == 0 && present + removed == round.scenario.pages;
        if !is_right || !discards && removed > 0 {
            let states = format!("{missing} missing, {requested} requested, {removed} removed");
            round.fail(&format!("all was read, and the map says: {states}, {present} present"));
        }
        if !discards && round.counts.lock().is_ok_and(|counts| counts.is_empty()) {
            self.check_placed(deadline);
        }
    }

    /// Where one engine has placed all pages and none was thrown away, each was counted once.
    fn check_placed(&self, deadline: Instant) {
        let round = self.round;
        if !matches!(round.scenario.kind, Kind::Anonymous | Kind::HugePages) {
            // A page of a memfd may be mapped again.
            return;
        }
        let placed = || {
            let counts = with_engine(round, |engine| engine.report().counts)?;
            Some(counts.demanded + counts.prefetched + counts.filled)
        };
        while placed() != Some(round.scenario.pages) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
        if placed() != Some(round.scenario.pages) {
            round.fail(&format!("{:?} pages were placed of {}", placed(), round.scenario.pages));
        }
    }
}

fn with_engine<T>(round: &Round, ask: impl FnOnce(&FaultEngine) -> T) -> Option<T> {
    round.engine.read().unwrap_or_else(PoisonError::into_inner).as_ref().map(ask)
}

/// Asks for pages, allows writes that wait, and pages memory out, until all is read.
pub(super) fn help(round: &Round) {
    let watched = round.watch.this_thread();
    let mut chance = Sequence::new(round.scenario.seed ^ 3);
    while !round.is_over() {
        thread::sleep(Duration::from_micros(chance.below(2_000)));
        for range in round.model.log().take_waiting() {
            with_engine(round, |engine| engine.allow_writes(range));
        }
        let start = chance.below(round.scenario.pages);
        let count = (1 + chance.below(1_000)).min(round.scenario.pages - start);
        let range = PageRange { start: PageIndex(start), count };
        if round.scenario.habits.prefetches && chance.happens(20) {
            with_engine(round, |engine| engine.prefetch(range));
        }
        if round.scenario.habits.pages_out && chance.happens(30) {
            watched.during("pages out", start, || page_out(&round.ram, range));
        }
    }
    // Nobody is to wait for ever to write.
    with_engine(round, FaultEngine::unprotect);
}
