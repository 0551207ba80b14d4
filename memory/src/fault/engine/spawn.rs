//! Starting the threads of an engine.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::Options;
use crate::fault::around::FaultAround;
use crate::fault::assemble::Assembly;
use crate::fault::fill::{FillOptions, FillQueue, Filler, FillerThread};
use crate::fault::handler::Handler;
use crate::fault::locality::Whereabouts;
use crate::fault::order::Inbox;
use crate::fault::pre_image::PreImage;
use crate::fault::record::Recorder;
use crate::fault::scheduler::Scheduler;
use crate::fault::serve::{Ended, Server};
use crate::fault::served::ServedMemory;
use crate::fault::shared::Shared;
use crate::page::PageSize;
use crate::source::{PageReader, PageSource};
use crate::threads;
use crate::uffd::Feature;

pub(super) fn filler(
    shared: &Arc<Shared>,
    reader: Box<dyn PageReader>,
    options: FillOptions,
    memory: &ServedMemory,
) -> io::Result<FillerThread> {
    let queue = Arc::new(FillQueue::new(shared, options, memory.features.has(Feature::MOVE)));
    FillerThread::spawn(Filler::new(Arc::clone(shared), queue, reader, options)?)
}

/// What the thread that serves is given, but for what all threads share, and the source.
pub(super) struct Parts {
    pub(super) inbox: Inbox,
    pub(super) queue: Option<Arc<FillQueue>>,
    pub(super) recorder: Option<Arc<Recorder>>,
    /// Whether a page can be made a memory error.
    pub(super) poisons: bool,
}

pub(super) fn server(
    shared: Arc<Shared>,
    source: Box<dyn PageSource>,
    parts: Parts,
    options: &Options,
) -> io::Result<JoinHandle<Ended>> {
    let options = *options;
    let Parts { inbox, queue, recorder, poisons } = parts;
    let pre_image = PreImage::new(shared.registered.ram().backing())?;
    threads::builder().name("fault".to_owned()).spawn(move || {
        // Somebody waits whenever it is woken. Where the host does not let it, faults take longer beside other work.
        let _ = threads::be_urgent();
        let handler = Handler { recorder, poisons, ..handler(shared, queue, pre_image, &options) };
        Server { source, inbox, handler, requests: Vec::new(), spins: 0, source_gone: None }.run()
    })
}

/// To be called on the thread that serves, whose whereabouts it notes.
fn handler(
    shared: Arc<Shared>,
    queue: Option<Arc<FillQueue>>,
    pre_image: PreImage,
    options: &Options,
) -> Handler {
    let (backing, pages) = (shared.registered.ram().backing(), shared.registered.ram().pages());
    let granule = backing.page_size();
    let mut limits = options.limits;
    if granule == PageSize::Huge2M {
        limits.demand_pages_max = limits.demand_pages_max.min(Assembly::DEMANDED_MAX);
    }
    Handler {
        shared,
        scheduler: Scheduler::new(limits, granule),
        around: FaultAround::new(options.around, pages.count),
        queue,
        events: Default::default(),
        waits: Default::default(),
        assembly: Default::default(),
        observer: None,
        pre_image,
        unannounced: Vec::new(),
        whereabouts: Whereabouts::new(options.locality),
        stale: Default::default(),
        last_thread: None,
        runs: Vec::new(),
        answer_limit: Duration::from_millis(limits.answer_ticks_max),
        shares_writes: backing.shares_writes(),
        recorder: None,
        poisons: false,
        granule,
        started: Instant::now(),
    }
}
