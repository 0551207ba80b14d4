//! Saving a machine that stands still.
//!
//! Beside it stands what the file system takes for as much: a plain loop of writes from one thread.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use serde_json::json;
use tests::vmm::snapshot::with;
use tests::vmm::{SnapshotFiles, Vmm};

use crate::guest::{Guest, MEMORY_MIB, Pages, blocks_mib, command, folder, ram_in_use_mib, remove};
use crate::options::Effort;
use crate::report::Section;
use crate::row::{Promise, Ratio, Row, Unit};

const FULL_MS_MAX: Promise = Promise::AtMost(100.0);
const OF_RAM_MAX: Promise = Promise::AtMost(1.0);
const DIFF_MS_MAX: Promise = Promise::AtMost(15.0);
const DIFF_MIB: u64 = 16;
/// A file with more than this has not only what was written.
const DIFF_FILE_MIB_MAX: f64 = 2.0 * DIFF_MIB as f64;
const PLAIN_WRITE_BYTES: usize = 1 << 20;

/// The rows of this part.
pub(crate) fn measure(effort: &Effort) -> Section {
    let title = format!(
        "Saving {MEMORY_MIB} MiB of which half is filled, standing still: {} rounds; PUT to answer",
        effort.rounds
    );
    let mut rows = Vec::new();
    for pages in Pages::ALL {
        rows.extend(full(effort, pages));
        rows.push(diff(effort, pages));
    }
    Section { title, rows }
}

fn full(effort: &Effort, pages: Pages) -> [Row; 3] {
    let guest = Guest::new(pages);
    let (vmm, folder) = (guest.boot_shell(), folder());
    vmm.pause();
    let (mut times, mut plain, mut blocks, mut used) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..effort.rounds {
        let files = SnapshotFiles::new(folder.path(), "full");
        times.push(time_of_save(&vmm, &files));
        blocks.push(blocks_mib(&files.memory));
        used.push(ram_in_use_mib(&vmm, guest.memory_mib));
        remove(&files);
        plain.push(plain_write_ms(folder.path(), guest.filled_mib()));
    }
    let name = pages.name();
    [
        Row::new(format!("{name}, all of it"), Unit::Milliseconds, times.clone()).promised(FULL_MS_MAX),
        Row::beside(
            format!("{name}, all of it"),
            Unit::Milliseconds,
            times,
            ("one thread's plain writes", plain),
            Ratio::Of,
        ),
        Row::beside(
            format!("{name}, the file's blocks"),
            Unit::Mebibytes,
            blocks,
            ("RAM in use", used),
            Ratio::Of,
        )
        .promised(OF_RAM_MAX),
    ]
}

fn time_of_save(vmm: &Vmm, files: &SnapshotFiles) -> f64 {
    let asked = Instant::now();
    vmm.save(files);
    asked.elapsed().as_secs_f64() * 1e3
}

fn plain_write_ms(folder: &Path, mib: u64) -> f64 {
    let path = folder.join("plain");
    let bytes = vec![7; PLAIN_WRITE_BYTES];
    let started = Instant::now();
    let file = File::create(&path).expect("the folder can be written");
    for offset in (0..mib << 20).step_by(PLAIN_WRITE_BYTES) {
        file.write_all_at(&bytes, offset).expect("the file system has room");
    }
    let took = started.elapsed().as_secs_f64() * 1e3;
    fs::remove_file(&path).expect("what was written can be removed");
    took
}

fn diff(effort: &Effort, pages: Pages) -> Row {
    let name = format!("{}, the {DIFF_MIB} MiB that were written since", pages.name());
    let (mut vmm, folder) = (Guest { is_tracked: true, ..Guest::new(pages) }.boot_shell(), folder());
    vmm.pause();
    vmm.save(&SnapshotFiles::new(folder.path(), "base"));
    let times = (0..effort.rounds).map(|round| {
        vmm.resume();
        command(&mut vmm, &format!("touch-write {DIFF_MIB}"));
        vmm.pause();
        diff_ms(&vmm, &SnapshotFiles::new(folder.path(), &format!("diff-{round}")))
    });
    match times.collect::<Result<Vec<_>, _>>() {
        Ok(times) => Row::new(name, Unit::Milliseconds, times).promised(DIFF_MS_MAX),
        Err(reason) => Row::not_measured(name, reason),
    }
}

fn diff_ms(vmm: &Vmm, files: &SnapshotFiles) -> Result<f64, String> {
    let body = with(files.creation(), &json!({ "snapshot_type": "Diff" }));
    let asked = Instant::now();
    let answer = vmm.request("PUT", "/snapshot/create", &body);
    let took = asked.elapsed().as_secs_f64() * 1e3;
    if !answer.is_success() {
        return Err(format!("the program refuses it: {}", answer.fault_message()));
    }
    let mib = blocks_mib(&files.memory);
    if mib > DIFF_FILE_MIB_MAX {
        return Err(format!("the program's file has {mib:.0} MiB, and so more than was written"));
    }
    Ok(took)
}
