//! What an engine takes for itself: its heap by count, and what the host sees of it.
//!
//! The guest has 4 GiB of memfd, so that its pages are no private memory of the process and what is left is the
//! engine's. Under load means: several threads fault all over it, with fault-around, while the filler fills what it
//! is told to. The staging buffer of 2 MiB is a mapping of its own, and not in the heap.

use std::fs;
use std::thread;

use memory::fault::{FaultEngine, Options};
use memory::source::Reading;
use memory::{PageIndex, PageRange};

use crate::heap;
use crate::options::Effort;
use crate::ram::{HOT_WORD, HotReader, MEMFD, MIB, PAGES_PER_MIB, hot_page, ram, touch};
use crate::report::Section;
use crate::row::{Promise, Row, Unit};

const GUEST_MIB: u64 = 4096;
const THREADS: u64 = 4;
/// Two bits for each page, and 1 MiB.
const HEAP_KIB_MAX: Promise = Promise::AtMost((GUEST_MIB * PAGES_PER_MIB * 2 / 8 + MIB) as f64 / 1024.0);
const TOUCHED_MIB: u64 = 64;

/// The rows of this part.
pub(crate) fn measure(effort: &Effort) -> Section {
    let (heaps, residents) = (0..effort.rounds.min(3)).map(|_| run()).unzip();
    let title = format!(
        "What the engine takes for {GUEST_MIB} MiB of guest memory, {THREADS} threads faulting all over it; promised \
         are two bits a page and 1 MiB, staging aside"
    );
    let resident = "private memory that is resident, staging and stacks too";
    let rows = vec![
        Row::new("heap, at its peak", Unit::Kibibytes, heaps).promised(HEAP_KIB_MAX),
        Row::new(resident, Unit::Kibibytes, residents),
    ];
    Section { title, rows }
}

/// KiB of heap, and of private memory.
fn run() -> (f64, f64) {
    let ram = ram(MEMFD, GUEST_MIB);
    let anonymous_before = anonymous_kib();
    let heap_before = heap::start();
    let source = Box::new(Reading::new(HotReader(hot_page())));
    let reader = Box::new(HotReader(hot_page()));
    let engine =
        FaultEngine::start(ram.clone(), source, Some(reader), &Options::default()).expect("an engine starts");
    let pages = ram.pages().count;
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let ram = &ram;
            scope.spawn(move || {
                for nth in 0..TOUCHED_MIB {
                    let page = (nth * THREADS + thread).wrapping_mul(0x9e37_79b1) % pages;
                    assert_eq!(touch(ram, page), HOT_WORD, "page {page} is not what the source says");
                }
            });
        }
        for nth in 0..TOUCHED_MIB {
            engine.prefetch(PageRange { start: PageIndex(nth * PAGES_PER_MIB * 7), count: 64 });
        }
    });
    let heap = heap::peak() - heap_before;
    let anonymous = anonymous_kib() - anonymous_before;
    (heap as f64 / 1024.0, anonymous)
}

/// Resident private memory of this process, from `/proc/self/status`.
fn anonymous_kib() -> f64 {
    let status = fs::read_to_string("/proc/self/status").expect("/proc is mounted");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
    kib.expect("the kernel tells RssAnon")
}
