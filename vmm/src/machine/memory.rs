//! How a VM's RAM comes about, and who serves it.
//!
//! ```text
//!   MemoryPlan ──map──▶ Memory ───┬─ GuestRam ──────▶ KVM, devices, what the loader writes
//!     Fresh                       ├─ FaultEngine      "fault", "fill": pages come when they are wanted
//!     Served                      ├─ Watch            "memory": tells the driver when one cannot come
//!     Handed                      ├─ Handed           "handler": another process serves, and may go
//!                                 ├─ Tracker          what was written since it was last saved: what a diff holds
//!                                 └─ Recording        "working-set": what a restored guest wants first
//! ```
//!
//! Invariants:
//!
//! - Whoever may touch a page that is missing is gone before the engine is: vCPUs, devices, and the loader.
//! - A plan is carried out once. Its source may have given pages already when a start fails, so it is not tried again.
//! - What is written to it is followed from before the first page of it is touched, where that was asked for.
//! - The watch touches no guest memory and waits for nobody who does: a failure is told whatever stands still. While
//!   the loader writes, that may be the driver itself; the process ends then.

pub mod handler;
pub mod live;
mod metrics;
mod watch;
pub mod working_set;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::Duration;

use api::types::HugePages;
use memory::dirty::{TrackError, Tracker};
use memory::fault::{self, Failure, FaultEngine, Status};
use memory::ram::CopyError;
use memory::source::{PageReader, PageSource};
use memory::uffd::TrackWrites;
use memory::{Backing, GuestRam, PageIndex, RamError, RamRange, Sharing};
use prometheus_client::metrics::counter::Counter;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vm_memory::{Address, GuestAddress};

use super::message::Notifier;
use crate::telemetry::metrics::MetricsRegistry;
use handler::{HandOverError, Handed};
use metrics::EngineMetrics;
use watch::Watch;
use working_set::{Known, Recording};

/// How long a page that is needed at once may take to come: longer than an engine tries to have it.
const PAGE_TIMEOUT: Duration = Duration::from_secs(20);

/// How long is waited for an engine's word on a page that a vCPU has met as a memory error already.
const WORD_TIMEOUT: Duration = Duration::from_millis(500);

/// How a VM's RAM comes about.
#[derive(Default)]
pub enum MemoryPlan {
    /// It is zero, and the host's to give.
    #[default]
    Fresh,
    /// Its pages come from a source when they are wanted. What the loader writes, it writes over that.
    Served(Box<ServedPlan>),
    /// A saved memory file is mapped, and the kernel reads it as it is touched.
    File(File),
    /// Another process serves it, through a userfaultfd that it is handed.
    Handed {
        /// What the memory is made of.
        backing: Backing,
        /// Where the other process listens.
        socket: PathBuf,
    },
    /// It was served, in a start that failed.
    Spent,
}

/// Memory that comes from a source.
pub struct ServedPlan {
    /// What the memory is mapped over.
    pub foundation: Foundation,
    /// Where its pages come from.
    pub source: Box<dyn PageSource>,
    /// The same content, for who fills in the background.
    pub reader: Option<Box<dyn PageReader>>,
    /// Makes another reader of it, for who saves what the guest does not have yet.
    pub again: Option<Again>,
    /// How faults are served.
    pub options: fault::Options,
    /// What is placed first, and recorded anew.
    pub working_set: Option<Known>,
    /// Is handed the engine before the first page is wanted.
    pub started: Option<Started>,
}

impl MemoryPlan {
    /// Maps the RAM, which nobody serves yet: for KVM to know it early. The plan is not spent by that.
    ///
    /// # Errors
    ///
    /// [`MemoryError`].
    pub fn map(&self, ranges: &[RamRange], huge_pages: HugePages) -> Result<GuestRam, MemoryError> {
        Ok(match self {
            Self::Fresh => GuestRam::new(ranges, backing(huge_pages))?,
            Self::Served(plan) => match &plan.foundation {
                Foundation::New(backing) => GuestRam::new(ranges, *backing)?,
                Foundation::Memfd(memfd, sharing) => {
                    let memfd = memfd.try_clone().map_err(MemoryError::Descriptor)?;
                    GuestRam::over_memfd(ranges, memfd, *sharing)?
                }
            },
            Self::File(file) => {
                GuestRam::over_file(ranges, file.try_clone().map_err(MemoryError::Descriptor)?)?
            }
            Self::Handed { backing, .. } => GuestRam::new(ranges, *backing)?,
            Self::Spent => return Err(MemoryError::Spent),
        })
    }
}

