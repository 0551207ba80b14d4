//! Filling memory in bulk: the filler beside a loop of `UFFDIO_COPY` over 2 MiB.
//!
//! ```text
//!   raw        mapped file ─COPY▶ guest; and a buffer that stays in the cache ─COPY▶ guest
//!   by COPY    file on tmpfs ─read▶ buffer ─COPY▶ guest              where a chunk has some pages already
//!   by MOVE    file on tmpfs ─read▶ huge page ─MOVE▶ guest           where it misses every page
//!   zero       hole of the file ─ZEROPAGE▶ guest
//! ```
//!
//! Each time is from the order to fill until no page is missing. Against the mapped file it is seen what the filler
//! loses; against the buffer, what a source in the page cache costs, too.

use std::thread;
use std::time::{Duration, Instant};

use memory::fault::{AroundPolicy, FaultEngine, Options};
use memory::source::{PageReader, Reading};
use memory::{Backing, PageIndex, PageRange};
use vm_memory::{Bytes, GuestAddress};

use crate::bare::{Bare, Wait};
use crate::options::Effort;
use crate::ram::{ANONYMOUS, HUGE, MEMFD, MIB, Memory, PAGE_BYTES, PAGES_PER_MIB, ram, touch, word_of};
use crate::report::Section;
use crate::row::{Promise, Ratio, Row, Unit};

pub(crate) const CHUNK_BYTES: u64 = 2 * MIB;
pub(crate) const CHUNK_STEP: usize = (CHUNK_BYTES / PAGE_BYTES) as usize;
/// How often it is looked whether all is there.
const LOOK_INTERVAL: Duration = Duration::from_micros(100);
const WARM_UPS_MAX: usize = 6;
const LIMIT: Duration = Duration::from_secs(60);
const OF_RAW: Promise = Promise::AtLeast(0.9);
const MOVE_OF_RAW: Promise = Promise::AtLeast(2.5);
const ZERO_OF_RAW: Promise = Promise::AtLeast(5.0);

/// MiB a second, one sample of each in every round.
#[derive(Default)]
struct Figures {
    hot: Vec<f64>,
    hot_memfd: Vec<f64>,
    mapped: Vec<f64>,
    mapped_memfd: Vec<f64>,
    moved: Vec<f64>,
    copied: Vec<f64>,
    cached: Vec<f64>,
    zero: Vec<f64>,
}

/// The rows of this part.
pub(crate) fn measure(effort: &Effort) -> Section {
    let mib = effort.fill_mib;
    let (full, zero) = (Memory::full(mib), Memory::zero(mib));
    let mut figures = Figures::default();
    for round in 0..=effort.rounds {
        let one = Figures {
            hot: vec![raw_hot(ANONYMOUS, mib)],
            moved: vec![filled(HUGE, mib, &full, Chunks::Missing)],
            mapped: vec![raw_mapped(ANONYMOUS, mib, &full)],
            copied: vec![filled(ANONYMOUS, mib, &full, Chunks::Begun)],
            zero: vec![filled(ANONYMOUS, mib, &zero, Chunks::Missing)],
            hot_memfd: vec![raw_hot(MEMFD, mib)],
            cached: vec![filled(MEMFD, mib, &full, Chunks::Missing)],
            mapped_memfd: vec![raw_mapped(MEMFD, mib, &full)],
        };
        // The first meets cold code.
        if round > 0 {
            figures.add(one);
        }
    }
    let title = format!(
        "Filling {mib} MiB from a file on tmpfs, beside raw COPY of 2 MiB: of the same file, mapped, and of a buffer \
         that stays in the cache; {} rounds",
        effort.rounds
    );
    Section { title, rows: figures.rows() }
}

impl Figures {
    fn add(&mut self, one: Self) {
        self.hot.extend(one.hot);
        self.hot_memfd.extend(one.hot_memfd);
        self.mapped.extend(one.mapped);
        self.mapped_memfd.extend(one.mapped_memfd);
        self.moved.extend(one.moved);
        self.copied.extend(one.copied);
        self.cached.extend(one.cached);
        self.zero.extend(one.zero);
    }

    fn rows(self) -> Vec<Row> {
        let row = |name: &str, engine: &Vec<f64>, beside: (&'static str, &Vec<f64>)| {
            let beside = (beside.0, beside.1.clone());
            Row::beside(name, Unit::MibPerSecond, engine.clone(), beside, Ratio::Of)
        };
        let (hot, mapped) = (("raw COPY, buffer", &self.hot), ("raw COPY, the mapped file", &self.mapped));
        let hot_memfd = ("raw COPY, buffer", &self.hot_memfd);
        let mapped_memfd = ("raw COPY, the mapped file", &self.mapped_memfd);
        let [copied, cached] = ["anonymous, chunks begun, by COPY", "memfd, by its page cache"];
        let moved = "anonymous, by MOVE; a 2nd thread clears";
        vec![
            row(copied, &self.copied, mapped).promised(OF_RAW),
            row(copied, &self.copied, hot),
            row(cached, &self.cached, mapped_memfd).promised(OF_RAW),
            row(cached, &self.cached, hot_memfd),
            row(moved, &self.moved, mapped).promised(MOVE_OF_RAW),
            row(moved, &self.moved, hot),
            row("anonymous, holes of the file, zero pages", &self.zero, hot).promised(ZERO_OF_RAW),
        ]
    }
}

