//! Memory whose content is in a memfd already, as a clone's is: mapped by CONTINUE, one fault after the other and in bulk.
//!
//! ```text
//!   template ─ memfd, all written ─┬─ mapped shared      a page is mapped, and is the same for all
//!                                  └─ mapped privately   the same, until somebody writes it
//! ```
//!
//! Beside CONTINUE by hand stands what it spares: COPY of an image on tmpfs into as much memory of the same kind. The
//! contenders take turns within each round, in an order that changes.

use std::os::fd::OwnedFd;
use std::thread;
use std::time::Instant;

use memory::fault::{AroundPolicy, FaultEngine, Options};
use memory::source::{InPlaceSource, PageReader, PageSource, Reading};
use memory::uffd::{self, Feature};
use memory::{Backing, GuestRam, RamRange, Sharing};
use vm_memory::GuestAddress;

use crate::bare::Bare;
use crate::fill::{CHUNK_BYTES, Chunks, filled, throughput, wait_until_filled, warm};
use crate::options::Effort;
use crate::place::{on, pin};
use crate::ram::{MEMFD, MIB, Memory, PAGES_PER_MIB, Page, ram, shuffled, touch, touch_each, word_of};
use crate::report::Section;
use crate::row::{Promise, Ratio, Row, Unit};
use crate::samples::Samples;

const P50_MAX: Promise = Promise::AtMost(1.2);
/// CONTINUE is for what it spares. Each page is asked about before, which takes as long as mapping it.
const OF_COPY: Promise = Promise::AtLeast(0.9);
const SHARINGS: [(Sharing, &str); 2] =
    [(Sharing::Shared, "shared memfd"), (Sharing::Private, "private mapping of a memfd")];

/// Who places, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Engine,
    Bare,
    EngineCopies,
}

const WAYS: [Way; 3] = [Way::Engine, Way::Bare, Way::EngineCopies];

/// One sample of each round, in the order of [`WAYS`].
type Figures = [Vec<f64>; WAYS.len()];

/// The rows of this part.
pub(crate) fn measure(effort: &Effort, processors: &[usize]) -> Section {
    let title = format!(
        "Memory that a memfd has: {} rounds, {} faults on the same processor in random order, and {} MiB at once",
        effort.rounds,
        effort.demand_mib * PAGES_PER_MIB,
        effort.fill_mib
    );
    let known = uffd::probe().expect("this kernel has userfaultfd").features;
    if !known.has(Feature::MINOR_SHMEM) {
        let reason = "this kernel tells of no faults on what its page cache has (Linux 5.14)";
        return Section { title, rows: vec![Row::not_measured("CONTINUE", reason)] };
    }
    let faults = Template::new(effort.demand_mib);
    let bulk = Template::new(effort.fill_mib);
    let mut rows = Vec::new();
    for (sharing, name) in SHARINGS {
        let times = rounds(effort.rounds, |way| faults.fault_us(way, sharing, &processors[..1]));
        rows.extend(fault_rows(name, times));
        let rates = rounds(effort.rounds, |way| bulk.bulk_mib_s(way, sharing));
        rows.extend(bulk_rows(name, rates));
    }
    Section { title, rows }
}

fn rounds(count: usize, mut run: impl FnMut(Way) -> f64) -> Figures {
    let mut figures = Figures::default();
    for round in 0..=count {
        for turn in 0..WAYS.len() {
            let way = (turn + round) % WAYS.len();
            let sample = run(WAYS[way]);
            // The first round meets cold code and a kernel without free pages at hand.
            if round > 0 {
                figures[way].push(sample);
            }
        }
    }
    figures
}

fn fault_rows(memory: &str, [engine, bare, copied]: Figures) -> [Row; 2] {
    let row = |beside, ratio| {
        let name = format!("{memory}, one fault, p50");
        Row::beside(name, Unit::Microseconds, engine.clone(), beside, ratio)
    };
    [
        row(("bare CONTINUE, in read", bare), Ratio::Of).promised(P50_MAX),
        row(("engine, COPY of an image", copied), Ratio::TimesFaster),
    ]
}

fn bulk_rows(memory: &str, [engine, bare, copied]: Figures) -> [Row; 2] {
    let row = |beside| {
        let name = format!("{memory}, in bulk");
        Row::beside(name, Unit::MibPerSecond, engine.clone(), beside, Ratio::Of)
    };
    [row(("raw CONTINUE of 2 MiB", bare)), row(("engine, COPY of an image", copied)).promised(OF_COPY)]
}

