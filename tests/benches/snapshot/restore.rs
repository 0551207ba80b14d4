//! Going on from files: until the guest says something, and until what it works with is there.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use tests::vmm::SnapshotFiles;

use crate::clock::Clock;
use crate::guest::{Guest, MEMORY_MIB, Pages, WORKING_SET_MIB, folder};
use crate::options::Effort;
use crate::report::Section;
use crate::row::{Promise, Row, Unit};
use crate::way::Way;

const OUTPUT_MS_MAX: Promise = Promise::AtMost(8.0);
const TOUCH_MS_MAX: Promise = Promise::AtMost(60.0);
const RECORDED_TOUCH_MS_MAX: Promise = Promise::AtMost(12.0);
/// How long a recording may take to be in a file.
const RECORDING_WAIT: Duration = Duration::from_secs(1);
/// How many restores record before one is measured.
const RECORDINGS: usize = 3;
const POLL_INTERVAL: Duration = Duration::from_millis(20);
const LAZY: Way = Way::Lazy { records_working_set: false };
const RECORDED: Way = Way::Lazy { records_working_set: true };

/// A way, and what the saved guest's memory was made of.
struct Contender {
    name: &'static str,
    way: Way,
    pages: Pages,
    touch_promise: Option<Promise>,
}

const CONTENDERS: [Contender; 4] = [
    Contender { name: "Lazy, 4 KiB", way: LAZY, pages: Pages::Base, touch_promise: Some(TOUCH_MS_MAX) },
    Contender { name: "Lazy, THP", way: LAZY, pages: Pages::Transparent, touch_promise: Some(TOUCH_MS_MAX) },
    Contender { name: "File", way: Way::File, pages: Pages::Base, touch_promise: None },
    Contender { name: "Uffd, the tests' handler", way: Way::Uffd, pages: Pages::Base, touch_promise: None },
];

/// One sample of each round.
#[derive(Default)]
struct Times {
    answers: Vec<f64>,
    outputs: Vec<f64>,
    touches: Vec<f64>,
}

impl Times {
    fn add(&mut self, way: Way, files: &SnapshotFiles, clock: Clock) {
        let mut restored = way.restore(files);
        self.answers.push(restored.answer_ms);
        self.outputs.push(restored.output_ms);
        self.touches.push(restored.touch_ms(clock));
    }

    fn rows(self, name: &str, output_promise: Option<Promise>, touch_promise: Option<Promise>) -> [Row; 3] {
        let row = |what: &str, samples, promise: Option<Promise>| {
            let row = Row::new(format!("{name}, {what}"), Unit::Milliseconds, samples);
            if let Some(promise) = promise { row.promised(promise) } else { row }
        };
        [
            row("PUT to first output", self.outputs, output_promise),
            row("PUT to answer", self.answers, None),
            row(&format!("touching {WORKING_SET_MIB} MiB then"), self.touches, touch_promise),
        ]
    }
}

/// The rows of this part.
pub(crate) fn measure(effort: &Effort) -> Section {
    let title = format!(
        "Going on with {MEMORY_MIB} MiB of which half is filled, in a process that is up: {} rounds",
        effort.rounds
    );
    let (folder, clock) = (folder(), Clock::of_guests());
    let saved = Pages::ALL.map(|pages| (pages, Guest::new(pages).saved(folder.path())));
    let files = |wanted| &saved.iter().find(|(pages, _)| *pages == wanted).expect("all are saved").1;
    let mut times = CONTENDERS.map(|_| Times::default());
    for round in 0..=effort.rounds {
        for (contender, times) in CONTENDERS.iter().zip(&mut times) {
            // The first round meets files and programs that are in no cache.
            let mut unused = Times::default();
            let times = if round == 0 { &mut unused } else { times };
            times.add(contender.way, files(contender.pages), clock);
        }
    }
    let mut rows = Vec::new();
    for (contender, times) in CONTENDERS.iter().zip(times) {
        let output_promise = matches!(contender.way, Way::Lazy { .. }).then_some(OUTPUT_MS_MAX);
        rows.extend(times.rows(contender.name, output_promise, contender.touch_promise));
    }
    for (pages, files) in &saved {
        rows.extend(recorded(effort, *pages, files, clock));
    }
    Section { title, rows }
}

/// The same when the working set was recorded in an earlier restore.
fn recorded(effort: &Effort, pages: Pages, files: &SnapshotFiles, clock: Clock) -> Vec<Row> {
    let name = format!("Lazy with a working set of {RECORDINGS} restores, {}", pages.name());
    let folder = files.memory.parent().expect("a file is in a folder");
    if !records(files, folder, clock) {
        return vec![Row::not_measured(name, "the program has put no recording beside the memory file")];
    }
    let mut times = Times::default();
    (0..effort.rounds).for_each(|_| times.add(RECORDED, files, clock));
    times.rows(&name, Some(OUTPUT_MS_MAX), Some(RECORDED_TOUCH_MS_MAX)).into()
}

/// Whether restores leave a recording. There are some, as the first misses what the background fill brings before it is
/// wanted; whether the last ones find anything new is theirs to say.
fn records(files: &SnapshotFiles, folder: &Path, clock: Clock) -> bool {
    let before = newest(folder);
    for _ in 0..RECORDINGS {
        let last = newest(folder);
        let mut restored = RECORDED.restore(files);
        restored.touch_ms(clock);
        restored.vmm.pause();
        let deadline = Instant::now() + RECORDING_WAIT;
        while newest(folder) == last && Instant::now() < deadline {
            thread::sleep(POLL_INTERVAL);
        }
    }
    newest(folder) > before
}

/// When a file of the folder was last written.
fn newest(folder: &Path) -> Option<SystemTime> {
    let files = fs::read_dir(folder).expect("a folder of our own can be read");
    files.filter_map(|file| file.ok()?.metadata().ok()?.modified().ok()).max()
}
