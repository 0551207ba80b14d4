//! Where a machine cannot be saved, and where it can be saved over itself. Whatever fails, the guest goes on, the
//! snapshot that was there is whole, and nothing else is left.

use std::fs;
use std::path::PathBuf;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::json;
use tests::guest::{Entry, bare_metal};
use tests::vmm::Launch;

use super::*;

/// How often two processes save to the same place at once.
const ROUNDS: usize = 8;

/// A guest that does what is typed, in a process that `launch` starts.
fn booted_by(launch: Launch) -> Vmm {
    let mut vmm = Vmm::serve(launch.with_api());
    vmm.machine(1, 64);
    vmm.boot_source(bare_metal(Entry::Linux64), None, "shell exit");
    vmm.start_instance();
    vmm.wait_for_line("guest: shell");
    vmm
}

/// Has a guest fill its RAM, from now on with `seed`.
fn fill(vmm: &mut Vmm, seed: u64) {
    vmm.type_text(&format!("fill {FILLED_MIB} {seed}\n"));
    vmm.wait_for_line("guest: done");
}

/// Why a machine that stands still is not saved to `files`.
fn refusal(vmm: &Vmm, files: &SnapshotFiles) -> String {
    let refusal = vmm.refuse("PUT", "/snapshot/create", &files.creation());
    assert!(refusal.starts_with("Create snapshot error: "), "{refusal}");
    refusal
}

#[test]
fn what_is_no_place_for_a_file_is_refused() {
    on_kvm_host(|| {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("folder")).unwrap();
        mknodat(CWD, at("pipe"), FileType::Fifo, Mode::RWXU, 0).unwrap();
        let mut vmm = filled();
        vmm.pause();
        let before = names_in(folder.path());
        for (state, memory, said) in [
            (at("state"), at("folder"), "is not a regular file"),
            (at("folder"), at("memory"), "is not a regular file"),
            (at("pipe"), at("memory"), "is not a regular file"),
            (at("state"), at("none/memory"), "check that its folder is there"),
            (at("none/state"), at("memory"), "check that its folder is there"),
            (PathBuf::from("/proc/state"), at("memory"), "check that its folder is there"),
            (at("state"), at(&"m".repeat(201)), "of at most 200 bytes"),
            (at("one"), at("folder/../one"), "is being written already"),
        ] {
            let refusal = refusal(&vmm, &SnapshotFiles { state, memory });
            assert!(refusal.contains(said), "{refusal}");
            assert_eq!(names_in(folder.path()), before, "{refusal}");
        }
        let one = json!({ "snapshot_path": at("one"), "mem_file_path": at("one") });
        assert!(vmm.refuse("PUT", "/snapshot/create", &one).contains("name two files"));
        vmm.resume();
        is_whole(&mut vmm);
        quits(&mut vmm);
    });
}

#[test]
fn names_of_one_file_become_two_files() {
    on_kvm_host(|| {
        let folder = tempfile::tempdir().unwrap();
        let files = SnapshotFiles::new(folder.path(), "linked");
        let precious = folder.path().join("precious");
        fs::write(&precious, "untouched").unwrap();
        fs::hard_link(&precious, &files.state).unwrap();
        std::os::unix::fs::symlink(&precious, &files.memory).unwrap();
        let vmm = filled();
        vmm.pause();
        vmm.save(&files);
        drop(vmm);
        assert_eq!(fs::read(&precious).unwrap(), b"untouched");
        is_whole(&mut Vmm::restored(&files, "Lazy"));
    });
}

#[test]
fn a_disk_without_room_costs_the_new_snapshot_and_nothing_else() {
    on_kvm_host(|| {
        let folder = tempfile::tempdir().unwrap();
        // Smaller than what the guest fills.
        let mut vmm = booted_by(on_small_disk(folder.path(), 20));
        let files = SnapshotFiles::new(folder.path(), "saved");
        let seen = seen_by(&vmm, folder.path());
        vmm.pause();
        vmm.save(&files);
        let before = names_in(&seen);
        assert_eq!(before, ["saved.memory", "saved.state"]);
        vmm.resume();
        fill(&mut vmm, SEED);
        vmm.pause();
        for _ in 0..2 {
            let refusal = refusal(&vmm, &files);
            assert!(refusal.contains("there is no room for the memory file"), "{refusal}");
            assert_eq!(names_in(&seen), before);
        }
        // What is whole can be moved.
        let moved = SnapshotFiles::new(folder.path(), "moved");
        fs::copy(seen.join("saved.state"), &moved.state).unwrap();
        fs::copy(seen.join("saved.memory"), &moved.memory).unwrap();
        vmm.resume();
        is_whole(&mut vmm);
        quits(&mut vmm);
        is_alive(&mut Vmm::restored(&moved, "Lazy"));
    });
}

#[test]
fn a_process_that_may_not_write_so_much_goes_on() {
    on_kvm_host(|| {
        let folder = tempfile::tempdir().unwrap();
        let files = SnapshotFiles::new(folder.path(), "saved");
        let mut vmm = booted_by(Launch::new(&[]).by(&["prlimit", "--fsize=33554432"]));
        fill(&mut vmm, SEED);
        vmm.pause();
        let refusal = refusal(&vmm, &files);
        assert!(refusal.contains("prlimit --fsize"), "{refusal}");
        assert_eq!(names_in(folder.path()), [""; 0]);
        vmm.resume();
        is_whole(&mut vmm);
        quits(&mut vmm);
    });
}

#[test]
fn a_guest_is_saved_over_the_files_that_it_comes_from() {
    on_kvm_host(|| {
        let folder = tempfile::tempdir().unwrap();
        let files = saved(folder.path(), "saved");
        for backend in ["Lazy", "File", "Lazy", "File"] {
            let mut vmm = Vmm::restored(&files, backend);
            for _ in 0..2 {
                vmm.pause();
                vmm.save(&files);
                vmm.resume();
                is_alive(&mut vmm);
            }
            assert_eq!(names_in(folder.path()), ["saved.memory", "saved.state"]);
            is_whole(&mut vmm);
            quits(&mut vmm);
        }
        is_whole(&mut Vmm::restored(&files, "Lazy"));
    });
}

#[test]
fn two_processes_that_save_to_one_place_leave_one_whole_snapshot() {
    on_kvm_host(|| {
        let folder = tempfile::tempdir().unwrap();
        let files = SnapshotFiles::new(folder.path(), "saved");
        let guests = [SEED, SEED + 1].map(filled_with);
        guests.iter().for_each(Vmm::pause);
        let mut refused = 0;
        for _ in 0..ROUNDS {
            let saving = guests.each_ref().map(|vmm| vmm.begin_save(&files.creation()));
            let answers = saving.map(|answer| answer.join().unwrap().unwrap());
            assert!(answers.iter().any(api::client::Response::is_success), "one of them has the place");
            for answer in answers.iter().filter(|answer| !answer.is_success()) {
                assert!(answer.fault_message().contains("is being written already"), "{answer:?}");
                refused += 1;
            }
            assert_eq!(names_in(folder.path()), ["saved.memory", "saved.state"]);
            let mut vmm = Vmm::restored(&files, "Lazy");
            let wrong = [SEED, SEED + 1].map(|seed| wrong_pages(&mut vmm, seed));
            let pages = FILLED_MIB << 8;
            assert!(wrong == [0, pages] || wrong == [pages, 0], "parts of both: {wrong:?}");
        }
        println!("{refused} of {} savings found the place taken", 2 * ROUNDS);
    });
}
