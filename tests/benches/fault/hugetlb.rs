//! Memory of huge pages of 2 MiB from the host's pool: a fault brings all of one, and it is copied in whole.
//!
//! ```text
//!   raw      mapped file, or a buffer ─COPY of 2 MiB▶ guest
//!   demand   file on tmpfs ─read▶ buffer, piece by piece ─▶ the whole page ─COPY▶ guest
//!   fill     file on tmpfs ─read▶ buffer ─COPY▶ guest
//! ```
//!
//! The pool is enlarged for as long as this takes, and is given back however it ends. A host that does not give the
//! pages has no figures.

use std::thread;

use memory::fault::{AroundPolicy, FaultEngine, Options};
use memory::source::Reading;
use memory::{Backing, GuestRam};
use tests::host::HugePages;

use crate::bare::{Bare, Wait};
use crate::fill::{CHUNK_BYTES, CHUNK_STEP, Chunks, filled, raw_hot, raw_mapped};
use crate::options::Effort;
use crate::place::{on, pin};
use crate::ram::{HUGE, MIB, Memory, ram, touch_each, word_of};
use crate::report::Section;
use crate::row::{Promise, Ratio, Row, Unit};
use crate::samples::Samples;

const HUGETLB: Backing = Backing::Hugetlb2M;
const OF_RAW: Promise = Promise::AtLeast(0.9);

/// One sample of each in every round: microseconds, and MiB a second.
#[derive(Default)]
struct Figures {
    fault: Vec<f64>,
    fault_raw: Vec<f64>,
    filled: Vec<f64>,
    filled_mapped: Vec<f64>,
    filled_hot: Vec<f64>,
    moved: Vec<f64>,
}

/// The rows of this part.
pub(crate) fn measure(effort: &Effort, processors: &[usize]) -> Section {
    let mib = effort.fill_mib;
    let title = format!(
        "Huge pages of hugetlb, 2 MiB each: {} rounds, {} MiB by faults on the same processor, and at once",
        effort.rounds, mib
    );
    let pages = mib * MIB / CHUNK_BYTES;
    let Some(_pool) = HugePages::reserve(pages) else {
        let reason = format!(
            "this host gives no {pages} huge pages of 2 MiB: be root, and have as much memory free in one piece"
        );
        return Section { title, rows: vec![Row::not_measured("hugetlb", reason)] };
    };
    let memory = Memory::full(mib);
    let mut figures = Figures::default();
    for round in 0..=effort.rounds {
        let one = figures_of(&memory, mib, &processors[..1]);
        // The first round meets cold code.
        if round > 0 {
            figures.add(one);
        }
    }
    Section { title, rows: figures.rows() }
}

fn figures_of(memory: &Memory, mib: u64, processor: &[usize]) -> Figures {
    Figures {
        fault: vec![fault_us(memory, mib, processor)],
        fault_raw: vec![bare_fault_us(memory, mib, processor)],
        filled: vec![filled(HUGETLB, mib, memory, Chunks::Missing)],
        filled_mapped: vec![raw_mapped(HUGETLB, mib, memory)],
        filled_hot: vec![raw_hot(HUGETLB, mib)],
        moved: vec![filled(HUGE, mib, memory, Chunks::Missing)],
    }
}

impl Figures {
    fn add(&mut self, one: Self) {
        self.fault.extend(one.fault);
        self.fault_raw.extend(one.fault_raw);
        self.filled.extend(one.filled);
        self.filled_mapped.extend(one.filled_mapped);
        self.filled_hot.extend(one.filled_hot);
        self.moved.extend(one.moved);
    }

    fn rows(self) -> Vec<Row> {
        let fault = "one fault, which brings 2 MiB, image on tmpfs, p50";
        let fault_raw = ("bare COPY, the mapped file", self.fault_raw);
        let fill =
            |beside| Row::beside("filling", Unit::MibPerSecond, self.filled.clone(), beside, Ratio::Of);
        vec![
            Row::beside(fault, Unit::Microseconds, self.fault, fault_raw, Ratio::Of),
            fill(("raw COPY, the mapped file", self.filled_mapped)).promised(OF_RAW),
            fill(("raw COPY, buffer", self.filled_hot)),
            fill(("engine, anonymous by MOVE", self.moved)),
        ]
    }
}

fn fault_us(memory: &Memory, mib: u64, processor: &[usize]) -> f64 {
    let options = Options { around: AroundPolicy::Off, ..Options::default() };
    let source = Box::new(Reading::new(memory.reader()));
    let engine = FaultEngine::start(ram(HUGETLB, mib), source, None, &options).expect("an engine starts");
    touch_all(engine.ram(), processor)
}

fn bare_fault_us(memory: &Memory, mib: u64, processor: &[usize]) -> f64 {
    let bare = Bare::missing(ram(HUGETLB, mib), Wait::Blocking);
    let mapped = memory.map(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            pin(processor);
            bare.serve_huge_mapped(&mapped, mib * MIB / CHUNK_BYTES);
        });
        touch_all(bare.ram(), processor)
    })
}

/// The median of what each huge page takes, in microseconds, from a thread that stays on `processor`.
fn touch_all(ram: &GuestRam, processor: &[usize]) -> f64 {
    // Somewhere in each.
    let pages: Vec<_> = (0..ram.pages().count).step_by(CHUNK_STEP).map(|page| page + 300).collect();
    let mut latencies = Vec::with_capacity(pages.len());
    let is_right = on(processor, || touch_each(ram, &pages, word_of, &mut latencies));
    assert!(is_right, "a page is not what the image has");
    Samples::new(latencies.into_iter().map(|latency| latency as f64 / 1e3).collect()).median()
}