/// Has the host back memory for what is measured next: a virtual machine may have given free pages back to its own
/// host, and each would come with a fault there, the more so as huge pages. It does so until that makes no difference.
pub(crate) fn warm(mib: u64) {
    let mut last = Duration::MAX;
    for _ in 0..WARM_UPS_MAX {
        let ram = ram(HUGE, mib);
        let start = Instant::now();
        for page in 0..mib * PAGES_PER_MIB {
            ram.write_obj(1_u64, GuestAddress(page * PAGE_BYTES)).expect("the page is in the RAM");
        }
        let took = start.elapsed();
        if took > last.mul_f64(0.8) {
            break;
        }
        last = took;
    }
}

pub(crate) fn raw_hot(backing: Backing, mib: u64) -> f64 {
    warm(mib);
    let bare = Bare::missing(ram(backing, mib), Wait::Blocking);
    let buffer = vec![0x77_u8; usize::try_from(CHUNK_BYTES).expect("2 MiB fit an address space")];
    let start = Instant::now();
    for chunk in 0..mib * MIB / CHUNK_BYTES {
        bare.copy_at(chunk * CHUNK_BYTES, &buffer);
    }
    let took = start.elapsed();
    assert_eq!(touch(bare.ram(), 1), 0x7777_7777_7777_7777, "the buffer is what was copied");
    throughput(mib, took)
}

pub(crate) fn raw_mapped(backing: Backing, mib: u64, memory: &Memory) -> f64 {
    warm(mib);
    let bare = Bare::missing(ram(backing, mib), Wait::Blocking);
    let mapped = memory.map(false);
    let start = Instant::now();
    for chunk in 0..mib * MIB / CHUNK_BYTES {
        bare.copy_mapped(chunk * CHUNK_BYTES, &mapped, CHUNK_BYTES);
    }
    let took = start.elapsed();
    assert_eq!(touch(bare.ram(), 1), word_of(1), "the file is what was copied");
    throughput(mib, took)
}

/// What a chunk is before it is filled.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Chunks {
    /// Every page of it is missing.
    Missing,
    /// Its first page is there, so it cannot be moved in whole.
    Begun,
}

pub(crate) fn filled(backing: Backing, mib: u64, memory: &Memory, chunks: Chunks) -> f64 {
    warm(mib);
    let (engine, took) = placed(backing, mib, memory, chunks);
    for page in (0..engine.ram().pages().count).step_by(97) {
        let expected = if memory.is_zero() { 0 } else { word_of(page) };
        assert_eq!(touch(engine.ram(), page), expected, "page {page} is not what the file has");
    }
    throughput(mib, took)
}

/// An engine that has filled all its memory, and how long it took.
pub(crate) fn placed(backing: Backing, mib: u64, memory: &Memory, chunks: Chunks) -> (FaultEngine, Duration) {
    let options = Options { around: AroundPolicy::Off, ..Options::default() };
    let reader: Box<dyn PageReader> = Box::new(memory.reader());
    let source = Box::new(Reading::new(memory.reader()));
    let engine =
        FaultEngine::start(ram(backing, mib), source, Some(reader), &options).expect("an engine starts");
    let pages = engine.ram().pages();
    if chunks == Chunks::Begun {
        for page in (0..pages.count).step_by(CHUNK_STEP) {
            touch(engine.ram(), page);
        }
    }
    let start = Instant::now();
    engine.prefetch(pages);
    wait_until_filled(&engine, pages);
    let took = start.elapsed();
    assert_eq!(engine.fill_failure(), None);
    (engine, took)
}

/// The filler goes from the start to the end, so it is done when the last page is.
pub(crate) fn wait_until_filled(engine: &FaultEngine, pages: PageRange) {
    let deadline = Instant::now() + LIMIT;
    let mut from = pages.start;
    while let Some(page) = engine.map().next_missing(from, pages.end()) {
        assert!(Instant::now() < deadline, "not filled within {LIMIT:?}: {:?}", engine.fill_failure());
        from = page;
        thread::sleep(LOOK_INTERVAL);
    }
    let last = PageIndex(pages.end().0 - 1);
    while engine.map().get(last) != memory::map::PageState::Present {
        thread::yield_now();
    }
}

pub(crate) fn throughput(mib: u64, took: Duration) -> f64 {
    mib as f64 / took.as_secs_f64()
}
