//! Machines that are saved, and go on in another process: the bare-metal guest, on any KVM.
#![allow(clippy::unwrap_used, reason = "an unwrap that fails is a test that fails")]

mod bad_memory;
mod bad_state;
mod command_line;
mod contract;
mod cycle;
mod cycles;
mod devices;
mod diff;
mod golden;
mod handed;
mod kernels;
mod killed;
mod linux;
mod live;
mod places;
mod replaced;
mod working_set;

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use memory::source::pattern::Sequence;
use tests::host::on_kvm_host;
use tests::lab::LAB_VARIABLE;
use tests::vmm::{Launch, SnapshotFiles, Vmm};

/// How much of its RAM the guest fills, of 64 MiB.
const FILLED_MIB: u64 = 40;
/// The seed it fills it with.
const SEED: u64 = 7;

/// A guest that has filled its RAM and does what is typed.
fn filled() -> Vmm {
    filled_with(SEED)
}

/// The same, with another seed.
fn filled_with(seed: u64) -> Vmm {
    let mut vmm = Vmm::booted(&format!("fill {FILLED_MIB} {seed} shell exit"));
    vmm.wait_for_line("guest: shell");
    vmm
}

/// A guest with a disk and an entropy device that does what is typed.
fn with_devices(disk: &Path) -> Vmm {
    let mut vmm = Vmm::configured("shell exit");
    vmm.drive("data", disk, false, false);
    vmm.entropy();
    vmm.start_instance();
    vmm.wait_for_line("guest: shell");
    vmm
}

/// The snapshot of a guest that has filled its RAM and does what is typed. The guest is gone.
fn saved(folder: &Path, name: &str) -> SnapshotFiles {
    saved_with(folder, name, SEED)
}

/// The same, with another seed.
fn saved_with(folder: &Path, name: &str, seed: u64) -> SnapshotFiles {
    let files = SnapshotFiles::new(folder, name);
    let vmm = filled_with(seed);
    vmm.pause();
    vmm.save(&files);
    files
}

/// Has a guest look at every word that it has filled.
fn is_whole(vmm: &mut Vmm) {
    assert_eq!(wrong_pages(vmm, SEED), 0, "{}", vmm.console());
}

/// How many pages a guest has that are not as they were filled with `seed`.
fn wrong_pages(vmm: &mut Vmm, seed: u64) -> u64 {
    wrong_pages_of(vmm, FILLED_MIB, seed)
}

/// The same of so many MiB.
fn wrong_pages_of(vmm: &mut Vmm, mib: u64, seed: u64) -> u64 {
    vmm.type_text(&format!("walk {mib} {seed}\n"));
    let line = vmm.wait_for_line(&format!("guest: walk {mib} MiB, "));
    vmm.wait_for_line("guest: done");
    let count = line.split(", ").nth(1).and_then(|part| part.split(' ').next());
    count.and_then(|count| count.parse().ok()).unwrap_or_else(|| panic!("no count in {line:?}"))
}

/// A VMM to whom `folder` is an empty file system of its own, of so many MiB.
fn on_small_disk(folder: &Path, mib: u64) -> Launch {
    let script = format!(r#"mount -t tmpfs -o size={mib}m tmpfs "$0" && exec "$@""#);
    let folder = folder.to_str().unwrap();
    // In the lab, which is a root folder, nobody gets a user namespace, and everybody is root.
    let who: &[&str] = if std::env::var_os(LAB_VARIABLE).is_some() { &[] } else { &["--map-root-user"] };
    Launch::new(&[]).by(&[&["unshare", "--mount"], who, &["sh", "-c", &script, folder]].concat())
}

/// Where its `folder` is to be seen from outside.
fn seen_by(vmm: &Vmm, folder: &Path) -> PathBuf {
    PathBuf::from(format!("/proc/{}/root", vmm.id())).join(folder.strip_prefix("/").unwrap())
}

/// Has a guest answer.
fn is_alive(vmm: &mut Vmm) {
    vmm.type_text("hello\n");
    vmm.wait_for_line("guest: done");
}

fn quits(vmm: &mut Vmm) {
    vmm.type_text("quit\n");
    vmm.ends_cleanly();
}

/// Chance that can be had again: by the seed that it prints, in the environment variable that it names.
fn chance() -> Sequence {
    const VARIABLE: &str = "FAULTLESS_TEST_SEED";
    let given = std::env::var(VARIABLE).ok().map(|seed| seed.parse().unwrap());
    let seed = given
        .unwrap_or_else(|| u64::from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos()));
    println!("{VARIABLE}={seed}");
    Sequence::new(seed)
}

fn any_backend(chance: &mut Sequence) -> &'static str {
    if chance.happens(50) { "File" } else { "Lazy" }
}

/// What is in a folder, hidden or not, in order.
fn names_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    // What a lazy restore leaves beside the memory file is not part of a snapshot.
    let mut names: Vec<_> = names.filter(|name| !name.ends_with(".working-set")).collect();
    names.sort_unstable();
    names
}