/// Makes a reader of the content of served memory.
pub type Again = Box<dyn Fn() -> Box<dyn PageReader> + Send>;

/// Who is handed an engine, to prefetch, protect or look at it from outside.
pub type Started = Box<dyn FnOnce(&Arc<FaultEngine>) + Send>;

/// What memory is mapped over.
#[derive(Debug)]
pub enum Foundation {
    /// Memory of its own.
    New(Backing),
    /// A memfd that somebody else has made.
    Memfd(OwnedFd, Sharing),
}

/// Why there is no memory.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The host does not give it.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// There is no descriptor for it.
    #[error(
        "the file of guest memory cannot be opened once more: raise the limit of open files, `ulimit -n`"
    )]
    Descriptor(#[source] io::Error),
    /// Nobody can serve it.
    #[error("guest memory cannot be served: {0}")]
    Serve(#[from] fault::StartError),
    /// Another process cannot be let serve it. Clients know how the text begins.
    #[error("Error creating guest memory from uffd: {0}")]
    HandOver(#[from] HandOverError),
    /// Nobody can tell who writes to it.
    #[error("guest memory cannot be tracked: {0}")]
    Track(#[from] TrackError),
    /// Nobody could tell of its failure.
    #[error("cannot start a thread that watches over guest memory")]
    Watch(#[from] io::Error),
    /// A page that the loader needs cannot be had.
    #[error("the guest cannot be loaded: {0}")]
    Failed(String),
    /// A page that a restored guest is changed in cannot be had.
    #[error(transparent)]
    Lost(#[from] CopyError),
    /// A page does not come.
    #[error(
        "a page that is needed at once has not come for {} s: does whoever serves the memory hang?",
        PAGE_TIMEOUT.as_secs()
    )]
    Late,
    /// It was given to a start that failed.
    #[error("the guest's memory went to a start that failed: start it in another process")]
    Spent,
}

/// A VM's RAM and who serves it.
pub struct Memory {
    /// Before the engine that they look at.
    watch: Option<Watch>,
    recording: Option<Recording>,
    /// Until it is recorded.
    working_set: Option<Known>,
    engine: Option<Arc<FaultEngine>>,
    handed: Option<Handed>,
    again: Option<Again>,
    ram: GuestRam,
    /// What was written since it was last saved or loaded.
    pub changes: Tracker,
    /// Times that a page could not be had.
    pub failures: Counter,
    /// Times that the process which served it has gone.
    pub handlers_gone: Counter,
}

impl Memory {
    /// Carries out `plan`, which has [mapped](MemoryPlan::map) `ram` and is spent then. `tracks` is whether writes are
    /// followed, so that a diff holds little more than what was written; without that it holds all that the host has of the
    /// memory.
    ///
    /// # Errors
    ///
    /// [`MemoryError`].
    pub fn new(
        plan: &mut MemoryPlan,
        ram: GuestRam,
        tracks: bool,
        notifier: &Notifier,
    ) -> Result<Self, MemoryError> {
        let way = tracks.then(Tracker::way);
        if way == Some(TrackWrites::Nothing) {
            return Err(TrackError::NoMeans.into());
        }
        // It can be had again, where a start fails.
        if let MemoryPlan::Fresh = plan {
            return Self::unserved(ram, way);
        }
        match std::mem::replace(plan, MemoryPlan::Spent) {
            MemoryPlan::Served(plan) => Self::serve(*plan, ram, way, notifier),
            MemoryPlan::File(_) => Self::unserved(ram, way),
            MemoryPlan::Handed { socket, .. } => {
                let is_tracked = way == Some(TrackWrites::PageTables);
                let handed = Handed::connect(ram.clone(), &socket, is_tracked, notifier.clone())?;
                let changes = changes(&ram, way, is_tracked)?;
                Ok(Self { handed: Some(handed), ..Self::with(ram, changes) })
            }
            MemoryPlan::Fresh | MemoryPlan::Spent => Err(MemoryError::Spent),
        }
    }

    /// Memory that the kernel alone serves.
    fn unserved(ram: GuestRam, way: Option<TrackWrites>) -> Result<Self, MemoryError> {
        let changes = changes(&ram, way, false)?;
        Ok(Self::with(ram, changes))
    }

    fn with(ram: GuestRam, changes: Tracker) -> Self {
        let (failures, handlers_gone) = (Counter::default(), Counter::default());
        Self {
            watch: None,
            recording: None,
            working_set: None,
            engine: None,
            handed: None,
            again: None,
            ram,
            changes,
            failures,
            handlers_gone,
        }
    }

    fn serve(
        plan: ServedPlan,
        ram: GuestRam,
        way: Option<TrackWrites>,
        notifier: &Notifier,
    ) -> Result<Self, MemoryError> {
        let track_writes = way == Some(TrackWrites::PageTables);
        let options = fault::Options { track_writes, ..plan.options };
        let engine = FaultEngine::start(ram.clone(), plan.source, plan.reader, &options)?;
        let engine = Arc::new(engine);
        let changes = changes(&ram, way, track_writes)?;
        let watch = Watch::start(&engine, notifier.clone())?;
        if let Some(started) = plan.started {
            started(&engine);
        }
        Ok(Self {
            watch: Some(watch),
            engine: Some(engine),
            again: plan.again,
            working_set: plan.working_set,
            ..Self::with(ram, changes)
        })
    }

    /// The loader has written what it writes: from now on the driver waits for no page.
    pub fn loaded(&self) {
        if let Some(watch) = &self.watch {
            watch.driver_is_free();
        }
    }

    /// The guest is put together: what it is going to want can come, and then the rest.
    pub fn fill(&mut self) {
        let Some(engine) = &self.engine else { return };
        if let Some(known) = &mut self.working_set {
            known.place(engine);
        }
        engine.fill();
    }

    /// The guest runs.
    pub fn resumed(&mut self) {
        self.fill();
        if let Some((known, engine)) = self.working_set.take().zip(self.engine.as_ref()) {
            match Recording::start(known, engine) {
                Ok(recording) => self.recording = Some(recording),
                Err(error) => {
                    tracing::warn!(%error, "a working set is not recorded, as there is no thread for it")
                }
            }
        }
    }

    /// The guest stands still.
    pub fn paused(&mut self) {
        self.recording.iter_mut().for_each(Recording::end);
    }

    /// Makes known what is counted.
    pub fn register_metrics(&self, registry: &mut MetricsRegistry) {
        let counters = [
            ("failures", "pages that could not be had", &self.failures),
            ("handlers_gone", "page-fault handlers that have gone", &self.handlers_gone),
        ];
        registry.register("memory", "memory", &[], counters.into_iter());
        if let Some(engine) = &self.engine {
            registry.observe("fault", Arc::new(EngineMetrics(Arc::downgrade(engine))));
        }
    }

    /// Whether all of it is there, or the kernel's to give: what it has no page of is zero.
    #[must_use]
    pub fn is_unserved(&self) -> bool {
        self.engine.is_none() && self.handed.is_none()
    }

    /// Waits for the pages at these addresses, which this process touches next: touching one that cannot be had would
    /// end it before anybody is told, and one that does not come would be waited for without end.
    ///
    /// # Errors
    ///
    /// [`MemoryError::Lost`], or [`MemoryError::Late`].
    pub fn have(&self, addresses: &[GuestAddress]) -> Result<(), MemoryError> {
        let pages: Vec<_> = addresses
            .iter()
            .filter_map(|address| page_at(&self.ram, *address))
            .map(PageIndex::alone)
            .collect();
        let (ram, (sender, answer)) = (self.ram.clone(), sync_channel(1));
        // A thread of its own, which stays where the page does not come, and goes with the process.
        thread::Builder::new().name("memory-wait".to_owned()).spawn(move || {
            let mut bytes = vec![0; usize::try_from(PageIndex(1).offset()).expect("a page fits")];
            let had = pages.iter().try_for_each(|page| ram.copy_out(&[*page], &mut bytes));
            // Nobody waits for it any more where it came too late.
            let _ = sender.send(had);
        })?;
        match answer.recv_timeout(PAGE_TIMEOUT) {
            Ok(had) => Ok(had?),
            Err(_) => Err(MemoryError::Late),
        }
    }

    /// The RAM.
    #[must_use]
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// The hand-over, where another process serves the RAM.
    pub fn handed_mut(&mut self) -> Option<&mut Handed> {
        self.handed.as_mut()
    }

    /// Why the guest cannot go on, where the engine has said so.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        failure_of(self.engine.as_deref()?)
    }

    /// The same, for who knows that there is something the matter, and may be earlier than the engine's word.
    #[must_use]
    pub fn awaited_failure(&self) -> Option<String> {
        let engine = self.engine.as_deref()?;
        let mut failed = [PollFd::from_borrowed_fd(engine.failure_fd(), PollFlags::IN)];
        // Interrupted or over, what matters is what the engine says now.
        let _ = poll(&mut failed, Timespec::try_from(WORD_TIMEOUT).ok().as_ref());
        failure_of(engine)
    }
}

/// Follows writes to `ram` in `way`, if at all; `is_registered` is whether a userfaultfd that notes them has it.
fn changes(ram: &GuestRam, way: Option<TrackWrites>, is_registered: bool) -> Result<Tracker, TrackError> {
    match way {
        Some(way) => Tracker::start(ram, way, is_registered),
        None => Tracker::resident(ram),
    }
}

fn failure_of(engine: &FaultEngine) -> Option<String> {
    match engine.status() {
        Status::Failed(failure) => Some(describe(&failure, engine.ram())),
        Status::Serving | Status::Stopped => None,
    }
}

/// A failure in one line, with where it is as the guest knows it.
fn describe(failure: &Failure, ram: &GuestRam) -> String {
    match guest_address(ram, failure.pages.start) {
        Some(address) if failure.pages != ram.pages() => {
            format!("guest memory at {:#x}: {failure}", address.raw_value())
        }
        _ => format!("guest memory: {failure}"),
    }
}

/// Where a guest has a page of its RAM.
#[must_use]
pub fn guest_address(ram: &GuestRam, page: PageIndex) -> Option<GuestAddress> {
    let offset = page.offset();
    ram.regions().iter().find_map(|region| {
        let inside = offset.checked_sub(region.offset_in_file())?;
        (inside < region.range().size_bytes).then(|| region.range().gpa.unchecked_add(inside))
    })
}

/// The page of RAM that a guest has at `address`, if there is one.
fn page_at(ram: &GuestRam, address: GuestAddress) -> Option<PageIndex> {
    ram.regions().iter().find_map(|region| {
        let inside = address.0.checked_sub(region.range().gpa.0)?;
        let is_there = inside < region.range().size_bytes;
        is_there.then(|| PageIndex::at_offset(region.offset_in_file() + inside))
    })
}

/// What fresh memory is made of. Nothing yet needs it to be shared with another process.
#[must_use]
pub fn backing(huge_pages: HugePages) -> Backing {
    match huge_pages {
        HugePages::None => Backing::Anonymous { transparent_huge_pages: false },
        HugePages::Transparent => Backing::Anonymous { transparent_huge_pages: true },
        HugePages::Hugetlb2M => Backing::Hugetlb2M,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_where_its_region_is() {
        let range = |gpa, size_bytes| RamRange { gpa: GuestAddress(gpa), size_bytes };
        let ranges = [range(0, 4 << 20), range(1 << 32, 2 << 20)];
        let ram = GuestRam::new(&ranges, Backing::Anonymous { transparent_huge_pages: false }).unwrap();
        let address = |page| guest_address(&ram, PageIndex(page)).map(|address| address.0);
        assert_eq!([0, 1023].map(address), [Some(0), Some(0x3f_f000)]);
        assert_eq!([1024, 1535].map(address), [Some(1 << 32), Some((1 << 32) + 0x1f_f000)]);
        assert_eq!(address(1536), None);
        let page = |address| page_at(&ram, GuestAddress(address)).map(|page| page.0);
        assert_eq!([0x3f_f123, (1 << 32) + 0x1f_f000].map(page), [Some(1023), Some(1535)]);
        assert_eq!([4 << 20, (1 << 32) + (2 << 20)].map(page), [None; 2]);
    }
}
