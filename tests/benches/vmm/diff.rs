//! How long a diff keeps a guest waiting.

use std::path::Path;
use std::time::Instant;

use serde_json::{Value, json};
use tests::guest::{Entry, bare_metal};
use tests::vmm::snapshot::with;
use tests::vmm::{SnapshotFiles, Vmm};

use crate::figure::{Figure, Target, Unit, milliseconds};
use crate::options::Effort;

const MEMORY_MIB: u64 = 512;
const FILLED_MIB: u64 = 480;
const WRITTEN_MIB: u64 = 16;
const DIFF_MS_MAX: f64 = 15.0;
/// Where files are in memory.
const TMPFS: &str = "/dev/shm";

/// Diffs of a machine that was booted and of one that was restored lazily, each after the guest has written a little.
pub(crate) fn saves(effort: &Effort) -> Vec<Figure> {
    let folder = tempfile::tempdir_in(TMPFS).expect("the host has a tmpfs");
    let first = SnapshotFiles::new(folder.path(), "first");
    let fresh = booted();
    fresh.pause();
    fresh.save(&first);
    fresh.resume();
    let mut figures = Vec::new();
    figures.extend(of(fresh, "booted", folder.path(), effort));
    for backend in ["Lazy", "File"] {
        let load = with(first.load(backend), &json!({ "track_dirty_pages": true }));
        let mut vmm = Vmm::loaded(&load);
        vmm.type_text(&format!("walk {FILLED_MIB}\n"));
        vmm.wait_for_line("guest: done");
        figures.extend(of(vmm, backend, folder.path(), effort));
    }
    figures
}

fn booted() -> Vmm {
    let mut vmm = Vmm::start();
    let machine = json!({ "vcpu_count": 1, "mem_size_mib": MEMORY_MIB, "track_dirty_pages": true });
    vmm.grant("PUT", "/machine-config", &machine);
    vmm.boot_source(bare_metal(Entry::Linux64), None, &format!("fill {FILLED_MIB} shell"));
    vmm.start_instance();
    vmm.wait_for_line("guest: shell");
    vmm
}

/// With so much written, and with nothing written.
fn of(mut vmm: Vmm, name: &str, folder: &Path, effort: &Effort) -> [Figure; 2] {
    let (mut written, mut unwritten) = (Vec::new(), Vec::new());
    let full = SnapshotFiles::new(folder, name);
    for _ in 0..effort.snapshots {
        // Chains do not grow without end, so each diff is over a full snapshot.
        vmm.pause();
        vmm.save(&full);
        vmm.resume();
        vmm.type_text(&format!("touch-write {WRITTEN_MIB}\n"));
        vmm.wait_for_line("guest: done");
        vmm.pause();
        written.push(timed(&vmm, &SnapshotFiles::new(folder, &format!("{name}-diff")).creation()));
        unwritten.push(timed(&vmm, &SnapshotFiles::new(folder, &format!("{name}-empty")).creation()));
        vmm.resume();
    }
    let figure = |what: String, samples| {
        let name = format!("Diff, {what} of {MEMORY_MIB} MiB written, {name}, tmpfs");
        Figure::new(name, Unit::Milliseconds, milliseconds(samples))
    };
    [
        figure(format!("{WRITTEN_MIB} MiB"), written).with_target(Target::median(DIFF_MS_MAX)),
        figure("nothing".to_owned(), unwritten),
    ]
}

fn timed(vmm: &Vmm, creation: &Value) -> std::time::Duration {
    let diff = with(creation.clone(), &json!({ "snapshot_type": "Diff" }));
    let started = Instant::now();
    vmm.grant("PUT", "/snapshot/create", &diff);
    started.elapsed()
}
