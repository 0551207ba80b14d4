//! A guest that works, saved and restored over and over: it finds every word as it has left it.

use super::*;

const CYCLES: u64 = 100;
/// How much the guest writes round and round.
const WORKED_MIB: u64 = 16;

#[test]
fn a_guest_that_is_saved_a_hundred_times_loses_nothing() {
    on_kvm_host(|| {
        let mut chance = chance();
        let folder = tempfile::tempdir().unwrap();
        let mut vmm = Vmm::booted(&format!("work {WORKED_MIB} exit"));
        let (mut round, mut backend) = (works(&mut vmm), "none");
        for cycle in 0..CYCLES {
            // Over the files that it comes from, or beside them.
            let files = SnapshotFiles::new(folder.path(), ["one", "other"][usize::from(chance.happens(50))]);
            // What is mapped is saved while it stands still only.
            let runs = backend != "File" && chance.happens(50);
            if runs {
                vmm.save_live(&files);
            } else {
                vmm.pause();
                vmm.save(&files);
            }
            drop(vmm);
            backend = any_backend(&mut chance);
            vmm = Vmm::restored(&files, backend);
            let now = works(&mut vmm);
            assert!(now >= round, "cycle {cycle}, {backend}, live: {runs}: round {now} after round {round}");
            round = now;
        }
        println!("{CYCLES} cycles in {round} rounds of {WORKED_MIB} MiB");
        vmm.type_text("\n");
        vmm.ends_cleanly();
    });
}

/// The round that the guest is in, which has found nothing wrong.
fn works(vmm: &mut Vmm) -> u64 {
    let line = vmm.wait_for_line("guest: work round ");
    assert!(line.ends_with(", 0 wrong pages"), "{line}");
    let round = line.split("work round ").nth(1).and_then(|rest| rest.split(':').next());
    round.and_then(|round| round.parse().ok()).unwrap_or_else(|| panic!("no round in {line:?}"))
}
