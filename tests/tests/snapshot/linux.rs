//! A stock Linux that is saved and restored while it works.
//!
//! A snapshot is of the machine and not of its disk. A guest that writes to its disk is therefore paused while it is
//! saved, and does not run again where it was; one that is saved live, and writes on, has a disk that it only reads.

use serde_json::json;
use tests::guest::LinuxGuest;
use tests::host::on_linux_host;
use tests::vmm::snapshot::with;

use super::handed::Handler;
use super::*;

/// Says how often it goes from one process to the next; by default once by each way.
const CYCLES_VARIABLE: &str = "FAULTLESS_CYCLES";
/// With what a kernel tells of itself as far as the line below.
const ARGUMENTS: &str = "console=ttyS0 panic=-1 reboot=t loglevel=6";
/// What 6.12 says, whose driver for the generation ID is built in; 6.1 has none.
const RESEEDED: &str = "crng reseeded due to virtual machine fork";

/// How a guest is saved.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Save {
    Live,
    Full,
    /// Over the files that it was loaded from, having been followed since.
    Diff,
}

/// How a guest goes from one process to the next.
#[derive(Clone, Copy)]
struct Way {
    save: Save,
    backend: &'static str,
}

const fn paused(backend: &'static str) -> Way {
    Way { save: Save::Full, backend }
}

const fn live(backend: &'static str) -> Way {
    Way { save: Save::Live, backend }
}

/// Only `Lazy` finds what a diff lies over.
const DIFF: Way = Way { save: Save::Diff, backend: "Lazy" };

/// For a guest that writes to its disk.
const PAUSED: [Way; 5] = [paused("Lazy"), DIFF, paused("File"), DIFF, paused("Uffd")];
/// Memory that is mapped, or served by another process, cannot be saved live: after those a pause has to come.
const MIXED: [Way; 8] = [
    live("Lazy"),
    live("Uffd"),
    paused("Lazy"),
    live("File"),
    paused("Lazy"),
    DIFF,
    paused("Uffd"),
    paused("Lazy"),
];

/// A guest at work, wherever it is.
struct Working {
    vmm: Vmm,
    reseeds: bool,
    folder: tempfile::TempDir,
    /// What serves its memory, if another process does.
    _handler: Option<Handler>,
}

impl Working {
    /// Four vCPUs, and a disk that is the guest's alone.
    fn boot(series: &str, is_read_only: bool) -> Self {
        let guest = LinuxGuest::prepare(series).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let disk = folder.path().join("root.ext4");
        guest.copy_disk(&disk).unwrap();
        let mut vmm = Vmm::start();
        vmm.machine(4, 192);
        let arguments = format!("{ARGUMENTS} guest=hello,nproc,checksum,entropy,poweroff");
        vmm.boot_source(&guest.elf, Some(&guest.initrd), &arguments);
        vmm.drive("rootfs", &disk, true, is_read_only);
        vmm.entropy();
        vmm.start_instance();
        vmm.wait_for_line("guest: nproc=4");
        vmm.wait_for_line("guest: checksum");
        Self { vmm, reseeds: series == "6.12", folder, _handler: None }
    }

    /// Dies, and goes on in another process, where its pages are followed if a diff comes `next`.
    fn go_on(&mut self, cycle: usize, way: Way, next: Save) {
        let files = SnapshotFiles::new(self.folder.path(), &(cycle % 2).to_string());
        match way.save {
            Save::Live => self.vmm.save_live(&files),
            Save::Full => self.vmm.pause_and_save(&files, "Full"),
            Save::Diff => self.vmm.pause_and_save(&files, "Diff"),
        }
        self.vmm.kill();
        self.has_found_nothing_wrong();
        let is_tracked = next == Save::Diff;
        let mut load = with(files.load(way.backend), &json!({ "track_dirty_pages": is_tracked }));
        if way.backend == "Uffd" {
            let socket = self.folder.path().join(format!("handler.{cycle}"));
            self._handler = Some(Handler::start(&socket, &files.memory, "good"));
            load["mem_backend"]["backend_path"] = json!(socket);
        }
        self.vmm = Vmm::loaded(&load);
        if self.reseeds {
            self.vmm.wait_for_line(RESEEDED);
        }
        let line = self.vmm.wait_for_line("guest: checksum");
        println!("cycle {cycle}, {:?}, {}: {line}", way.save, way.backend);
    }

    fn has_found_nothing_wrong(&self) {
        assert!(!self.vmm.console().contains("FAIL"), "{}", self.vmm.console());
    }

    fn ends(mut self) {
        self.vmm.type_text("quit\n");
        self.vmm.wait_for_line("guest: checksum over");
        self.vmm.wait_for_line("guest: entropy ok");
        self.vmm.wait_for_line("guest: poweroff");
        self.vmm.ends_cleanly();
        self.has_found_nothing_wrong();
    }
}

/// Goes from process to process by `ways`, over and over.
fn goes_on(mut guest: Working, ways: &[Way]) {
    let asked = std::env::var(CYCLES_VARIABLE).ok().map(|text| text.parse().expect("a number of cycles"));
    let mut ways = ways.iter().cycle().take(asked.unwrap_or(ways.len())).enumerate().peekable();
    while let Some((cycle, way)) = ways.next() {
        let next = ways.peek().map_or(Save::Full, |(_, next)| next.save);
        guest.go_on(cycle, *way, next);
    }
    guest.ends();
}

#[test]
fn a_working_linux_on_four_vcpus_goes_from_process_to_process() {
    on_linux_host(|| goes_on(Working::boot("6.12", false), &PAUSED));
}

#[test]
fn a_linux_that_is_saved_live_goes_from_process_to_process() {
    on_linux_host(|| goes_on(Working::boot("6.12", true), &MIXED));
}

#[test]
fn an_older_linux_that_is_saved_live_goes_from_process_to_process() {
    on_linux_host(|| goes_on(Working::boot("6.1", true), &MIXED[..3]));
}
