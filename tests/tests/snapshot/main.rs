//! Machines that are saved, and go on in another process: the bare-metal guest, on any KVM.
#![allow(clippy::unwrap_used, reason = "an unwrap that fails is a test that fails")]

mod cycle;
mod handed;
mod linux;
mod live;

use tests::host::on_kvm_host;
use tests::vmm::{SnapshotFiles, Vmm};

/// How much of its RAM the guest fills, of 64 MiB.
const FILLED_MIB: u64 = 40;
/// The seed it fills it with.
const SEED: u64 = 7;

/// A guest that has filled its RAM and does what is typed.
fn filled() -> Vmm {
    let mut vmm = Vmm::booted(&format!("fill {FILLED_MIB} {SEED} shell exit"));
    vmm.wait_for_line("guest: shell");
    vmm
}

/// Has a guest look at every word that it has filled.
fn is_whole(vmm: &mut Vmm) {
    vmm.type_text(&format!("walk {FILLED_MIB} {SEED}\n"));
    let line = vmm.wait_for_line("guest: walk");
    assert!(line.contains(&format!("walk {FILLED_MIB} MiB, 0 wrong pages")), "{line}");
    vmm.wait_for_line("guest: done");
}

fn quits(vmm: &mut Vmm) {
    vmm.type_text("quit\n");
    vmm.ends_cleanly();
}
