//! What a guest notices of being saved while it works.
//!
//! ```text
//!   guest   ├── writes 64 MiB round and round, 500 MB/s, and reports its longest gap some fifty times a second ──▶
//!   host         nothing, for as long  │  PUT live ─ answer  │  pause, PUT, resume
//!                its own gaps          │  gaps, throughput   │  how long that takes
//! ```

use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use tests::vmm::snapshot::with;
use tests::vmm::{SnapshotFiles, Vmm};

use crate::clock::Clock;
use crate::guest::{Guest, MEMORY_MIB, Pages, WORKING_SET_MIB, folder, remove};
use crate::options::Effort;
use crate::report::Section;
use crate::row::{Promise, Ratio, Row, Unit};
use crate::stretch::{Work, mark, work_since};

const GAP_MS_MAX: Promise = Promise::AtMost(5.0);
const GAP_MS_PER_GIB_MAX: Promise = Promise::AtMost(2.0);
const THROUGHPUT_MIN: Promise = Promise::AtLeast(0.5);
const TIME_MAX: Promise = Promise::AtMost(1.5);
/// Machines that have half a GiB, one more, and two more.
const SIZES_MIB: [u64; 3] = [MEMORY_MIB, MEMORY_MIB + 1024, MEMORY_MIB + 2048];
/// How long nothing happens to the guest, for its own gaps.
const QUIET: Duration = Duration::from_millis(300);
const LOAD_BYTES_PER_SECOND: f64 = 500e6;
const PAGE_BYTES: f64 = 4096.0;
/// Reports that come after an answer and are still about the time before it, and one more.
const TRAILING_REPORTS: usize = 2;

/// One sample of each round.
#[derive(Default)]
struct Rounds {
    own_gaps: Vec<f64>,
    gaps: Vec<f64>,
    normal: Vec<f64>,
    throughput: Vec<f64>,
    live: Vec<f64>,
    offline: Vec<f64>,
}

/// The rows of this part.
pub(crate) fn measure(effort: &Effort) -> Section {
    let title = format!(
        "Saving while the guest writes {WORKING_SET_MIB} MiB round and round, 500 MB/s: {} rounds",
        effort.rounds
    );
    let clock = Clock::of_guests();
    let rows = Pages::ALL.into_iter().flat_map(|pages| match all_sizes(effort, pages, clock) {
        Ok(rows) => rows,
        Err(reason) => vec![Row::not_measured(format!("{}, live", pages.name()), reason)],
    });
    Section { title, rows: rows.collect() }
}

fn all_sizes(effort: &Effort, pages: Pages, clock: Clock) -> Result<Vec<Row>, String> {
    let mut rows = Vec::new();
    let mut gaps: Vec<Vec<f64>> = Vec::new();
    for memory_mib in SIZES_MIB {
        let rounds = one_size(effort, Guest { memory_mib, ..Guest::new(pages) }, clock)?;
        gaps.push(rounds.gaps.clone());
        rows.extend(rounds.rows(&format!("{}, {memory_mib} MiB", pages.name()), memory_mib == MEMORY_MIB));
    }
    let gib = (SIZES_MIB[2] - SIZES_MIB[0]) as f64 / 1024.0;
    let growth = gaps[0].iter().zip(&gaps[2]).map(|(small, large)| (large - small) / gib);
    let name = format!("{}, longest gap, for each further GiB", pages.name());
    rows.push(Row::new(name, Unit::Milliseconds, growth.collect()).promised(GAP_MS_PER_GIB_MAX));
    Ok(rows)
}

/// All rounds on one machine. Or why there is nothing.
fn one_size(effort: &Effort, guest: Guest, clock: Clock) -> Result<Rounds, String> {
    let pace = clock.cycles(Duration::from_secs_f64(PAGE_BYTES / LOAD_BYTES_PER_SECOND));
    let (vmm, folder) =
        (guest.boot(&format!("work {WORKING_SET_MIB} {pace}"), "guest: work round"), folder());
    let mut rounds = Rounds::default();
    for _ in 0..effort.rounds {
        let quiet = quiet(&vmm);
        let files = SnapshotFiles::new(folder.path(), "live");
        let (live_ms, work) = live(&vmm, &files)?;
        remove(&files);
        rounds.own_gaps.push(quiet.longest_gap_ms(clock));
        rounds.normal.push(quiet.thousand_pages_s(clock));
        rounds.gaps.push(work.longest_gap_ms(clock));
        rounds.throughput.push(work.thousand_pages_s(clock));
        rounds.live.push(live_ms);
        rounds.offline.push(offline_ms(&vmm, &files));
        remove(&files);
    }
    Ok(rounds)
}

fn quiet(vmm: &Vmm) -> Work {
    // The first ones are about what was before.
    work_since(vmm, mark(vmm), TRAILING_REPORTS);
    let mark = mark(vmm);
    thread::sleep(QUIET);
    work_since(vmm, mark, 0)
}

/// Milliseconds from the request to its answer, and what the guest did meanwhile. Or why it was refused.
fn live(vmm: &Vmm, files: &SnapshotFiles) -> Result<(f64, Work), String> {
    let mark = mark(vmm);
    let asked = Instant::now();
    let answer = vmm.request("PUT", "/snapshot/create", &with(files.creation(), &json!({ "live": true })));
    let took = asked.elapsed().as_secs_f64() * 1e3;
    if answer.is_success() {
        Ok((took, work_since(vmm, mark, TRAILING_REPORTS)))
    } else {
        Err(format!("the program refuses it: {}", answer.fault_message()))
    }
}

/// The same machine, standing still.
fn offline_ms(vmm: &Vmm, files: &SnapshotFiles) -> f64 {
    vmm.pause();
    let asked = Instant::now();
    vmm.save(files);
    let took = asked.elapsed().as_secs_f64() * 1e3;
    vmm.resume();
    took
}

impl Rounds {
    fn rows(self, name: &str, has_gap_promise: bool) -> [Row; 4] {
        let gap = Row::new(format!("{name}, the guest's longest gap"), Unit::Milliseconds, self.gaps);
        [
            if has_gap_promise { gap.promised(GAP_MS_MAX) } else { gap },
            Row::new(
                format!("{name}, its longest gap when nothing happens"),
                Unit::Milliseconds,
                self.own_gaps,
            ),
            Row::beside(
                format!("{name}, its work"),
                Unit::ThousandPagesPerSecond,
                self.throughput,
                ("when nothing happens", self.normal),
                Ratio::Of,
            )
            .promised(THROUGHPUT_MIN),
            Row::beside(
                format!("{name}, all of it"),
                Unit::Milliseconds,
                self.live,
                ("standing still", self.offline),
                Ratio::Of,
            )
            .promised(TIME_MAX),
        ]
    }
}
