//! Writes to protected pages, and how long it takes to protect memory.

use std::io;
use std::thread;
use std::time::Instant;

use memory::fault::{FaultEngine, Options, ServedMemory, Verdict, WriteObserver};
use memory::source::ZeroSource;
use memory::{Backing, GuestRam, PageRange};
use vm_memory::{Bytes, GuestAddress};

use crate::bare::Bare;
use crate::options::Effort;
use crate::place::{on, pin};
use crate::ram::{ANONYMOUS, HUGE, PAGE_BYTES, PAGES_PER_MIB, nanoseconds, ram, shuffled};
use crate::report::Section;
use crate::row::{Ratio, Row, Unit};
use crate::samples::Samples;

/// What is in every page before it is written, and after.
const BEFORE: u64 = 7;
const AFTER: u64 = 8;

/// Keeps what was in a page, as the bare loop does.
struct Keeper(Box<[u8]>);

impl WriteObserver for Keeper {
    fn before_write(&mut self, _page: PageRange, content: io::Result<&[u8]>) -> Verdict {
        let content = content.expect("a page that is there can be read");
        assert_eq!(content[..8], BEFORE.to_le_bytes(), "a page is seen as it was before the write");
        self.0.copy_from_slice(content);
        Verdict::Allow
    }
}

fn keeper() -> Box<Keeper> {
    Box::new(Keeper(vec![0; 4096].into_boxed_slice()))
}

/// The rows of this part.
pub(crate) fn measure(effort: &Effort, processors: &[usize]) -> Section {
    let mut rows = writes(effort, processors);
    let kinds = [
        ("populated, 4 KiB pages", ANONYMOUS, true),
        ("populated, huge pages", HUGE, true),
        ("never touched", ANONYMOUS, false),
    ];
    for (name, backing, populated) in kinds {
        rows.push(arming(name, effort, backing, populated));
    }
    let title = format!("Write-protection: {} rounds of writes, fewer of arming", effort.rounds);
    Section { title, rows }
}

fn writes(effort: &Effort, processors: &[usize]) -> Vec<Row> {
    let mib = effort.demand_mib;
    let (mut engine, mut bare) = (Vec::new(), Vec::new());
    for round in 0..=effort.rounds {
        let one = (write_with_engine(mib, processors), write_with_bare(mib, processors));
        // The first meets cold code.
        if round > 0 {
            engine.push(one.0);
            bare.push(one.1);
        }
    }
    let row = |name: &str, percent: f64| {
        let of = |runs: &[Samples]| runs.iter().map(|run| run.percentile(percent)).collect();
        let beside = ("bare loop, in read", of(&bare));
        Row::beside(name, Unit::Microseconds, of(&engine), beside, Ratio::Of)
    };
    vec![row("one write to a protected page, p50", 50.0), row("one write to a protected page, p99", 99.0)]
}

fn write_with_engine(mib: u64, processors: &[usize]) -> Samples {
    let engine = protectable(ANONYMOUS, mib, true);
    engine.protect(keeper()).expect("all can be protected");
    let latencies = write_each(engine.ram(), mib, processors);
    assert_eq!(engine.report().counts.write_protected, mib * PAGES_PER_MIB, "each write faulted once");
    latencies
}

fn write_with_bare(mib: u64, processors: &[usize]) -> Samples {
    let ram = ram(ANONYMOUS, mib);
    populate(&ram, mib);
    let bare = Bare::protected(ram);
    thread::scope(|scope| {
        scope.spawn(|| {
            pin(&processors[..1]);
            bare.serve_writes(usize::try_from(mib * PAGES_PER_MIB).expect("so many pages fit memory"));
        });
        write_each(bare.ram(), mib, processors)
    })
}

/// An engine over memory that is there.
fn protectable(backing: Backing, mib: u64, populated: bool) -> FaultEngine {
    let ram = ram(backing, mib);
    if populated {
        populate(&ram, mib);
    }
    let memory = ServedMemory::new(ram, true).expect("memory can be registered");
    if populated {
        memory.assume_present(memory.ram().pages());
    }
    let options = Options { write_protect: true, ..Options::default() };
    FaultEngine::resume(memory, Box::<ZeroSource>::default(), None, &options).expect("an engine starts")
}

fn populate(ram: &GuestRam, mib: u64) {
    (0..mib * PAGES_PER_MIB).for_each(|page| write(ram, page, BEFORE));
}

fn write(ram: &GuestRam, page: u64, value: u64) {
    ram.write_obj(value, GuestAddress(page * PAGE_BYTES)).expect("the page is in the RAM");
}

/// Microseconds.
fn write_each(ram: &GuestRam, mib: u64, processors: &[usize]) -> Samples {
    let pages = shuffled(mib * PAGES_PER_MIB);
    let mut latencies = Vec::with_capacity(pages.len());
    on(&processors[..1], || {
        for page in pages {
            let start = Instant::now();
            write(ram, page, AFTER);
            latencies.push(nanoseconds(start.elapsed()) as f64 / 1e3);
        }
    });
    Samples::new(latencies)
}

/// Until no write can land that nobody is asked about.
fn arming(name: &str, effort: &Effort, backing: Backing, populated: bool) -> Row {
    let mib = effort.arm_mib;
    let (mut armed, mut raw) = (Vec::new(), Vec::new());
    for _ in 0..effort.rounds.div_ceil(3) {
        let engine = protectable(backing, mib, populated);
        let start = Instant::now();
        engine.protect(keeper()).expect("all can be protected");
        armed.push(start.elapsed().as_secs_f64() * 1e3);
        drop(engine);
        raw.push(arm_raw(backing, mib, populated));
    }
    let name = format!("protecting {mib} MiB, {name}");
    Row::beside(name, Unit::Milliseconds, armed, ("one raw WRITEPROTECT", raw), Ratio::Of)
}

fn arm_raw(backing: Backing, mib: u64, populated: bool) -> f64 {
    let ram = ram(backing, mib);
    if populated {
        populate(&ram, mib);
    }
    let bare = Bare::protectable(ram);
    let start = Instant::now();
    bare.protect_all();
    start.elapsed().as_secs_f64() * 1e3
}
