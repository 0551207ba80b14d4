//! A process that is killed while it saves, at any moment: the snapshot that was there is whole, or the new one is.

use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::json;
use tests::vmm::snapshot::with;

use super::*;

const ROUNDS: u64 = 30;
/// How much the guest fills each time: little, so that as many moments as possible are between two steps.
const KILLED_MIB: u64 = 8;

fn fill(vmm: &mut Vmm, seed: u64) {
    vmm.type_text(&format!("fill {KILLED_MIB} {seed}\n"));
    vmm.wait_for_line("guest: done");
}

/// How long a save takes at most, or nearly so: the first one of a process takes longer than the next.
fn time_of_saving(vmm: &Vmm, files: &SnapshotFiles) -> Duration {
    vmm.save(files);
    let started = Instant::now();
    vmm.save(files);
    started.elapsed() * 2
}

#[test]
fn killed_while_it_saves_it_leaves_the_old_snapshot_or_the_new_one() {
    on_kvm_host(|| {
        let mut chance = chance();
        let folder = tempfile::tempdir().unwrap();
        let files = SnapshotFiles::new(folder.path(), "saved");
        let mut vmm = Vmm::booted(&format!("fill {KILLED_MIB} 0 shell exit"));
        vmm.wait_for_line("guest: shell");
        vmm.pause();
        let span = time_of_saving(&vmm, &files);
        vmm.resume();
        let (mut last, mut new, mut left, mut backend) = (0, 0, 0, "none");
        for seed in 1..=ROUNDS {
            fill(&mut vmm, seed);
            // What is mapped is saved while it stands still only.
            let runs = backend != "File" && chance.happens(50);
            if !runs {
                vmm.pause();
            }
            let saving = vmm.begin_save(&with(files.creation(), &json!({ "live": runs })));
            let after = Duration::from_micros(chance.below(u64::try_from(span.as_micros()).unwrap()));
            sleep(after);
            vmm.kill();
            let was_granted = saving.join().unwrap().is_ok_and(|answer| answer.is_success());
            left += names_in(folder.path()).len() - 2;
            backend = any_backend(&mut chance);
            vmm = Vmm::restored(&files, backend);
            if wrong_pages_of(&mut vmm, KILLED_MIB, seed) == 0 {
                (last, new) = (seed, new + 1);
                continue;
            }
            assert!(!was_granted, "round {seed}: what was granted is lost, killed after {after:?}");
            let wrong = wrong_pages_of(&mut vmm, KILLED_MIB, last);
            assert_eq!(wrong, 0, "round {seed}: neither {last} nor {seed} is whole, killed after {after:?}");
        }
        println!("{new} of {ROUNDS} were new, and {left} files were left in between; killed within {span:?}");
        vmm.pause();
        vmm.save(&files);
        assert_eq!(names_in(folder.path()), ["saved.memory", "saved.state"], "the next save cleans up");
    });
}
