//! A snapshot that is loaded while another one takes its place: all of one, or all of the other.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use super::*;

/// How often it is replaced.
const SAVES: u64 = 40;
/// How much the guest fills each time: little, so that there is always somebody saving.
const REPLACED_MIB: u64 = 4;

#[test]
fn what_is_loaded_while_it_is_replaced_is_of_one_moment() {
    on_kvm_host(|| {
        let mut chance = chance();
        let folder = tempfile::tempdir().unwrap();
        let files = SnapshotFiles::new(folder.path(), "saved");
        let mut saver = Vmm::booted(&format!("fill {REPLACED_MIB} 0 shell exit"));
        saver.wait_for_line("guest: shell");
        saver.pause();
        saver.save(&files);
        let last = AtomicU64::new(0);
        let loads = thread::scope(|scope| {
            let saving = scope.spawn(|| {
                for seed in 1..=SAVES {
                    saver.resume();
                    saver.type_text(&format!("fill {REPLACED_MIB} {seed}\n"));
                    saver.wait_for_line("guest: done");
                    saver.pause();
                    saver.save(&files);
                    last.store(seed, Ordering::Release);
                }
            });
            let mut loads = 0;
            while !saving.is_finished() {
                let oldest = last.load(Ordering::Acquire);
                let mut vmm = Vmm::restored(&files, any_backend(&mut chance));
                let newest = last.load(Ordering::Acquire) + 1;
                let is_of = |seed| wrong_pages_of(&mut vmm, REPLACED_MIB, seed) == 0;
                assert!((oldest..=newest).any(is_of), "it is of no moment from {oldest} to {newest}");
                loads += 1;
            }
            loads
        });
        println!("{loads} loads while it was replaced {SAVES} times");
    });
}