/// A memfd that has what clones begin with, and the same as an image.
struct Template {
    ram: GuestRam,
    image: Memory,
    mib: u64,
}

impl Template {
    fn new(mib: u64) -> Self {
        let (ram, image) = (ram(MEMFD, mib), Memory::full(mib));
        let mut reader = image.reader();
        let mut bytes: Page = [0; 4096];
        for page in ram.pages().pages() {
            reader.read(page.alone(), &mut bytes).expect("the image has what is in the template");
            ram.write_cached(page.alone(), &bytes).expect("the host has room for the template");
        }
        Self { ram, image, mib }
    }

    fn memfd(&self) -> OwnedFd {
        let memfd = self.ram.memfd().expect("the template is a memfd");
        memfd.try_clone_to_owned().expect("the host has a descriptor for each clone")
    }

    /// Memory over the memfd, of which nothing is mapped.
    fn cloned(&self, sharing: Sharing) -> GuestRam {
        let range = RamRange { gpa: GuestAddress(0), size_bytes: self.mib * MIB };
        GuestRam::over_memfd(&[range], self.memfd(), sharing).expect("the memfd is as large as the clone")
    }

    /// The median of the faults of all pages, in microseconds.
    fn fault_us(&self, way: Way, sharing: Sharing, processor: &[usize]) -> f64 {
        let pages = shuffled(self.mib * PAGES_PER_MIB);
        match way {
            Way::Engine => touch_all(self.engine(sharing).ram(), &pages, processor),
            Way::Bare => {
                let bare = Bare::cached(self.cloned(sharing));
                thread::scope(|scope| {
                    scope.spawn(|| {
                        pin(processor);
                        bare.serve_cached(pages.len());
                    });
                    touch_all(bare.ram(), &pages, processor)
                })
            }
            Way::EngineCopies => {
                let source = Box::new(Reading::new(self.image.reader()));
                touch_all(start(ram(backing(sharing), self.mib), source).ram(), &pages, processor)
            }
        }
    }

    /// MiB a second, from the order until all is there.
    fn bulk_mib_s(&self, way: Way, sharing: Sharing) -> f64 {
        warm(self.mib);
        match way {
            Way::Engine => self.engine_mib_s(sharing),
            Way::Bare => self.bare_mib_s(sharing),
            Way::EngineCopies => filled(backing(sharing), self.mib, &self.image, Chunks::Missing),
        }
    }

    fn engine_mib_s(&self, sharing: Sharing) -> f64 {
        let engine = self.engine(sharing);
        let pages = engine.ram().pages();
        let start = Instant::now();
        engine.prefetch(pages);
        wait_until_filled(&engine, pages);
        let took = start.elapsed();
        assert_is_image(engine.ram());
        throughput(self.mib, took)
    }

    fn bare_mib_s(&self, sharing: Sharing) -> f64 {
        let bare = Bare::cached(self.cloned(sharing));
        let start = Instant::now();
        for chunk in 0..self.mib * MIB / CHUNK_BYTES {
            bare.continue_at(chunk * CHUNK_BYTES, CHUNK_BYTES);
        }
        let took = start.elapsed();
        assert_is_image(bare.ram());
        throughput(self.mib, took)
    }

    /// An engine that maps what the memfd has.
    fn engine(&self, sharing: Sharing) -> FaultEngine {
        start(self.cloned(sharing), Box::new(InPlaceSource::new(self.memfd())))
    }
}

fn start(ram: GuestRam, source: Box<dyn PageSource>) -> FaultEngine {
    let options = Options { around: AroundPolicy::Off, ..Options::default() };
    FaultEngine::start(ram, source, None, &options).expect("an engine starts")
}

/// Memory that is mapped alike, and has nothing.
fn backing(sharing: Sharing) -> Backing {
    match sharing {
        Sharing::Shared => MEMFD,
        Sharing::Private => Backing::MemfdPrivate,
    }
}

/// The median of what each takes, in microseconds, from a thread that stays on `processor`.
fn touch_all(ram: &GuestRam, pages: &[u64], processor: &[usize]) -> f64 {
    let mut latencies = Vec::with_capacity(pages.len());
    let is_right = on(processor, || touch_each(ram, pages, word_of, &mut latencies));
    assert!(is_right, "a page of a clone is not what the template has");
    Samples::new(latencies.into_iter().map(|latency| latency as f64 / 1e3).collect()).median()
}

fn assert_is_image(ram: &GuestRam) {
    for page in (0..ram.pages().count).step_by(97) {
        assert_eq!(touch(ram, page), word_of(page), "page {page} of a clone is not what the template has");
    }
}
