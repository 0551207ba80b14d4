//! A thread that walks through memory from its start to its end, and what comes with each fault.

use std::time::Instant;

use memory::fault::{AroundPolicy, FaultEngine, Options};
use memory::source::{PageReader, Reading};

use crate::options::Effort;
use crate::ram::{HUGE, Memory, PAGES_PER_MIB, ram, touch, word_of};
use crate::report::Section;
use crate::row::{Ratio, Row, Unit};

/// The rows of this part.
pub(crate) fn measure(effort: &Effort) -> Section {
    let mib = effort.walk_mib;
    let memory = Memory::full(mib);
    let ways =
        [(AroundPolicy::Off, false), (AroundPolicy::default(), false), (AroundPolicy::default(), true)];
    let mut figures = vec![Vec::new(); ways.len()];
    for round in 0..=effort.rounds {
        let times = ways.map(|(around, fills)| walk(&memory, mib, around, fills));
        // The first meets cold code and a kernel without free pages at hand.
        if round > 0 {
            figures.iter_mut().zip(times).for_each(|(figure, time)| figure.push(time));
        }
    }
    let [off, adaptive, moved] = <[Vec<f64>; 3]>::try_from(figures).expect("as many figures as ways");
    let beside = ("nothing around", off);
    let row =
        |name: &str, times| Row::beside(name, Unit::Milliseconds, times, beside.clone(), Ratio::TimesFaster);
    let rows = vec![
        row("fault-around as by default, by COPY", adaptive),
        row("and a filler, huge pages by MOVE", moved),
    ];
    let title = format!("A thread that walks through {mib} MiB, {} rounds, image on tmpfs", effort.rounds);
    Section { title, rows }
}

/// Milliseconds.
fn walk(memory: &Memory, mib: u64, around: AroundPolicy, fills: bool) -> f64 {
    let options = Options { around, ..Options::default() };
    let source = Box::new(Reading::new(memory.reader()));
    let reader = fills.then(|| Box::new(memory.reader()) as Box<dyn PageReader>);
    let engine = FaultEngine::start(ram(HUGE, mib), source, reader, &options).expect("an engine starts");
    let start = Instant::now();
    for page in 0..mib * PAGES_PER_MIB {
        assert_eq!(touch(engine.ram(), page), word_of(page), "page {page} is not what the image has");
    }
    start.elapsed().as_secs_f64() * 1e3
}
