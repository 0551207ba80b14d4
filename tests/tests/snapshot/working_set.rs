//! What a restored guest wants first is recorded beside its memory file, and is there before it is wanted the next time.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::json;
use tempfile::TempDir;
use tests::vmm::WAIT;
use tests::vmm::snapshot::with;

use super::*;

/// How much the guest touches after a restore, of what it has filled.
const TOUCHED_MIB: u64 = 16;
const TOUCHED_PAGES: u64 = TOUCHED_MIB << 8;
const DEMANDED: &str = "faultless_fault_demanded_total";
const PREFETCHED: &str = "faultless_fault_prefetched_total";
const FILLED: &str = "faultless_fault_filled_total";
const FAULTS: &str = "faultless_fault_faults_total";

/// A saved guest that has filled its memory.
struct Saved {
    folder: TempDir,
    files: SnapshotFiles,
}

impl Saved {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let files = saved(folder.path(), "saved");
        Self { folder, files }
    }

    fn record(&self) -> PathBuf {
        self.folder.path().join("saved.memory.working-set")
    }

    /// Restores it without a background fill, which would place all that is wanted sooner or later.
    fn restored(&self, working_set: bool) -> Vmm {
        let lazy = json!({ "lazy": { "fill_mib_s": 0, "working_set": working_set } });
        Vmm::loaded(&with(self.files.load("Lazy"), &lazy))
    }

    /// Restores it, has it touch some of its memory, and ends it.
    fn run(&self) -> Run {
        let mut vmm = self.restored(true);
        touches(&mut vmm);
        self.end(vmm)
    }

    fn end(&self, mut vmm: Vmm) -> Run {
        let counter = |series| vmm.counter(series);
        let faults = counter(FAULTS);
        let placed = counter(DEMANDED) + counter(PREFETCHED) + counter(FILLED);
        is_whole(&mut vmm);
        let log = vmm.log();
        quits(&mut vmm);
        Run { faults, placed, log: log + &vmm.log() }
    }

    /// What a guest that was restored waits for before it says anything more is placed ahead of that.
    fn run_after_placing(&self, pages: u64) -> Run {
        let mut vmm = self.restored(true);
        vmm.wait_for_counter(FILLED, pages);
        touches(&mut vmm);
        self.end(vmm)
    }
}

/// What became of a restore, up to when it had touched what it touches.
struct Run {
    faults: u64,
    placed: u64,
    log: String,
}

fn touches(vmm: &mut Vmm) {
    vmm.type_text(&format!("touch {TOUCHED_MIB}\n"));
    vmm.wait_for_line("guest: done");
}

/// Waits for a file to be as it should be.
fn wait_for(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + WAIT;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}: not within {WAIT:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn what_was_wanted_is_there_the_next_time() {
    on_kvm_host(|| {
        let saved = Saved::new();
        let first = saved.run();
        assert!(first.faults > 8 && first.placed >= TOUCHED_PAGES, "{} faults", first.faults);
        let record = fs::read(saved.record()).unwrap();
        let second = saved.run_after_placing(TOUCHED_PAGES);
        assert!(
            second.faults * 4 < first.faults,
            "{} faults with a working set, and {} without",
            second.faults,
            first.faults
        );
        let now = fs::read(saved.record()).unwrap();
        assert!(now.len() >= record.len(), "a set grows by what was missed");
    });
}

#[test]
fn the_record_is_written_when_the_guest_is_paused() {
    on_kvm_host(|| {
        let saved = Saved::new();
        let mut vmm = saved.restored(true);
        touches(&mut vmm);
        assert!(!saved.record().exists(), "it has not ended");
        vmm.pause();
        wait_for("the record is written", || saved.record().exists());
        vmm.resume();
        is_whole(&mut vmm);
        quits(&mut vmm);
    });
}

#[test]
fn the_record_is_written_when_all_is_there() {
    on_kvm_host(|| {
        let saved = Saved::new();
        let mut vmm = Vmm::restored(&saved.files, "Lazy");
        touches(&mut vmm);
        wait_for("the record is written", || saved.record().exists());
        is_whole(&mut vmm);
        quits(&mut vmm);
    });
}

#[test]
fn a_record_that_is_no_good_is_told_and_replaced() {
    on_kvm_host(|| {
        let saved = Saved::new();
        saved.run();
        let good = fs::read(saved.record()).unwrap();
        let mut foreign = good.clone();
        foreign[20] ^= 1;
        let mut damaged = good.clone();
        *damaged.last_mut().unwrap() ^= 1;
        let bad = [foreign, damaged, good[..good.len() - 9].to_vec(), vec![0xff; 2 << 20], Vec::new()];
        for bytes in bad {
            fs::write(saved.record(), &bytes).unwrap();
            let run = saved.run();
            assert!(run.log.contains("a working set is not used"), "{} bytes: {}", bytes.len(), run.log);
            let now = fs::read(saved.record()).unwrap();
            assert!(now.len() >= 40 + 72 && now != bytes, "it is replaced");
        }
    });
}

#[test]
fn a_record_that_cannot_be_written_is_told_and_changes_nothing() {
    on_kvm_host(|| {
        let saved = Saved::new();
        // A folder where the file is to be written aside is in the way of root, too.
        fs::create_dir(saved.folder.path().join(".saved.memory.working-set.partial")).unwrap();
        let run = saved.run();
        assert_eq!(run.log.matches("the working set is not kept").count(), 1, "{}", run.log);
        assert!(!saved.record().exists());
    });
}

#[test]
fn who_does_not_want_a_working_set_has_none() {
    on_kvm_host(|| {
        let saved = Saved::new();
        let mut vmm = saved.restored(false);
        touches(&mut vmm);
        saved.end(vmm);
        assert!(!saved.record().exists());
        saved.run();
        let record = fs::read(saved.record()).unwrap();
        fs::write(saved.record(), b"rubbish that nobody reads").unwrap();
        let mut vmm = saved.restored(false);
        touches(&mut vmm);
        let run = saved.end(vmm);
        assert!(!run.log.contains("working set"), "{}", run.log);
        assert_eq!(fs::read(saved.record()).unwrap(), b"rubbish that nobody reads");
        assert!(!record.is_empty());
    });
}

#[test]
fn machines_that_go_on_at_once_leave_a_whole_record() {
    on_kvm_host(|| {
        let saved = Saved::new();
        let mut machines: Vec<_> = (0..3).map(|_| saved.restored(true)).collect();
        machines.iter_mut().for_each(touches);
        machines.iter().for_each(Vmm::pause);
        machines.iter().for_each(Vmm::resume);
        machines.into_iter().for_each(|vmm| drop(saved.end(vmm)));
        let run = saved.run_after_placing(TOUCHED_PAGES);
        assert!(!run.log.contains("a working set is not used"), "{}", run.log);
    });
}
