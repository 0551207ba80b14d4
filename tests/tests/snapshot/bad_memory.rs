//! Memory files that are not what was saved. What a look at the file shows is refused; what only its pages show stops
//! the guest before it sees one.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FallocateFlags, FileType, Mode, fallocate, mknodat};
use serde_json::{Value, json};
use tests::vmm::WAIT;
use tests::vmm::snapshot::with;
use vmm::snapshot::file;
use vmm::snapshot::saved::{Parent, Saved};

use super::*;

const MIB: u64 = 1 << 20;
const PAGE_BYTES: u64 = 4096;
/// A page that the guest has filled, and where the guest has it: its RAM is one range from 0 up.
const PAGE: u64 = 5000;
const ADDRESS: &str = "0x1388000";
const BACKENDS: [&str; 2] = ["File", "Lazy"];

/// Pages come when they are wanted and not before.
fn on_demand(files: &SnapshotFiles) -> Value {
    with(files.load("Lazy"), &json!({ "lazy": { "fill_mib_s": 0 } }))
}

fn flip(files: &SnapshotFiles, page: u64) {
    let file = OpenOptions::new().read(true).write(true).open(&files.memory).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, page * PAGE_BYTES + 7).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], page * PAGE_BYTES + 7).unwrap();
}

fn wait_for_failure(vmm: &mut Vmm) -> String {
    let started = Instant::now();
    loop {
        let info = vmm.get("/");
        if let Value::String(failure) = &info["failure"] {
            return failure.clone();
        }
        assert!(vmm.ended().is_none() && started.elapsed() < WAIT, "no failure: {info}\n{}", vmm.log());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The guest stands still for good, for a reason that says all of `said`, and has seen no page that is wrong.
fn has_failed(vmm: &mut Vmm, said: &[&str]) {
    let failure = wait_for_failure(vmm);
    said.iter().for_each(|part| assert!(failure.contains(part), "no {part:?} in {failure:?}"));
    assert_eq!(vmm.state(), "Paused");
    assert_eq!(vmm.counter("faultless_memory_failures_total"), 1);
    let refusal = vmm.refuse("PATCH", "/vm", &json!({ "state": "Resumed" }));
    assert!(refusal.contains(&failure), "{refusal}");
    assert!(!vmm.console().contains("guest: walk"), "it saw a wrong page: {}", vmm.console());
    let folder = tempfile::tempdir().unwrap();
    let refused = vmm.try_save(&SnapshotFiles::new(folder.path(), "failed"));
    assert_eq!(refused.status, 400, "memory that is not whole is not saved");
    assert!(names_in(folder.path()).is_empty());
}

#[test]
fn a_memory_file_that_is_none_is_refused() {
    on_kvm_host(|| {
        let folder = tempfile::tempdir().unwrap();
        let files = saved(folder.path(), "saved");
        let refused = |said: &str| {
            for backend in BACKENDS {
                let refusal = Vmm::refused_load(&files.load(backend));
                let start = "Load snapshot error: Failed to get snapshot memory from file: ";
                assert!(refusal.starts_with(start) && refusal.contains(said), "{backend}: {refusal}");
                assert!(refusal.contains("saved.memory"), "{backend} does not say which: {refusal}");
            }
        };
        fs::remove_file(&files.memory).unwrap();
        refused("No such file or directory");
        fs::create_dir(&files.memory).unwrap();
        refused("regular file");
        fs::remove_dir(&files.memory).unwrap();
        mknodat(CWD, &files.memory, FileType::Fifo, Mode::RWXU, 0).unwrap();
        refused("regular file");
        fs::remove_file(&files.memory).unwrap();
        File::create(&files.memory).unwrap();
        refused("is empty");
    });
}

#[test]
fn a_memory_file_of_another_length_is_refused() {
    on_kvm_host(|| {
        let folder = tempfile::tempdir().unwrap();
        let files = saved(folder.path(), "saved");
        let file = OpenOptions::new().write(true).open(&files.memory).unwrap();
        let whole = file.metadata().unwrap().len();
        assert_eq!(whole, 64 * MIB);
        for bytes in [whole - PAGE_BYTES, whole / 2, whole - 1, whole + PAGE_BYTES] {
            file.set_len(bytes).unwrap();
            for backend in BACKENDS {
                let refusal = Vmm::refused_load(&files.load(backend));
                let is_told = refusal.contains("truncated") && refusal.contains(&bytes.to_string());
                assert!(is_told, "{backend}, {bytes}: {refusal}");
            }
        }
    });
}

#[test]
fn a_page_that_was_changed_stops_the_guest_before_it_sees_it() {
    on_kvm_host(|| {
        let folder = tempfile::tempdir().unwrap();
        let files = saved(folder.path(), "saved");
        flip(&files, PAGE);
        let mut vmm = Vmm::loaded(&on_demand(&files));
        is_alive(&mut vmm);
        assert_eq!(vmm.get("/")["failure"], Value::Null, "nobody has asked for the page yet");
        vmm.type_text(&format!("walk {FILLED_MIB} {SEED}\n"));
        has_failed(&mut vmm, &["not what was saved", ADDRESS, "5000"]);
        // Who reads ahead leaves it to who wants it.
        let mut vmm = Vmm::restored(&files, "Lazy");
        is_alive(&mut vmm);
        vmm.type_text(&format!("walk {FILLED_MIB} {SEED}\n"));
        has_failed(&mut vmm, &["not what was saved", ADDRESS, "5000"]);
        flip(&files, PAGE);
        let mut vmm = Vmm::restored(&files, "Lazy");
        is_whole(&mut vmm);
    });
}

#[test]
fn holes_that_a_copy_has_made_stop_the_guest() {
    on_kvm_host(|| {
        let folder = tempfile::tempdir().unwrap();
        let files = saved(folder.path(), "saved");
        let file = OpenOptions::new().write(true).open(&files.memory).unwrap();
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&file, punch, PAGE * PAGE_BYTES, 3 * PAGE_BYTES).unwrap();
        let mut vmm = Vmm::loaded(&on_demand(&files));
        vmm.type_text(&format!("walk {FILLED_MIB} {SEED}\n"));
        has_failed(&mut vmm, &["not what was saved", ADDRESS]);
    });
}

#[test]
fn what_is_cut_off_under_a_guest_stops_it() {
    on_kvm_host(|| {
        for backend in BACKENDS {
            let folder = tempfile::tempdir().unwrap();
            let files = saved(folder.path(), "saved");
            // KVM knows no address of a page that is mapped.
            let (load, said) = match backend {
                "Lazy" => (on_demand(&files), "guest memory at 0x1400000"),
                _ => (files.load(backend), "met a memory error"),
            };
            let mut vmm = Vmm::loaded(&load);
            is_alive(&mut vmm);
            OpenOptions::new().write(true).open(&files.memory).unwrap().set_len(20 * MIB).unwrap();
            vmm.type_text(&format!("walk {FILLED_MIB} {SEED}\n"));
            has_failed(&mut vmm, &[said]);
        }
    });
}

#[test]
fn what_was_cut_off_under_a_guest_is_not_saved_as_zeros() {
    on_kvm_host(|| {
        for backend in BACKENDS {
            let folder = tempfile::tempdir().unwrap();
            let files = saved(folder.path(), "saved");
            let load = if backend == "Lazy" { on_demand(&files) } else { files.load(backend) };
            let vmm = Vmm::loaded(&load);
            vmm.pause();
            OpenOptions::new().write(true).open(&files.memory).unwrap().set_len(20 * MIB).unwrap();
            let answer = vmm.try_save(&SnapshotFiles::new(folder.path(), "other"));
            assert_eq!(answer.status, 400, "{backend}: what is gone was saved");
            assert_eq!(names_in(folder.path()), ["saved.memory", "saved.state"]);
        }
    });
}

#[test]
fn a_guest_with_a_page_that_cannot_be_had_is_not_saved() {
    on_kvm_host(|| {
        let folder = tempfile::tempdir().unwrap();
        let files = saved(folder.path(), "saved");
        flip(&files, PAGE);
        // No record of a working set, which a pause begins to write beside the memory, and names are compared.
        let quiet = json!({ "lazy": { "fill_mib_s": 0, "working_set": false } });
        let mut vmm = Vmm::loaded(&with(files.load("Lazy"), &quiet));
        vmm.pause();
        let before = names_in(folder.path());
        for at in [&files, &SnapshotFiles::new(folder.path(), "other")] {
            let answer = vmm.try_save(at);
            println!("{}", answer.fault_message());
            assert_eq!(answer.status, 400);
            assert_eq!(names_in(folder.path()), before);
        }
        // It has not touched the page, and stands still only to be saved.
        assert!(vmm.get("/")["failure"].is_null(), "{}", vmm.get("/"));
        vmm.resume();
        vmm.type_text(&format!("walk {FILLED_MIB} {SEED}\n"));
        has_failed(&mut vmm, &["not what was saved", ADDRESS]);
        flip(&files, PAGE);
        is_whole(&mut Vmm::restored(&files, "Lazy"));
    });
}

#[test]
fn memory_of_another_guest_is_not_run() {
    on_kvm_host(|| {
        let folder = tempfile::tempdir().unwrap();
        let files = saved(folder.path(), "saved");
        let other = saved_with(folder.path(), "other", SEED + 1);
        let mixed = SnapshotFiles { state: files.state, memory: other.memory };
        for backend in BACKENDS {
            let mut vmm = Vmm::start();
            let answer = vmm.request("PUT", "/snapshot/load", &mixed.load(backend));
            if answer.is_success() {
                has_failed(&mut vmm, &["not what was saved"]);
            } else {
                assert!(answer.fault_message().contains("what was saved"), "{}", answer.fault_message());
                assert!(!vmm.wait_for_exit().success());
            }
        }
    });
}

/// The snapshot in `files`, as a diff over `parent`, in another state file.
fn as_diff(files: &SnapshotFiles, id: u8, parent: &Saved, at: &SnapshotFiles) -> SnapshotFiles {
    let mut diff = Saved::decode(&file::read(&files.state).unwrap()).unwrap();
    diff.id.0 = [id; 16];
    diff.memory.parent =
        Some(Parent { id: parent.id.0, state_path: at.state.clone(), memory_path: at.memory.clone() });
    let made = SnapshotFiles::new(files.state.parent().unwrap(), &format!("diff{id}"));
    fs::copy(&files.memory, &made.memory).unwrap();
    fs::write(&made.state, diff.encode().finish().unwrap()).unwrap();
    made
}

/// A diff over the snapshot in `base`, which has all of its pages again.
pub(super) fn as_diff_over(base: &SnapshotFiles) -> SnapshotFiles {
    as_diff(base, 1, &Saved::decode(&file::read(&base.state).unwrap()).unwrap(), base)
}

#[test]
fn a_diff_is_nothing_without_what_it_is_over() {
    on_kvm_host(|| {
        let folder = tempfile::tempdir().unwrap();
        let base = saved(folder.path(), "base");
        let saved = Saved::decode(&file::read(&base.state).unwrap()).unwrap();
        let diff = as_diff(&base, 1, &saved, &base);
        let mut vmm = Vmm::restored(&diff, "Lazy");
        is_whole(&mut vmm);
        drop(vmm);
        let refusal = Vmm::refused_load(&diff.load("File"));
        assert!(refusal.contains("faultless snapshot rebase"), "{refusal}");
        let hidden = SnapshotFiles::new(folder.path(), "hidden");
        fs::rename(&base.memory, &hidden.memory).unwrap();
        assert!(Vmm::refused_load(&diff.load("Lazy")).contains("base.memory"));
        fs::rename(&base.state, &hidden.state).unwrap();
        let refusal = Vmm::refused_load(&diff.load("Lazy"));
        assert!(refusal.contains(&format!("over the snapshot {}", saved.id)), "{refusal}");
        // What is there by now is another one.
        let other = super::saved(folder.path(), "base");
        assert_eq!(Vmm::refused_load(&diff.load("Lazy")), refusal, "{other:?}");
    });
}

#[test]
fn a_diff_over_itself_is_refused() {
    on_kvm_host(|| {
        let folder = tempfile::tempdir().unwrap();
        let base = saved(folder.path(), "base");
        let mut end = Saved::decode(&file::read(&base.state).unwrap()).unwrap();
        end.id.0 = [2; 16];
        let over = SnapshotFiles::new(folder.path(), "diff2");
        let one = as_diff(&base, 1, &end, &over);
        end.id.0 = [1; 16];
        let two = as_diff(&base, 2, &end, &one);
        for files in [one, two] {
            let refusal = Vmm::refused_load(&files.load("Lazy"));
            assert!(refusal.contains("a diff that lies over itself"), "{refusal}");
        }
    });
}
