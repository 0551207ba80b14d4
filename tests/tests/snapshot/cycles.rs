//! A guest that works, saved and restored over and over: it finds every word as it has left it.

use serde_json::json;
use tests::vmm::snapshot::with;

use super::handed::Handler;
use super::*;

const CYCLES: u64 = 100;
/// How much the guest writes round and round.
const WORKED_MIB: u64 = 16;

/// How a guest comes to its next process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Save {
    Live,
    Full,
    /// Over what it was loaded from, which is to be there yet.
    Diff,
}

#[test]
fn a_guest_that_is_saved_a_hundred_times_loses_nothing() {
    on_kvm_host(|| {
        let mut chance = chance();
        let folder = tempfile::tempdir().unwrap();
        let mut vmm = Vmm::booted(&format!("work {WORKED_MIB} exit"));
        let (mut round, mut backend, mut is_tracked, mut name) = (works(&mut vmm), "none", false, 0);
        let (mut counts, mut handler) = ([0; 3], None);
        for cycle in 0..CYCLES {
            let save = match backend {
                _ if is_tracked => Save::Diff,
                // What is mapped, or served by another process, is saved while it stands still only.
                "File" | "Uffd" => Save::Full,
                _ if chance.happens(50) => Save::Live,
                _ => Save::Full,
            };
            counts[save as usize] += 1;
            // Over the files that it comes from, or beside them.
            name ^= usize::from(save == Save::Diff || chance.happens(50));
            let files = SnapshotFiles::new(folder.path(), ["one", "other"][name]);
            match save {
                Save::Live => vmm.save_live(&files),
                Save::Full => vmm.pause_and_save(&files, "Full"),
                Save::Diff => vmm.pause_and_save(&files, "Diff"),
            }
            drop(vmm);
            // A diff is not mapped, and one over it would be written over what is below.
            backend = match chance.below(3) {
                0 if save != Save::Diff => "File",
                1 if save != Save::Diff => "Uffd",
                _ => "Lazy",
            };
            // Where the memory is that another process serves, a diff over it cannot say.
            is_tracked = save != Save::Diff && backend != "Uffd" && chance.happens(50);
            let mut load = with(files.load(backend), &json!({ "track_dirty_pages": is_tracked }));
            if backend == "Uffd" {
                let socket = folder.path().join(format!("handler.{cycle}"));
                handler = Some(Handler::start(&socket, &files.memory, "good"));
                load["mem_backend"]["backend_path"] = json!(socket);
            }
            vmm = Vmm::loaded(&load);
            let now = works(&mut vmm);
            assert!(now >= round, "cycle {cycle}, {save:?}, {backend}: round {now} after round {round}");
            round = now;
        }
        let [live, full, diff] = counts;
        println!("{live} live, {full} full and {diff} diffs in {round} rounds of {WORKED_MIB} MiB");
        vmm.type_text("\n");
        vmm.ends_cleanly();
        drop(handler);
    });
}

/// The round that the guest is in, which has found nothing wrong.
fn works(vmm: &mut Vmm) -> u64 {
    let line = vmm.wait_for_line("guest: work round ");
    assert!(line.ends_with(", 0 wrong pages"), "{line}");
    let round = line.split("work round ").nth(1).and_then(|rest| rest.split(':').next());
    round.and_then(|round| round.parse().ok()).unwrap_or_else(|| panic!("no round in {line:?}"))
}
