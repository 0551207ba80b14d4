//! One fault after the other, from a thread of the host: the engine beside the barest loop, under the same placement.
//!
//! ```text
//!   same processor   toucher pinned to it;  bare loop pinned there, too;  engine: goes there by itself
//!   two processors   toucher pinned to one; handlers pinned to the other by what their threads inherit
//! ```
//!
//! The contenders take turns within each round, in an order that changes. What a round gives is the median and the
//! 99th percentile of its faults; every page is looked at.

use std::thread;
use std::time::Duration;

use memory::GuestRam;
use memory::fault::{AroundPolicy, FaultEngine, Locality, Options};
use memory::source::{PageReader, Reading};

use crate::bare::{Bare, Wait};
use crate::options::Effort;
use crate::place::{on, pin, time_of_threads};
use crate::ram::{
    ANONYMOUS, HOT_WORD, HotReader, Memory, PAGES_PER_MIB, hot_page, ram, shuffled, touch_each, word_of,
};
use crate::report::Section;
use crate::row::{Promise, Ratio, Row, Unit};
use crate::samples::Samples;

const IDLE_TIME: Duration = Duration::from_secs(1);
const P50_MAX: Promise = Promise::AtMost(1.2);
const P99_MAX: Promise = Promise::AtMost(1.5);
const FASTER_THAN_ASLEEP: Promise = Promise::AtLeast(3.0);
const IDLE_MS_MAX: Promise = Promise::AtMost(1.0);

