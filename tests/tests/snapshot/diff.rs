//! Diffs: chains of them, of machines whose memory comes about in each way, compared page by page.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use tests::guest::{Entry, PAGE_BYTES, bare_metal, fill_page, mmio};
use tests::vmm::binary;
use tests::vmm::snapshot::with;

use super::*;

const MIB: u64 = 1 << 20;
/// Where the guest's `fill` begins.
const FIRST: u64 = 2 * MIB;
/// How much of the RAM link `n` of a chain fills anew, with the seed `n`: ever less, so that something of each stays.
const LINKS_MIB: [u64; 5] = [25, 20, 15, 10, 5];

/// What the guest has filled last, from [`FIRST`] on: MiB and seed, the latest last.
#[derive(Debug, Clone)]
struct Filled(Vec<(u64, u64)>);

impl Filled {
    fn at_first() -> Self {
        Self(vec![(FILLED_MIB, SEED)])
    }

    /// Has the guest fill anew.
    fn refill(&mut self, vmm: &mut Vmm, mib: u64, seed: u64) {
        vmm.type_text(&format!("fill {mib} {seed}\n"));
        vmm.wait_for_line("guest: done");
        self.0.push((mib, seed));
    }

    /// Compares every page of a memory file that stands for itself.
    fn assert_in(&self, memory: &Path) {
        let file = fs::File::open(memory).unwrap();
        let page_bytes = usize::try_from(PAGE_BYTES).unwrap();
        let (mut found, mut expected) = (vec![0; page_bytes], vec![0; page_bytes]);
        for address in (FIRST..FIRST + FILLED_MIB * MIB).step_by(page_bytes) {
            let covers = |(mib, _): &&(u64, u64)| address < FIRST + mib * MIB;
            let (_, seed) = self.0.iter().rev().find(covers).unwrap();
            file.read_exact_at(&mut found, address).unwrap();
            fill_page(address, *seed, &mut expected);
            assert!(found == expected, "{}: {address:#x} is not of seed {seed}", memory.display());
        }
    }

    /// Has a guest compare what was filled last.
    fn assert_seen_by(&self, vmm: &mut Vmm) {
        let (mib, seed) = self.0.last().unwrap();
        vmm.type_text(&format!("walk {mib} {seed}\n"));
        let line = vmm.wait_for_line("guest: walk");
        assert!(line.contains(&format!("walk {mib} MiB, 0 wrong pages")), "{line}");
        vmm.wait_for_line("guest: done");
    }
}

/// A guest that has filled its RAM, on a machine with more of a configuration.
fn filled_on(machine: &Value, prepare: impl FnOnce(&Vmm)) -> Vmm {
    let mut vmm = Vmm::start();
    let size = json!({ "vcpu_count": 1, "mem_size_mib": 64 });
    vmm.grant("PUT", "/machine-config", &with(size, machine));
    vmm.boot_source(bare_metal(Entry::Linux64), None, &format!("fill {FILLED_MIB} {SEED} shell exit"));
    prepare(&vmm);
    vmm.start_instance();
    vmm.wait_for_line("guest: shell");
    vmm
}

fn tracked() -> Vmm {
    filled_on(&json!({ "track_dirty_pages": true }), |_| {})
}

fn diff(files: &SnapshotFiles) -> Value {
    with(files.creation(), &json!({ "snapshot_type": "Diff" }))
}

/// Saves a guest that runs, and lets it go on.
fn save(vmm: &Vmm, creation: &Value) {
    vmm.pause();
    vmm.grant("PUT", "/snapshot/create", creation);
    vmm.resume();
}

fn restored(files: &SnapshotFiles, backend: &str) -> Vmm {
    Vmm::loaded(&with(files.load(backend), &json!({ "track_dirty_pages": true })))
}

