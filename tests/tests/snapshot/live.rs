//! Machines that are saved while they run.

use serde_json::json;

use super::*;

/// How much of its RAM the guest writes round and round, checking every word.
const WORKED_MIB: u64 = 16;

/// A guest that works, on memory that it has filled.
fn working() -> Vmm {
    let mut vmm = Vmm::booted(&format!("fill {FILLED_MIB} {SEED} work {WORKED_MIB} shell exit"));
    reports(&mut vmm, 2);
    vmm
}

/// Waits for so many reports of a guest that works; none of them tells of a wrong page.
fn reports(vmm: &mut Vmm, count: usize) {
    for _ in 0..count {
        let line = vmm.wait_for_line("guest: work round");
        assert!(line.ends_with(", 0 wrong pages"), "{line}");
    }
}

/// Goes on, works on, and has all that was filled.
fn goes_on(vmm: &mut Vmm) {
    reports(vmm, 3);
    vmm.type_text("\n");
    vmm.wait_for_line("guest: shell");
    // What was typed to end the work is a line of the shell.
    vmm.wait_for_line("guest: done");
    is_whole(vmm);
    quits(vmm);
}

#[test]
fn a_machine_is_saved_while_it_works_and_works_on_in_both() {
    on_kvm_host(|| {
        let folder = tempfile::tempdir().unwrap();
        let files = SnapshotFiles::new(folder.path(), "live");
        let mut vmm = working();
        for _ in 0..3 {
            vmm.save_live(&files);
            reports(&mut vmm, 2);
        }
        for backend in ["File", "Lazy"] {
            goes_on(&mut Vmm::restored(&files, backend));
        }
        goes_on(&mut vmm);
    });
}

#[test]
fn a_machine_that_is_still_being_restored_is_saved_live() {
    on_kvm_host(|| {
        let folder = tempfile::tempdir().unwrap();
        let mut files = SnapshotFiles::new(folder.path(), "0");
        let mut vmm = working();
        vmm.save_live(&files);
        vmm.kill();
        for number in 1..4 {
            // Nothing is filled in the background, so most of it is missing when it is saved.
            let load =
                tests::vmm::snapshot::with(files.load("Lazy"), &json!({ "lazy": { "fill_mib_s": 0 } }));
            vmm = Vmm::loaded(&load);
            files = SnapshotFiles::new(folder.path(), &number.to_string());
            vmm.save_live(&files);
            reports(&mut vmm, 1);
        }
        goes_on(&mut vmm);
        goes_on(&mut Vmm::restored(&files, "Lazy"));
    });
}

#[test]
fn a_paused_machine_is_saved_live_too_and_stays_paused() {
    on_kvm_host(|| {
        let folder = tempfile::tempdir().unwrap();
        let files = SnapshotFiles::new(folder.path(), "paused");
        let mut vmm = working();
        vmm.pause();
        vmm.save_live(&files);
        assert_eq!(vmm.state(), "Paused");
        vmm.resume();
        goes_on(&mut vmm);
        goes_on(&mut Vmm::restored(&files, "Lazy"));
    });
}

#[test]
fn a_live_snapshot_that_fails_leaves_the_guest_running_and_no_file() {
    on_kvm_host(|| {
        let limit = (20_u64 << 20).to_string();
        let launch = tests::vmm::Launch::new(&[]).with_api().by(&["prlimit", &format!("--fsize={limit}")]);
        let mut vmm = Vmm::serve(launch);
        vmm.machine(1, 64);
        let words = format!("fill {FILLED_MIB} {SEED} work {WORKED_MIB} shell exit");
        vmm.boot_source(tests::guest::bare_metal(tests::guest::Entry::Linux64), None, &words);
        vmm.start_instance();
        reports(&mut vmm, 2);
        let folder = tempfile::tempdir().unwrap();
        let files = SnapshotFiles::new(folder.path(), "large");
        let body = tests::vmm::snapshot::with(files.creation(), &json!({ "live": true }));
        for _ in 0..2 {
            let message = vmm.refuse("PUT", "/snapshot/create", &body);
            assert!(message.starts_with("Create snapshot error: "), "{message}");
            reports(&mut vmm, 2);
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "it left a file");
        }
        goes_on(&mut vmm);
    });
}

#[test]
fn what_cannot_be_saved_live_says_so() {
    on_kvm_host(|| {
        let folder = tempfile::tempdir().unwrap();
        let files = SnapshotFiles::new(folder.path(), "saved");
        let mut vmm = working();
        vmm.save_live(&files);
        let live = |more| tests::vmm::snapshot::with(files.creation(), &more);
        let diff =
            vmm.refuse("PUT", "/snapshot/create", &live(json!({ "live": true, "snapshot_type": "Diff" })));
        assert!(diff.contains("a live snapshot is a full one"), "{diff}");
        let mut mapped = Vmm::restored(&files, "File");
        let other = SnapshotFiles::new(folder.path(), "other");
        let body = tests::vmm::snapshot::with(other.creation(), &json!({ "live": true }));
        let message = mapped.refuse("PUT", "/snapshot/create", &body);
        assert!(message.contains("Lazy"), "{message}");
        reports(&mut mapped, 2);
        reports(&mut vmm, 1);
    });
}