/// What serves the faults of one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Contender {
    /// The bare loop, on the processor of this number.
    Bare(Wait, usize),
    /// The bare loop, on the first processor, with the image for a source: by `pread`, or mapped and all in the tables.
    BareImage(Wait, Reads),
    /// The engine, which may be anywhere and follows, from an image or from a page in the cache.
    Follows(From),
    /// The bare loop, and nobody is pinned.
    FreeBare(Wait),
    /// The engine, which follows a thread that the host may put anywhere.
    FollowsFree(From),
    /// The engine, which follows nothing, on the processor of this number.
    Pinned(From, usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum From {
    Image,
    Hot,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reads {
    File,
    Mapped,
}

const CONTENDERS: [Contender; 13] = [
    Contender::Bare(Wait::Blocking, 0),
    Contender::Follows(From::Image),
    Contender::Follows(From::Hot),
    Contender::BareImage(Wait::Blocking, Reads::File),
    Contender::BareImage(Wait::Polling, Reads::File),
    Contender::BareImage(Wait::Blocking, Reads::Mapped),
    Contender::Bare(Wait::Polling, 0),
    Contender::Bare(Wait::Blocking, 1),
    Contender::Pinned(From::Image, 1),
    Contender::Pinned(From::Hot, 1),
    Contender::Bare(Wait::Polling, 1),
    Contender::FollowsFree(From::Image),
    Contender::FreeBare(Wait::Polling),
];

/// The rows of this part.
pub(crate) fn measure(effort: &Effort, processors: &[usize]) -> Section {
    let bench = Bench::new(effort, processors);
    // On one processor there is no other.
    let contenders: Vec<_> = CONTENDERS.into_iter().filter(|it| it.processor() < processors.len()).collect();
    let mut runs = vec![Vec::new(); contenders.len()];
    for round in 0..=effort.rounds {
        let mut turns: Vec<usize> = (0..contenders.len()).collect();
        turns.rotate_left(round % contenders.len());
        for turn in turns {
            let quantiles = bench.run(contenders[turn]);
            // The first round meets cold code and a kernel without free pages at hand.
            if round > 0 {
                runs[turn].push(quantiles);
            }
        }
    }
    let figures = Figures { contenders, runs };
    let mut rows = figures.rows();
    rows.push(idle_time(effort));
    let title = format!(
        "One demand fault of a thread of the host: {} runs of {} faults each, in random order, nothing around them",
        effort.rounds,
        bench.pages.len()
    );
    Section { title, rows }
}

impl Contender {
    fn processor(self) -> usize {
        match self {
            Self::Bare(_, processor) | Self::Pinned(_, processor) => processor,
            Self::Follows(_) | Self::BareImage(..) | Self::FreeBare(_) | Self::FollowsFree(_) => 0,
        }
    }
}

/// What all runs share.
struct Bench<'a> {
    memory: Memory,
    mib: u64,
    pages: Vec<u64>,
    processors: &'a [usize],
}

/// Microseconds.
#[derive(Clone, Copy, Debug)]
struct Quantiles {
    p50: f64,
    p99: f64,
    mean: f64,
}

impl<'a> Bench<'a> {
    fn new(effort: &Effort, processors: &'a [usize]) -> Self {
        let mib = effort.demand_mib;
        Self { memory: Memory::full(mib), mib, pages: shuffled(mib * PAGES_PER_MIB), processors }
    }

    fn run(&self, contender: Contender) -> Quantiles {
        let pinned = &self.processors[..1];
        match contender {
            Contender::Bare(wait, processor) => {
                let handler = &self.processors[processor..=processor];
                self.bare_hot(wait, Threads { handler, toucher: pinned })
            }
            Contender::FreeBare(wait) => self.bare_hot(wait, self.free()),
            Contender::BareImage(wait, Reads::File) => {
                let (file, threads) = (self.memory.file(), Threads { handler: pinned, toucher: pinned });
                self.bare(wait, threads, word_of, |bare, count| bare.serve_missing_from(&file, count))
            }
            Contender::BareImage(wait, Reads::Mapped) => {
                let (mapped, threads) = (self.memory.map(true), Threads { handler: pinned, toucher: pinned });
                self.bare(wait, threads, word_of, |bare, count| bare.serve_missing_mapped(&mapped, count))
            }
            Contender::Follows(from) => {
                self.engine(from, Locality::default(), Threads { toucher: pinned, ..self.free() })
            }
            Contender::FollowsFree(from) => self.engine(from, Locality::default(), self.free()),
            Contender::Pinned(from, processor) => {
                let handler = &self.processors[processor..=processor];
                self.engine(from, Locality::Anywhere, Threads { handler, toucher: pinned })
            }
        }
    }

    fn free(&self) -> Threads<'a> {
        Threads { handler: self.processors, toucher: self.processors }
    }

    fn bare_hot(&self, wait: Wait, threads: Threads<'_>) -> Quantiles {
        self.bare(wait, threads, |_| HOT_WORD, |bare, count| bare.serve_missing(&hot_page(), count))
    }

    fn bare(
        &self,
        wait: Wait,
        threads: Threads<'_>,
        expected: fn(u64) -> u64,
        serve: impl FnOnce(&Bare, usize) + Send,
    ) -> Quantiles {
        let bare = Bare::missing(ram(ANONYMOUS, self.mib), wait);
        thread::scope(|scope| {
            scope.spawn(|| {
                pin(threads.handler);
                serve(&bare, self.pages.len());
            });
            self.touch(bare.ram(), threads.toucher, expected)
        })
    }

    fn engine(&self, from: From, locality: Locality, threads: Threads<'_>) -> Quantiles {
        let options = Options { around: AroundPolicy::Off, locality, ..Options::default() };
        let start = |reader| {
            let source = Box::new(Reading::new(reader));
            FaultEngine::start(ram(ANONYMOUS, self.mib), source, None, &options).expect("an engine starts")
        };
        let reader: Box<dyn PageReader> = match from {
            From::Image => Box::new(self.memory.reader()),
            From::Hot => Box::new(HotReader(hot_page())),
        };
        let engine = on(threads.handler, || start(reader));
        let expected = if from == From::Image { word_of } else { |_| HOT_WORD };
        self.touch(engine.ram(), threads.toucher, expected)
    }

    fn touch(&self, ram: &GuestRam, processors: &[usize], expected: fn(u64) -> u64) -> Quantiles {
        let mut latencies = Vec::with_capacity(self.pages.len());
        let is_right = on(processors, || touch_each(ram, &self.pages, expected, &mut latencies));
        assert!(is_right, "a page is not what its source says");
        let latencies: Vec<_> = latencies.into_iter().map(|latency| latency as f64 / 1e3).collect();
        let mean = latencies.iter().sum::<f64>() / latencies.len() as f64;
        let latencies = Samples::new(latencies);
        Quantiles { p50: latencies.median(), p99: latencies.percentile(99.0), mean }
    }
}

/// Where the two threads of a run may be.
#[derive(Clone, Copy)]
struct Threads<'a> {
    handler: &'a [usize],
    toucher: &'a [usize],
}

/// The runs of each contender, in the order of rounds.
struct Figures {
    contenders: Vec<Contender>,
    runs: Vec<Vec<Quantiles>>,
}