/// `faultless snapshot`, which is to succeed; gives what it says.
fn snapshot(arguments: &[&str]) -> Value {
    let output = Command::new(binary()).args(["snapshot", "--json"]).args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A diff as a snapshot that stands for itself.
fn whole(files: &SnapshotFiles, folder: &Path) -> SnapshotFiles {
    let whole = SnapshotFiles::new(folder, "whole");
    let paths = [&files.state, &files.memory, &whole.state, &whole.memory].map(|path| text(path));
    snapshot(&[&["rebase"][..], &paths].concat());
    whole
}

/// How much a memory file takes.
fn mib_in(files: &SnapshotFiles) -> u64 {
    fs::metadata(&files.memory).unwrap().blocks() * 512 / MIB
}

fn has_parent(files: &SnapshotFiles) -> bool {
    !snapshot(&["inspect", text(&files.state)])["parent"].is_null()
}

/// Writes and saves a chain of diffs over what `vmm` was last saved to or loaded from; compares each with what is
/// expected, and the last with a full snapshot of the same moment.
fn chain(vmm: &mut Vmm, folder: &Path, mut filled: Filled) -> Vec<(SnapshotFiles, Filled)> {
    let mut links = Vec::new();
    for (seed, mib) in (100..).zip(LINKS_MIB) {
        filled.refill(vmm, mib, seed);
        let files = SnapshotFiles::new(folder, &seed.to_string());
        save(vmm, &diff(&files));
        assert!(has_parent(&files));
        filled.assert_in(&whole(&files, folder).memory);
        links.push((files, filled.clone()));
    }
    vmm.pause();
    let last = SnapshotFiles::new(folder, "last");
    vmm.grant("PUT", "/snapshot/create", &diff(&last));
    let full = SnapshotFiles::new(folder, "full");
    vmm.save(&full);
    vmm.resume();
    let same = fs::read(&whole(&last, folder).memory).unwrap() == fs::read(&full.memory).unwrap();
    assert!(same, "the chain is not the memory");
    links
}

#[test]
fn every_link_of_a_chain_is_the_machine_of_its_moment() {
    on_kvm_host(|| {
        let folder = tempfile::tempdir().unwrap();
        let mut vmm = tracked();
        let first = SnapshotFiles::new(folder.path(), "first");
        save(&vmm, &first.creation());
        let links = chain(&mut vmm, folder.path(), Filled::at_first());
        quits(&mut vmm);
        for ((files, filled), mib) in links.into_iter().zip(LINKS_MIB) {
            assert!(
                (mib..mib + 4).contains(&mib_in(&files)),
                "{mib} MiB were written, {} saved",
                mib_in(&files)
            );
            let mut vmm = restored(&files, "Lazy");
            filled.assert_seen_by(&mut vmm);
            quits(&mut vmm);
        }
    });
}

#[test]
fn a_restored_machine_has_diffs_over_what_it_comes_from() {
    on_kvm_host(|| {
        for backend in ["Lazy", "File"] {
            let folder = tempfile::tempdir().unwrap();
            let first = SnapshotFiles::new(folder.path(), "first");
            save(&filled(), &first.creation());
            let mut vmm = restored(&first, backend);
            is_whole(&mut vmm);
            let unwritten = SnapshotFiles::new(folder.path(), "unwritten");
            save(&vmm, &diff(&unwritten));
            assert!(
                has_parent(&unwritten) && mib_in(&unwritten) < 4,
                "{backend}: {} MiB",
                mib_in(&unwritten)
            );
            let links = chain(&mut vmm, folder.path(), Filled::at_first());
            quits(&mut vmm);
            let (files, filled) = links.last().unwrap();
            let mut vmm = restored(files, "Lazy");
            filled.assert_seen_by(&mut vmm);
            chain(&mut vmm, tempfile::tempdir_in(&folder).unwrap().path(), filled.clone());
            quits(&mut vmm);
        }
    });
}

#[test]
fn huge_pages_are_followed_too() {
    on_kvm_host(|| {
        let folder = tempfile::tempdir().unwrap();
        let machine = json!({ "track_dirty_pages": true, "huge_pages": "Transparent" });
        let mut vmm = filled_on(&machine, |_| {});
        let first = SnapshotFiles::new(folder.path(), "first");
        save(&vmm, &first.creation());
        chain(&mut vmm, folder.path(), Filled::at_first());
        quits(&mut vmm);
    });
}

#[test]
fn without_tracking_a_diff_has_all_that_may_differ() {
    on_kvm_host(|| {
        for backend in ["Lazy", "File"] {
            let folder = tempfile::tempdir().unwrap();
            let mut vmm = filled();
            let first = SnapshotFiles::new(folder.path(), "first");
            save(&vmm, &first.creation());
            chain(&mut vmm, folder.path(), Filled::at_first());
            quits(&mut vmm);
            let mut vmm = Vmm::restored(&first, backend);
            let second = tempfile::tempdir_in(&folder).unwrap();
            chain(&mut vmm, second.path(), Filled::at_first());
            quits(&mut vmm);
        }
    });
}

#[test]
fn what_a_device_writes_is_in_the_next_diff() {
    on_kvm_host(|| {
        for backend in [None, Some("Lazy"), Some("File")] {
            let folder = tempfile::tempdir().unwrap();
            let disk = folder.path().join("disk");
            fs::write(&disk, vec![0x5a; 2 << 20]).unwrap();
            let mut vmm =
                filled_on(&json!({ "track_dirty_pages": true }), |vmm| vmm.drive("data", &disk, false, true));
            let first = SnapshotFiles::new(folder.path(), "first");
            save(&vmm, &first.creation());
            if let Some(backend) = backend {
                vmm = restored(&first, backend);
            }
            // One request at a time leaves all it reads in the same 128 KiB.
            vmm.type_text(&format!("disk-read {:#x} 1 128 1\n", mmio(0)));
            vmm.wait_for_line("guest: done");
            let files = SnapshotFiles::new(folder.path(), "read");
            save(&vmm, &diff(&files));
            quits(&mut vmm);
            let mut bytes = vec![0; 128 << 10];
            let memory = fs::File::open(whole(&files, folder.path()).memory).unwrap();
            memory.read_exact_at(&mut bytes, FIRST).unwrap();
            assert!(bytes.iter().all(|byte| *byte == 0x5a), "{backend:?}: what was read is not in the diff");
        }
    });
}

#[test]
fn a_save_that_fails_loses_nothing() {
    on_kvm_host(|| {
        let folder = tempfile::tempdir().unwrap();
        let mut vmm = tracked();
        let mut filled = Filled::at_first();
        save(&vmm, &SnapshotFiles::new(folder.path(), "first").creation());
        filled.refill(&mut vmm, 20, 100);
        vmm.pause();
        for (name, creation) in [("diff", diff as fn(&_) -> _), ("full", SnapshotFiles::creation)] {
            // When all is written it is found that what an earlier save has left cannot be removed.
            let files = SnapshotFiles::new(folder.path(), name);
            fs::create_dir(folder.path().join(format!(".{name}.memory.{}.kept", "0".repeat(32)))).unwrap();
            let message = vmm.refuse("PUT", "/snapshot/create", &creation(&files));
            assert!(message.contains("Create snapshot error"), "{message}");
        }
        vmm.resume();
        filled.refill(&mut vmm, 5, 101);
        let files = SnapshotFiles::new(folder.path(), "good");
        save(&vmm, &diff(&files));
        filled.assert_in(&whole(&files, folder.path()).memory);
        quits(&mut vmm);
    });
}

#[test]
fn a_chain_that_is_moved_together_stays_one() {
    on_kvm_host(|| {
        let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut vmm = tracked();
        save(&vmm, &SnapshotFiles::new(old.path(), "first").creation());
        let mut filled = Filled::at_first();
        for (name, mib) in [("second", 20), ("third", 10)] {
            filled.refill(&mut vmm, mib, mib);
            save(&vmm, &diff(&SnapshotFiles::new(old.path(), name)));
        }
        quits(&mut vmm);
        for entry in fs::read_dir(old.path()).unwrap().flatten() {
            fs::copy(entry.path(), new.path().join(entry.file_name())).unwrap();
        }
        drop(old);
        let files = SnapshotFiles::new(new.path(), "third");
        filled.assert_in(&whole(&files, new.path()).memory);
        let mut vmm = restored(&files, "Lazy");
        filled.assert_seen_by(&mut vmm);
        // And it grows where it is now.
        chain(&mut vmm, new.path(), filled);
        quits(&mut vmm);
    });
}

#[test]
fn where_there_is_no_base_the_whole_is_saved() {
    on_kvm_host(|| {
        let folder = tempfile::tempdir().unwrap();
        let mut vmm = tracked();
        let first = SnapshotFiles::new(folder.path(), "first");
        save(&vmm, &diff(&first));
        assert!(!has_parent(&first), "nothing was saved before");
        let second = SnapshotFiles::new(folder.path(), "second");
        save(&vmm, &diff(&second));
        assert!(has_parent(&second));
        // In the place of what it would be over, which clients of Firecracker do to have one file.
        let mut filled = Filled::at_first();
        filled.refill(&mut vmm, 10, 100);
        let over = SnapshotFiles { state: folder.path().join("third.state"), memory: first.memory.clone() };
        save(&vmm, &diff(&over));
        quits(&mut vmm);
        assert!(!has_parent(&over));
        filled.assert_in(&over.memory);
        let mut vmm = restored(&over, "File");
        filled.assert_seen_by(&mut vmm);
        quits(&mut vmm);
        let message = Vmm::refused_load(&second.load("File"));
        assert!(message.contains("the backend type Lazy"), "{message}");
    });
}
