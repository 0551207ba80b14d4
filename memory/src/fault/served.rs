//! Guest memory that faults are served for, with or without an engine.
//!
//! ```text
//!   GuestRam ──new──▶ ServedMemory ──resume──▶ FaultEngine
//!                        │   ▲                    │
//!        all is there    │   └────────stop────────┘
//!   GuestRam ◀──release──┘
//! ```

use std::io;
use std::os::fd::IntoRawFd;
use std::sync::Arc;

use super::gate::Gate;
use crate::map::{PageMap, PageState};
use crate::page::{PageRange, PageSize};
use crate::ram::{Backing, DiscardWatcher, GuestRam, TooManyWatchers};
use crate::uffd::{
    self, Feature, Features, Modes, OpenError, PageEntry, Pagemap, RegisterError, Registered, Stop, Wake,
};

/// Why an engine could not be started. The memory is as it was.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// There is no userfaultfd.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The memory cannot be served.
    #[error(transparent)]
    Register(#[from] RegisterError),
    /// It is to be write-protected and cannot be.
    #[error("this kernel cannot write-protect memory of this kind: it lacks {missing}; use a newer one")]
    NoWriteProtect {
        /// What it lacks.
        missing: Features,
    },
    /// Its writes are to be followed and cannot be.
    #[error(
        "writes to memory of this kind cannot be followed while it is served on this kernel: it lacks {missing}"
    )]
    NoTracking {
        /// What it lacks; nothing where it is the kind of memory, which is shared with other processes.
        missing: Features,
    },
    /// Too much has to know of discards.
    #[error(transparent)]
    Watch(#[from] TooManyWatchers),
    /// The host gives no thread, descriptor or memory.
    #[error("cannot start a thread that serves faults")]
    Host(#[from] io::Error),
}

/// Memory, what is known of its pages, and the userfaultfd that serves it: with or without an engine.
///
/// While there is no engine, whoever misses a page waits for the next one, and so does whoever throws pages away. If
/// it is dropped while pages are missing, its userfaultfd stays open for as long as the process lives: closed, it would
/// give zero pages to those who wait, silently. Where what is missing is the kernel's to give, it is closed.
#[derive(Debug)]
pub struct ServedMemory {
    pub(super) registered: Arc<Registered>,
    pub(super) map: Arc<PageMap>,
    pub(super) gate: Arc<Gate>,
    /// Held for its watch: a discard may begin under one engine and end under the next.
    _watch: Arc<Watch>,
    pub(super) features: Features,
    pub(super) modes: Modes,
    /// Whether what is missing is as the kernel gives it to those who wait once nobody serves them.
    kernel_gives_missing: bool,
}

/// Knows of discards before they are done.
#[derive(Debug)]
struct Watch {
    registered: Arc<Registered>,
    map: Arc<PageMap>,
    gate: Arc<Gate>,
}

impl DiscardWatcher for Watch {
    fn before_discard(&self, range: PageRange) {
        self.gate.begin_discard(range);
        self.map.remove(range);
        self.gate.wait_for(range);
    }

    fn after_discard(&self, range: PageRange) {
        self.gate.end_discard(range);
        // Who waited for what was about to be placed there faults again, and is given zeros. It fails only where the
        // memory is no longer registered, and then nobody waits.
        let _ = self.registered.wake(range);
    }
}

impl ServedMemory {
    /// Registers `ram`, of which every page is missing.
    ///
    /// # Errors
    ///
    /// [`StartError`].
    pub fn new(ram: GuestRam, write_protect: bool) -> Result<Self, StartError> {
        Self::with(uffd::probe()?.features, ram, write_protect)
    }

    /// Whether this kernel can write-protect memory of this kind.
    #[must_use]
    pub fn can_protect(backing: Backing) -> bool {
        uffd::probe().is_ok_and(|probe| protection(backing).without(probe.features).is_empty())
    }

    /// The same, and every page is placed protected against writes, for good: the kernel notes which are written
    /// ([`crate::dirty::Tracker`]), and tells nobody. So no observer can be asked, and nothing is moved in, as a page
    /// cannot be moved in protected.
    ///
    /// # Errors
    ///
    /// [`StartError`]: most of all [`StartError::NoTracking`].
    pub fn tracked(ram: GuestRam) -> Result<Self, StartError> {
        Self::tracked_with(uffd::probe()?.features, ram)
    }

    /// As on a kernel that has the features `there`.
    pub(super) fn tracked_with(there: Features, ram: GuestRam) -> Result<Self, StartError> {
        let missing = uffd::WRITE_TRACKING.without(there);
        if !missing.is_empty() || ram.backing().shares_writes() {
            return Err(StartError::NoTracking { missing });
        }
        Self::register(there.without(Features::NONE.with(Feature::MOVE)), ram, true)
    }

    /// As on a kernel that has the features `there`.
    pub(super) fn with(there: Features, ram: GuestRam, write_protect: bool) -> Result<Self, StartError> {
        // Asynchronous write-protection would take the faults away that are to be told.
        Self::register(there.without(Features::NONE.with(Feature::WRITE_PROTECT_ASYNC)), ram, write_protect)
    }

    fn register(features: Features, ram: GuestRam, write_protect: bool) -> Result<Self, StartError> {
        let backing = ram.backing();
        let minor = if backing.page_size() == PageSize::Huge2M {
            Feature::MINOR_HUGETLB
        } else {
            Feature::MINOR_SHMEM
        };
        // Mapping what is cached as protected (CONTINUE_MODE_WP) has no bit of its own; this came with it, in 6.4.
        let maps_protected = features.has(Feature::WRITE_PROTECT_UNPOPULATED);
        let missing = protection(backing).without(features);
        if write_protect && !missing.is_empty() {
            return Err(StartError::NoWriteProtect { missing });
        }
        // Where it cannot be mapped protected, pages of a shared memfd are copied in.
        let minor = backing.has_page_cache() && features.has(minor) && (maps_protected || !write_protect);
        let modes = Modes { missing: true, write_protect, minor };
        let map = Arc::new(PageMap::new(ram.pages().count));
        let registered = Arc::new(Registered::new(uffd::open(features)?, ram, modes)?);
        let gate = Arc::new(Gate::default());
        let watch =
            Watch { registered: Arc::clone(&registered), map: Arc::clone(&map), gate: Arc::clone(&gate) };
        let watch = Arc::new(watch);
        let watcher: Arc<dyn DiscardWatcher> = Arc::clone(&watch) as _;
        registered.ram().watch_discards(Arc::downgrade(&watcher))?;
        Ok(Self { registered, map, gate, _watch: watch, features, modes, kernel_gives_missing: false })
    }

    /// Whether pages are placed protected, for good, so that the kernel notes who writes them.
    pub(super) fn tracks_writes(&self) -> bool {
        self.features.has(Feature::WRITE_PROTECT_ASYNC)
    }

    /// Says that pages of `range` are in the guest already: no source is asked for them, and writes to them can be told
    /// of all the same.
    pub fn assume_present(&self, range: PageRange) {
        let mut from = range.start;
        while let Some(page) = self.map.next_missing(from, range.end()) {
            let claimed = self.map.claim(PageRange::between(page, range.end()));
            self.map.settle(claimed);
            from = claimed.end();
        }
    }

    /// Says that what is missing is what the kernel gives without a userfaultfd: pages that were never touched. Dropped,
    /// it lets go of the RAM then.
    pub(crate) fn leave_missing_to_kernel(&mut self) {
        self.kernel_gives_missing = true;
    }

    /// Whether no page is with its source, or on its way from there.
    fn is_whole(&self) -> bool {
        self.map.count(PageState::Missing) == 0 && self.map.count(PageState::Requested) == 0
    }

    /// The RAM.
    #[must_use]
    pub fn ram(&self) -> &GuestRam {
        self.registered.ram()
    }

    /// What is known of each page.
    #[must_use]
    pub fn map(&self) -> &PageMap {
        &self.map
    }

    /// Takes back the claims of a thread that is no more. Without a panic there are none.
    ///
    /// What it has placed through a page cache may have been written by the guest since, and must not be written again:
    /// a page that is mapped is there.
    pub(super) fn take_claims_back(&self) -> io::Result<()> {
        let all = self.ram().pages();
        if self.ram().backing().shares_writes() && self.map.count(PageState::Requested) > 0 {
            let pagemap = Pagemap::open()?;
            let mut claimed = Vec::new();
            self.map.state_runs(all, |run, state| {
                if state == PageState::Requested {
                    claimed.push(run);
                }
            });
            for page in claimed.into_iter().flat_map(PageRange::pages) {
                if pagemap.entry(self.ram(), page)? != PageEntry::Absent {
                    self.map.settle(page.alone());
                }
            }
        }
        self.map.release(all);
        Ok(())
    }

    /// Nobody serves the faults of a private mapping from here on, and its memfd still has what was thrown away of it.
    fn zero_removed(&self) -> io::Result<()> {
        let backing = self.ram().backing();
        if !backing.has_page_cache() || backing.shares_writes() {
            return Ok(());
        }
        let granule = backing.page_size();
        let zeros = vec![0; usize::try_from(granule.bytes()).unwrap_or(0)];
        let mut rest = self.ram().pages();
        while !rest.is_empty() {
            let run = self.map.first_run(rest, PageState::Removed);
            rest = PageRange::between(run.end(), rest.end());
            for page in run.wholes(granule) {
                match self.registered.copy(page, &zeros, false, Wake::Now).stop {
                    None | Some(Stop::Exists) => {}
                    Some(stop) => return Err(io::Error::other(stop)),
                }
            }
        }
        Ok(())
    }

    /// Gives the memory back without a userfaultfd, or itself where pages are missing yet.
    ///
    /// # Errors
    ///
    /// Itself, with the kernel's refusal if it was one: a part of it may not be registered any more then, so that no engine
    /// can go on with it. Ask again, or end the VM.
    pub fn release(self) -> Result<GuestRam, (Self, Option<io::Error>)> {
        if !self.is_whole() {
            return Err((self, None));
        }
        if let Err(error) = self.zero_removed() {
            return Err((self, Some(error)));
        }
        match self.registered.unregister() {
            Ok(()) => Ok(self.registered.ram().clone()),
            Err(error) => Err((self, Some(error))),
        }
    }
}

/// What it takes to write-protect memory.
fn protection(backing: Backing) -> Features {
    let mut protection = Features::NONE.with(Feature::WRITE_PROTECT);
    if !backing.supports_move() {
        protection = protection.with(Feature::WRITE_PROTECT_SHARED);
    }
    if backing.has_page_cache() && !backing.shares_writes() {
        // What a private mapping is for is to share what is cached.
        protection = protection.with(Feature::WRITE_PROTECT_UNPOPULATED);
    }
    protection
}

impl Drop for ServedMemory {
    fn drop(&mut self) {
        if self.is_whole() {
            return;
        }
        // A reference to it may be left, and the descriptor open: so closing is not enough.
        let is_let_go =
            self.kernel_gives_missing && self.zero_removed().is_ok() && self.registered.unregister().is_ok();
        if !is_let_go && let Ok(kept) = self.registered.duplicate_fd() {
            let _ = kept.into_raw_fd();
        }
    }
}
