//! What each page should hold, and who may change it.
//!
//! A page is changed by who holds its lock: so its content is known exactly, while pages race with each other. Who reads
//! without the lock compares when nobody has changed the page meanwhile, and else only sees that it comes. Some pages
//! are *wild*: anybody writes and throws them away at any time, and each word of them is one of few.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use memory::source::pattern::Pattern;

use super::content::{Content, PAGE, digest};
use super::observer::{Before, Log};

/// What is known of one page.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) content: Content,
    /// The protection that `earlier` and `is_tainted` are about.
    generation: u64,
    /// What it held before writes that landed while it was being protected: the observer may have seen any.
    earlier: Vec<Content>,
    /// It was thrown away while it was protected.
    is_tainted: bool,
    is_checked: bool,
}

impl Known {
    fn enter(&mut self, generation: u64) {
        if self.generation != generation {
            *self = Self {
                content: self.content,
                generation,
                earlier: Vec::new(),
                is_tainted: false,
                is_checked: false,
            };
        }
    }
}

#[derive(Debug)]
struct Page {
    /// Odd while somebody changes it.
    changes: AtomicU64,
    known: Mutex<Known>,
}

/// Whether writes are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Off,
    /// They may be.
    Begins(u64),
    /// All are.
    On(u64),
}

/// All pages.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) pattern: Pattern,
    pages: Vec<Page>,
    phase: Mutex<Phase>,
    log: Mutex<Arc<Log>>,
}

/// A page that is about to be changed.
pub(super) struct Change<'a> {
    page: u64,
    model: &'a Model,
    known: MutexGuard<'a, Known>,
    phase: Phase,
}

impl Model {
    pub(super) fn new(pattern: Pattern, pages: u64) -> Self {
        let known = || Known {
            content: Content::ORIGINAL,
            generation: 0,
            earlier: Vec::new(),
            is_tainted: false,
            is_checked: false,
        };
        let page = || Page { changes: AtomicU64::new(0), known: Mutex::new(known()) };
        let pages = (0..pages).map(|_| page()).collect();
        Self { pattern, pages, phase: Mutex::new(Phase::Off), log: Mutex::new(Log::new(0)) }
    }

    pub(super) fn set_phase(&self, phase: Phase) {
        *lock(&self.phase) = phase;
    }

    pub(super) fn phase(&self) -> Phase {
        *lock(&self.phase)
    }

    pub(super) fn set_log(&self, log: Arc<Log>) {
        *lock(&self.log) = log;
    }

    pub(super) fn log(&self) -> Arc<Log> {
        Arc::clone(&lock(&self.log))
    }

    /// How often a page was changed; odd while it is.
    pub(super) fn changes(&self, page: u64) -> u64 {
        self.page(page).changes.load(Ordering::SeqCst)
    }

    /// What a page holds, if nobody changes it now.
    pub(super) fn content(&self, page: u64) -> Option<Content> {
        self.page(page).known.try_lock().ok().map(|known| known.content)
    }

    /// Holds a page as it is.
    pub(super) fn hold(&self, page: u64) -> MutexGuard<'_, Known> {
        lock(&self.page(page).known)
    }

    /// Begins to change a page.
    pub(super) fn change(&self, page: u64) -> Change<'_> {
        let known = self.hold(page);
        self.page(page).changes.fetch_add(1, Ordering::SeqCst);
        Change { page, model: self, known, phase: self.phase() }
    }

    fn page(&self, page: u64) -> &Page {
        &self.pages[usize::try_from(page).expect("a page's number is an index")]
    }

    fn digest_of(&self, content: Content, page: u64) -> u64 {
        let mut bytes = [0; PAGE];
        content.bytes(self.pattern, page, &mut bytes);
        digest(&bytes)
    }
}

impl Change<'_> {
    pub(super) fn content(&self) -> Content {
        self.known.content
    }

    /// It was thrown away.
    pub(super) fn note_discard(mut self) {
        for phase in [self.phase, self.model.phase()] {
            if let Phase::Begins(generation) | Phase::On(generation) = phase {
                self.known.enter(generation);
                self.known.is_tainted = true;
            }
        }
        self.known.content = Content::ZERO;
    }

    /// It was written; says what is wrong with what the observer was told of it, if anything.
    pub(super) fn note_write(mut self, content: Content) -> Result<(), String> {
        let old = std::mem::replace(&mut self.known.content, content);
        match (self.phase, self.model.phase()) {
            (Phase::On(before), Phase::On(after)) if before == after => self.check(before, old),
            (_, Phase::Begins(generation) | Phase::On(generation)) => {
                self.known.enter(generation);
                self.known.earlier.push(old);
                Ok(())
            }
            (_, Phase::Off) => Ok(()),
        }
    }

    fn check(&mut self, generation: u64, old: Content) -> Result<(), String> {
        let page = self.page;
        let log = self.model.log();
        self.known.enter(generation);
        if log.generation != generation || std::mem::replace(&mut self.known.is_checked, true) {
            return Ok(());
        }
        let Some(first) = log.first(page) else {
            // It ended meanwhile, perhaps.
            return match self.model.phase() {
                Phase::On(now) if now == generation => {
                    Err(format!("page {page} was written, and nobody told"))
                }
                _ => Ok(()),
            };
        };
        let mut possible = self.known.earlier.iter().copied().chain([old]);
        let is_right = self.known.is_tainted
            || match first {
                Before::ThrownAway => possible.any(|content| content == Content::ZERO),
                Before::Bytes(found) => possible.any(|content| self.model.digest_of(content, page) == found),
            };
        if is_right {
            return Ok(());
        }
        Err(format!(
            "page {page} was told before its first write as {first:?}: it held {old:?} ({:#x}), or before {:?}",
            self.model.digest_of(old, page),
            self.known.earlier
        ))
    }
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        self.model.page(self.page).changes.fetch_add(1, Ordering::SeqCst);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
