//! Several threads that fault at once, as the vCPUs of a guest do: how many pages a second they get together.
//!
//! Each has a part of the memory to itself and walks it in random order. They run wherever the host puts them.

use std::thread;
use std::time::Instant;

use memory::fault::{AroundPolicy, FaultEngine, Options};
use memory::source::Reading;

use crate::options::Effort;
use crate::ram::{ANONYMOUS, Memory, PAGES_PER_MIB, ram, shuffled, touch, word_of};
use crate::report::Section;
use crate::row::{Promise, Ratio, Row, Unit};

const THREADS: [usize; 4] = [1, 2, 4, 8];
const BESIDE: [&str; 4] = ["", "1 thread", "2 threads", "4 threads"];
/// Not less than with half as many threads.
const DOES_NOT_FALL: Promise = Promise::AtLeast(1.0);

/// The rows of this part.
pub(crate) fn measure(effort: &Effort) -> Section {
    let memory = Memory::full(effort.demand_mib);
    let mut rows = Vec::new();
    for (around, name) in
        [(AroundPolicy::Off, "nothing around"), (AroundPolicy::default(), "fault-around as by default")]
    {
        let mut figures = vec![Vec::new(); THREADS.len()];
        for round in 0..=effort.rounds {
            let rates = THREADS.map(|count| pages_a_second(&memory, effort.demand_mib, count, around) / 1e3);
            // The first meets cold code.
            if round > 0 {
                figures.iter_mut().zip(rates).for_each(|(figure, rate)| figure.push(rate));
            }
        }
        rows.extend((0..THREADS.len()).map(|index| row(name, &figures, index)));
    }
    let title = format!(
        "Threads that fault at once, {} rounds over {} MiB in random order, image on tmpfs",
        effort.rounds, effort.demand_mib
    );
    Section { title, rows }
}

fn row(name: &str, figures: &[Vec<f64>], index: usize) -> Row {
    let name = format!("{} threads, {name}", THREADS[index]);
    let unit = Unit::ThousandPagesPerSecond;
    match index.checked_sub(1) {
        None => Row::new(name, unit, figures[index].clone()),
        Some(half) => {
            let beside = (BESIDE[index], figures[half].clone());
            Row::beside(name, unit, figures[index].clone(), beside, Ratio::Of).promised(DOES_NOT_FALL)
        }
    }
}

fn pages_a_second(memory: &Memory, mib: u64, threads: usize, around: AroundPolicy) -> f64 {
    let options = Options { around, ..Options::default() };
    let source = Box::new(Reading::new(memory.reader()));
    let engine = FaultEngine::start(ram(ANONYMOUS, mib), source, None, &options).expect("an engine starts");
    let pages = shuffled(mib * PAGES_PER_MIB);
    let ram = engine.ram();
    let start = Instant::now();
    thread::scope(|scope| {
        for part in pages.chunks(pages.len() / threads) {
            scope.spawn(move || {
                for page in part {
                    assert_eq!(touch(ram, *page), word_of(*page), "page {page} is not what the image has");
                }
            });
        }
    });
    pages.len() as f64 / start.elapsed().as_secs_f64()
}
