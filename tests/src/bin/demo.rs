//! What `make demo` shows: a stock Debian kernel is launched, saved while it runs, restored before its memory is read,
//! and cloned.
//!
//! ```text
//!   launch ─▶ counts aloud ─────────────────▶ goes on
//!                  │ live snapshot
//!                  └─▶ two files ─┬─▶ lazy restore      runs at once; its pages come as they are wanted
//!                                 └─▶ clones, at once   share the memory file's pages
//! ```
//!
//! Where this machine's KVM cannot run Linux, the same program runs again on a KVM host in software, and says so.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tests::guest::{DISK_BYTES, LinuxGuest, QUIET_CONSOLE};
use tests::host::{self, Place};
use tests::lab::{Lab, LabCommand};
use tests::vmm::{SnapshotFiles, Vmm, binary};

const SERIES: &str = "6.12";
const CPUS: u32 = 2;
const MEMORY_MIB: u32 = 256;
const CHECKS: &str = "hello,nproc,memory,disk-ro,entropy,tick";
const CLONES: usize = 4;
/// What the log says of a live snapshot.
const STOOD_STILL: &str = "stood still to be saved";

fn main() -> ExitCode {
    // Made here, where it is kept: the lab forgets.
    let guest = match LinuxGuest::prepare(SERIES) {
        Ok(guest) => guest,
        Err(error) => {
            eprintln!("demo: {error}");
            return ExitCode::FAILURE;
        }
    };
    match host::place_for_linux() {
        Place::Own => {
            show(&guest);
            ExitCode::SUCCESS
        }
        Place::Lab => rerun_in_lab(),
    }
}

