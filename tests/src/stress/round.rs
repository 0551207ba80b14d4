//! One round: what its threads share, and how it goes.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};
use std::thread;
use std::time::Duration;

use memory::GuestRam;
use memory::PageIndex;
use memory::fault::{Counts, FaultEngine, Status};
use memory::map::PageState;

use super::control::Control;
use super::model::Model;
use super::scenario::{Machine, Scenario};
use super::setup::{self, Content};
use super::watch::{self, Watch};
use super::workers::Worker;

/// What the threads of a round share.
pub(super) struct Round {
    pub(super) scenario: Scenario,
    pub(super) ram: GuestRam,
    pub(super) content: Content,
    pub(super) model: Model,
    pub(super) watch: Watch,
    /// None while there is no engine.
    pub(super) engine: RwLock<Option<FaultEngine>>,
    /// What all engines of the round have done.
    pub(super) counts: Mutex<Vec<Counts>>,
    is_over: AtomicBool,
    failure: Mutex<Option<String>>,
    pub(super) generation: AtomicU64,
}

/// What a round has seen, for the line that tells of progress.
#[derive(Debug, Clone, Copy, Default)]
pub struct Seen {
    /// Rounds.
    pub rounds: u64,
    /// Faults that were served.
    pub faults: u64,
    /// Pages that were thrown away.
    pub removed: u64,
    /// Writes to protected pages.
    pub write_protected: u64,
    /// Engines.
    pub engines: u64,
}

impl Seen {
    /// Adds a round.
    pub fn add(&mut self, other: Self) {
        self.rounds += other.rounds;
        self.faults += other.faults;
        self.removed += other.removed;
        self.write_protected += other.write_protected;
        self.engines += other.engines;
    }
}

impl Round {
    fn new(scenario: Scenario) -> Self {
        let (ram, content) = setup::prepare(&scenario);
        let model = Model::new(scenario.pattern(), scenario.pages);
        Self {
            scenario,
            ram,
            content,
            model,
            watch: Watch::new(),
            engine: RwLock::new(None),
            counts: Mutex::default(),
            is_over: AtomicBool::new(false),
            failure: Mutex::new(None),
            generation: AtomicU64::new(1),
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    pub(super) fn end(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }

    /// Something is wrong. The first such thing is told.
    pub(super) fn fail(&self, what: &str) {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| what.to_owned());
        self.end();
    }

    fn failure(&self) -> Option<String> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What the engine knows of a page.
    pub(super) fn state_of(&self, page: u64) -> String {
        let engine = self.engine.try_read();
        let state = engine.ok().and_then(|engine| Some(engine.as_ref()?.map().get(PageIndex(page))));
        state.map_or("no engine".to_owned(), |state| format!("{state:?}"))
    }

    fn engine_failure(&self) -> Option<String> {
        let engine = self.engine.try_read().ok()?;
        match engine.as_ref()?.status() {
            Status::Failed(failure) => Some(failure.to_string()),
            Status::Serving | Status::Stopped => None,
        }
    }

    fn seen(&self) -> Seen {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let sum = |of: fn(&Counts) -> u64| counts.iter().map(of).sum();
        Seen {
            rounds: 1,
            faults: sum(|counts| counts.faults),
            removed: sum(|counts| counts.removed),
            write_protected: sum(|counts| counts.write_protected),
            engines: counts.len() as u64,
        }
    }

    /// All that may explain why something takes too long, or went wrong.
    fn describe(&self) -> String {
        let text = format!("{:#?}\n", self.scenario);
        let Ok(engine) = self.engine.try_read() else {
            return format!("{text}the engine is being stopped or started");
        };
        let Some(engine) = engine.as_ref() else { return format!("{text}there is no engine") };
        let states = [PageState::Missing, PageState::Requested, PageState::Present, PageState::Removed];
        let map = states.map(|state| (state, engine.map().count(state)));
        let (status, report) = (engine.status(), engine.report());
        format!("{text}{status:?}\n{map:?}\nfill: {:?}\n{:?}", engine.fill_failure(), report.counts)
    }
}

/// Runs the round of a seed.
///
/// # Errors
///
/// What went wrong, for people. A round that hangs ends the process, for its threads cannot be ended.
pub(super) fn run(seed: u64, machine: Machine) -> Result<Seen, String> {
    let round = Round::new(Scenario::of(seed, machine));
    super::kernel::stand_still_at_lost_pages();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let watchdog = scope.spawn(|| watch_over(&round, &done));
        thread::scope(|scope| work(&round, scope));
        done.store(true, Ordering::Relaxed);
        watchdog.thread().unpark();
    });
    match round.failure() {
        None => Ok(round.seen()),
        Some(failure) => Err(format!("{failure}\n{}", round.describe())),
    }
}

fn work<'scope>(round: &'scope Round, scope: &'scope thread::Scope<'scope, '_>) {
    let control = Control::start(round);
    let mut workers = Vec::new();
    for number in 0..round.scenario.threads {
        workers.push(scope.spawn(move || Worker::new(round, number).access(number)));
    }
    for number in 0..round.scenario.habits.discarders {
        workers.push(scope.spawn(move || Worker::new(round, 100 + number).discard()));
    }
    workers.push(scope.spawn(move || super::control::help(round)));
    control.run(workers);
}

/// Ends the process where something takes too long, or pages were lost: their threads cannot be ended.
fn watch_over(round: &Round, done: &AtomicBool) {
    while !done.load(Ordering::Relaxed) {
        thread::park_timeout(Duration::from_millis(100));
        let what = if let Some(overdue) = round.watch.overdue() {
            format!("hangs:\n{overdue}")
        } else if let Some(failure) = round.engine_failure() {
            format!("has lost pages: {failure}")
        } else {
            continue;
        };
        let (seed, failure) = (round.scenario.seed, round.failure());
        eprintln!("stress: round {seed} {what}\nfailed before: {failure:?}");
        eprintln!("{}\n{}", round.describe(), watch::threads());
        eprintln!("{}", super::again(seed));
        std::process::exit(1);
    }
}