impl Figures {
    fn rows(&self) -> Vec<Row> {
        let bare = Contender::Bare(Wait::Blocking, 0);
        let bare_apart = Contender::Bare(Wait::Blocking, 1);
        let asleep = Contender::Bare(Wait::Polling, 1);
        let mut rows = Vec::new();
        // Whoever serves an image reads it: so does the barest loop.
        let bare_image = Contender::BareImage(Wait::Blocking, Reads::File);
        let (reads, reads_nothing) = ("bare loop, read and pread", "bare loop, in read");
        let pairs = [
            ("same processor, image on tmpfs", Contender::Follows(From::Image), (reads, bare_image)),
            ("same processor, page in the cache", Contender::Follows(From::Hot), (reads_nothing, bare)),
            (
                "two processors, image on tmpfs",
                Contender::Pinned(From::Image, 1),
                (reads_nothing, bare_apart),
            ),
            (
                "two processors, page in the cache",
                Contender::Pinned(From::Hot, 1),
                (reads_nothing, bare_apart),
            ),
        ];
        for (name, engine, beside) in pairs {
            rows.extend(self.pair(name, engine, beside));
        }
        let own_choice = Contender::Follows(From::Image);
        if let (Some(engine), Some(beside)) = (self.p50(own_choice), self.p50(asleep)) {
            let beside = ("bare, in poll, elsewhere", beside);
            let name = "where the engine chooses to be, p50";
            let row = Row::beside(name, Unit::Microseconds, engine, beside, Ratio::TimesFaster);
            rows.push(row.promised(FASTER_THAN_ASLEEP));
        }
        let free = Contender::FollowsFree(From::Image);
        let free_bare = Contender::FreeBare(Wait::Polling);
        if let (Some(engine), Some(beside)) = (self.mean(free), self.mean(free_bare)) {
            let beside = ("bare, in poll, free, too", beside);
            let name = "for comparison: a thread that is not pinned, mean";
            rows.push(Row::beside(name, Unit::Microseconds, engine, beside, Ratio::TimesFaster));
        }
        let mapped = Contender::BareImage(Wait::Blocking, Reads::Mapped);
        rows.extend(self.comparison(
            "engine, image on tmpfs",
            own_choice,
            ("bare loop that reads none", bare),
        ));
        rows.extend(self.comparison(
            "engine, image on tmpfs",
            own_choice,
            ("bare, poll, read, pread", Contender::BareImage(Wait::Polling, Reads::File)),
        ));
        rows.extend(self.comparison("bare loop of the mapped image", mapped, ("bare loop, in read", bare)));
        let polling = Contender::Bare(Wait::Polling, 0);
        rows.extend(self.comparison("bare loop, in poll", polling, ("bare loop, in read", bare)));
        rows
    }

    /// What nothing is promised of.
    fn comparison(&self, name: &str, one: Contender, other: (&'static str, Contender)) -> Option<Row> {
        let (one, samples) = (self.p50(one)?, self.p50(other.1)?);
        let name = format!("for comparison: {name}");
        Some(Row::beside(name, Unit::Microseconds, one, (other.0, samples), Ratio::Of))
    }

    fn pair(&self, name: &str, engine: Contender, beside: (&'static str, Contender)) -> Vec<Row> {
        let row = |quantile: &str, of: fn(&Quantiles) -> f64, promise| {
            let (engine, samples) = (self.samples(engine, of)?, self.samples(beside.1, of)?);
            let name = format!("{name}, {quantile}");
            let row = Row::beside(name, Unit::Microseconds, engine, (beside.0, samples), Ratio::Of);
            Some(row.promised(promise))
        };
        [row("p50", |it| it.p50, P50_MAX), row("p99", |it| it.p99, P99_MAX)].into_iter().flatten().collect()
    }

    fn p50(&self, contender: Contender) -> Option<Vec<f64>> {
        self.samples(contender, |it| it.p50)
    }

    fn mean(&self, contender: Contender) -> Option<Vec<f64>> {
        self.samples(contender, |it| it.mean)
    }

    fn samples(&self, contender: Contender, of: fn(&Quantiles) -> f64) -> Option<Vec<f64>> {
        let index = self.contenders.iter().position(|it| *it == contender)?;
        Some(self.runs[index].iter().map(of).collect())
    }
}

/// What the fault thread takes while nobody faults, after several threads have: it may have been spinning for them.
fn idle_time(effort: &Effort) -> Row {
    let mib = effort.demand_mib;
    let pages = shuffled(mib * PAGES_PER_MIB);
    let options = Options { around: AroundPolicy::Off, ..Options::default() };
    let source = Box::new(Reading::new(HotReader(hot_page())));
    let engine = FaultEngine::start(ram(ANONYMOUS, mib), source, None, &options).expect("an engine starts");
    let (now, later) = pages.split_at(pages.len() / 2);
    let mut samples = Vec::new();
    for pages in now.chunks(now.len() / effort.idles).zip(later.chunks(later.len() / effort.idles)) {
        thread::scope(|scope| {
            for pages in [pages.0, pages.1] {
                let ram = engine.ram();
                scope.spawn(move || touch_each(ram, pages, |_| HOT_WORD, &mut Vec::new()));
            }
        });
        let before = time_of_threads("fault");
        thread::sleep(IDLE_TIME);
        samples.push((time_of_threads("fault") - before).as_secs_f64() * 1e3);
    }
    Row::new("processor time of the fault thread, in an idle second", Unit::Milliseconds, samples)
        .promised(IDLE_MS_MAX)
}
