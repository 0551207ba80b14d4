//! Machines that are saved while they run.

use serde_json::json;
use tests::guest::{Entry, bare_metal};
use tests::vmm::snapshot::with;

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
            let load = with(files.load("Lazy"), &json!({ "lazy": { "fill_mib_s": 0 } }));
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
        let folder = tempfile::tempdir().unwrap();
        let mut vmm = Vmm::serve(on_small_disk(folder.path(), 20).with_api());
        vmm.machine(1, 64);
        let words = format!("fill {FILLED_MIB} {SEED} work {WORKED_MIB} shell exit");
        vmm.boot_source(bare_metal(Entry::Linux64), None, &words);
        vmm.start_instance();
        reports(&mut vmm, 2);
        let files = SnapshotFiles::new(folder.path(), "large");
        let body = with(files.creation(), &json!({ "live": true }));
        for _ in 0..3 {
            let message = vmm.refuse("PUT", "/snapshot/create", &body);
            assert!(message.contains("there is no room for the memory file"), "{message}");
            reports(&mut vmm, 2);
            assert_eq!(std::fs::read_dir(seen_by(&vmm, folder.path())).unwrap().count(), 0, "it left a file");
        }
        goes_on(&mut vmm);
    });
}

#[test]
fn a_machine_that_ends_while_it_is_saved_ends_and_leaves_no_file() {
    on_kvm_host(|| {
        for round in 0..5 {
            let folder = tempfile::tempdir().unwrap();
            let files = SnapshotFiles::new(folder.path(), "cut");
            let mut vmm = working();
            let client = vmm.client().clone();
            let body = with(files.creation(), &json!({ "live": true })).to_string();
            let asked =
                std::thread::spawn(move || client.raw("PUT", "/snapshot/create", Some(body.as_bytes())));
            std::thread::sleep(std::time::Duration::from_millis(5 * round));
            vmm.signal("TERM");
            assert!(vmm.wait_for_exit().success(), "{}", vmm.log());
            // Answered or cut off, as it came.
            let _ = asked.join().unwrap();
            let left: Vec<_> =
                std::fs::read_dir(folder.path()).unwrap().flatten().map(|it| it.file_name()).collect();
            assert!(left.is_empty() || left.len() == 2, "half a snapshot is left: {left:?}");
        }
    });
}

#[test]
fn what_cannot_be_saved_live_says_so() {
    on_kvm_host(|| {
        let folder = tempfile::tempdir().unwrap();
        let files = SnapshotFiles::new(folder.path(), "saved");
        let mut vmm = working();
        vmm.save_live(&files);
        let live = |more| with(files.creation(), &more);
        let diff =
            vmm.refuse("PUT", "/snapshot/create", &live(json!({ "live": true, "snapshot_type": "Diff" })));
        assert!(diff.contains("a live snapshot is a full one"), "{diff}");
        let tracked = Vmm::loaded(&with(files.load("Lazy"), &json!({ "track_dirty_pages": true })));
        let message = tracked.refuse("PUT", "/snapshot/create", &live(json!({ "live": true })));
        assert!(message.contains("tracks dirty pages"), "{message}");
        let mut mapped = Vmm::restored(&files, "File");
        let other = SnapshotFiles::new(folder.path(), "other");
        let body = with(other.creation(), &json!({ "live": true }));
        let message = mapped.refuse("PUT", "/snapshot/create", &body);
        assert!(message.contains("Lazy"), "{message}");
        reports(&mut mapped, 2);
        reports(&mut vmm, 1);
    });
}