fn rerun_in_lab() -> ExitCode {
    let lab = Lab::default();
    println!("This machine's own KVM cannot run Linux, so the demo runs in the {}:", lab.describe());
    println!(
        "QEMU emulates a whole KVM host, so every time below is some tens of times what real hardware takes.\n"
    );
    let program = std::env::current_exe().expect("a running program has a path");
    match lab.run(&LabCommand::new(program), &mut io::stdout()) {
        Ok(exit) if exit.status == 0 => ExitCode::SUCCESS,
        Ok(exit) => {
            eprintln!("demo: it ended with status {} there", exit.status);
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("demo: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What took how long.
#[derive(Default)]
struct Steps(Vec<(String, Duration)>);

impl Steps {
    fn took(&mut self, name: impl Into<String>, time: Duration) {
        self.0.push((name.into(), time));
    }

    fn print(&self) {
        println!("\n{:<52} {:>10}", "step", "ms");
        for (step, took) in &self.0 {
            println!("{step:<52} {:>10.1}", took.as_secs_f64() * 1e3);
        }
    }
}

fn show(guest: &LinuxGuest) {
    println!("On {}: {}", host::describe(), binary().display());
    let folder = tempfile::tempdir().expect("the folder for temporary files can be written");
    let disk = folder.path().join("root.ext4");
    guest.copy_disk(&disk).expect("a temporary folder has room for the root disk");
    let mut steps = Steps::default();
    let mut vmm = launch(guest, &disk, &mut steps);
    let (files, count) = save_live(&mut vmm, &folder, &mut steps);
    ends(vmm);
    restore_lazily(&files, count, &mut steps);
    clone(&files, count, &mut steps);
    steps.print();
    println!("\nEvery guest went on counting where it was saved, and every check in it held.");
}

/// Boots the microVM, request by request, until it counts.
fn launch(guest: &LinuxGuest, disk: &Path, steps: &mut Steps) -> Vmm {
    println!("\nLaunch: one process, five requests");
    let mut vmm = Vmm::start_with(&["--level", "Debug"]);
    steps.took("launch: process start to API ready", vmm.api_ready_after());
    println!("  PUT /machine-config   {CPUS} vCPUs, {MEMORY_MIB} MiB");
    vmm.machine(CPUS, MEMORY_MIB);
    println!("  PUT /boot-source      Linux {}, Debian's own image", guest.release);
    vmm.boot_source(&guest.image, Some(&guest.initrd), &format!("{QUIET_CONSOLE} guest={CHECKS}"));
    println!("  PUT /drives/rootfs    ext4, {} MiB, read-only: all clones share it", DISK_BYTES >> 20);
    vmm.drive("rootfs", disk, true, true);
    println!("  PUT /entropy");
    vmm.entropy();
    println!("  PUT /actions          InstanceStart");
    let start = Instant::now();
    vmm.start_instance();
    steps.took("launch: InstanceStart answered", start.elapsed());
    vmm.wait_for_line("guest: init");
    steps.took("launch: start to init", start.elapsed());
    vmm.wait_for_line("guest: hello");
    steps.took("launch: start to root disk", start.elapsed());
    let mut count = 0;
    while count < 3 {
        count = counts(&mut vmm);
    }
    vmm.console().lines().for_each(|line| println!("    | {}", line.trim_end()));
    check(&vmm);
    vmm
}

/// Saves the machine while it counts. Gives the files, and a number that it had reached before.
fn save_live(vmm: &mut Vmm, folder: &TempDir, steps: &mut Steps) -> (SnapshotFiles, u64) {
    println!("\nLive snapshot: the guest counts on while its memory is written");
    let files = SnapshotFiles::new(folder.path(), "demo");
    let before = counts(vmm);
    println!("  PUT /snapshot/create  live");
    let asked = Instant::now();
    vmm.save_live(&files);
    steps.took("live snapshot: request to both files in place", asked.elapsed());
    if let Some(stood_still) = stood_still(&vmm.log()) {
        steps.took("live snapshot: of that, the guest stood still", stood_still);
    }
    let after = last_count(vmm);
    println!("    the guest counted from {before} to {after} meanwhile");
    println!("    {} of state, {} of memory on disk", on_disk(&files.state), on_disk(&files.memory));
    (files, before)
}

/// A process that has nothing but the files, and runs the guest before it has read its memory.
fn restore_lazily(files: &SnapshotFiles, count: u64, steps: &mut Steps) {
    println!("\nLazy restore: a new process, in which the guest runs before its memory has been read");
    println!("  PUT /snapshot/load    Lazy");
    let mut vmm = Vmm::start();
    let asked = Instant::now();
    vmm.grant("PUT", "/snapshot/load", &files.load("Lazy"));
    steps.took("lazy restore: request to running", asked.elapsed());
    let first = goes_on(&mut vmm, count);
    steps.took("lazy restore: request to the guest's next line", asked.elapsed());
    println!("    | guest: tick {first}");
    ends(vmm);
}

/// Several of the same guest, at once.
fn clone(files: &SnapshotFiles, count: u64, steps: &mut Steps) {
    println!("\nClones: {CLONES} processes at once, whose unchanged memory is the file's pages");
    println!("  PUT /snapshot/load    File, {CLONES} times");
    let mut clones: Vec<_> = (0..CLONES).map(|_| Vmm::start()).collect();
    let asked = Instant::now();
    for (number, clone) in (1..).zip(&clones) {
        let loading = Instant::now();
        clone.grant("PUT", "/snapshot/load", &files.load("File"));
        steps.took(format!("clone {number}: request to running"), loading.elapsed());
    }
    for (number, clone) in (1..).zip(&mut clones) {
        println!("    | guest: tick {}, clone {number}", goes_on(clone, count));
    }
    steps.took(format!("all {CLONES} clones: first request to each one's next line"), asked.elapsed());
    let (mut resident, mut shares) = (0, 0);
    println!("\n    {:<10} {:>14} {:>24}", "memory", "resident, MiB", "share of it (PSS), MiB");
    for (number, clone) in (1..).zip(&clones) {
        let (rss_mib, pss_mib) = (rollup_mib(clone, "Rss:"), rollup_mib(clone, "Pss:"));
        println!("    {:<10} {rss_mib:>14} {pss_mib:>24}", format!("clone {number}"));
        resident += rss_mib;
        shares += pss_mib;
    }
    println!("    {:<10} {resident:>14} {shares:>24}", "all");
    clones.into_iter().for_each(ends);
}

/// The next number that a guest counts.
fn counts(vmm: &mut Vmm) -> u64 {
    let line = vmm.wait_for_line("guest: tick ");
    number_in(&line).unwrap_or_else(|| panic!("no number in {line:?}"))
}

/// The first number that a restored guest counts, which it had not reached when it was about to be saved.
fn goes_on(vmm: &mut Vmm, before: u64) -> u64 {
    let count = counts(vmm);
    assert!(count > before, "it was past {before} when it was saved, and goes on at {count}");
    count
}

/// The last number that a guest has counted so far.
fn last_count(vmm: &Vmm) -> u64 {
    vmm.console().lines().rev().find_map(number_in).expect("it has counted")
}

fn number_in(line: &str) -> Option<u64> {
    line.split("guest: tick ").nth(1)?.trim().parse().ok()
}

/// Ends a machine as its owner does.
fn ends(mut vmm: Vmm) {
    check(&vmm);
    vmm.signal("TERM");
    vmm.ends_cleanly();
}

/// Ends the program if a guest did not answer as it should.
fn check(vmm: &Vmm) {
    assert!(!vmm.console().contains("guest: FAIL"), "a check failed in the guest:\n{}", vmm.console());
}

/// How long a guest stood still while it was saved, as the VMM's log has it.
fn stood_still(log: &str) -> Option<Duration> {
    let line = log.lines().rfind(|line| line.contains(STOOD_STILL))?;
    let digits = line.split("elapsed_us=").nth(1)?.split(|letter: char| !letter.is_ascii_digit()).next()?;
    digits.parse().ok().map(Duration::from_micros)
}

/// What a file takes on its disk: a memory file has holes where the guest has zeros.
fn on_disk(path: &Path) -> String {
    let kib = fs::metadata(path).map_or(0, |metadata| metadata.blocks() / 2);
    if kib < 1024 { format!("{kib} KiB") } else { format!("{} MiB", kib >> 10) }
}

/// A sum over all of a process's memory, in MiB.
fn rollup_mib(vmm: &Vmm, field: &str) -> u64 {
    let path = format!("/proc/{}/smaps_rollup", vmm.id());
    let sums = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let line = sums.lines().find_map(|line| line.strip_prefix(field));
    let kib: Option<u64> = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse().ok());
    kib.unwrap_or_else(|| panic!("no {field} in {path}")) >> 10
}
