//! The guest that is saved, and what the host knows of it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde_json::json;
use tempfile::TempDir;
use tests::guest::{Entry, bare_metal};
use tests::vmm::{SnapshotFiles, Vmm};

pub(crate) const MEMORY_MIB: u64 = 512;
/// Of it, what is filled.
const FILLED_DIVISOR: u64 = 2;
/// What the guest touches when it goes on.
pub(crate) const WORKING_SET_MIB: u64 = 64;
/// Where the files are: a disk's time would be all that is seen.
const TMPFS: &str = "/dev/shm";
const BLOCK_BYTES: u64 = 512;
const KIB_PER_MIB: f64 = 1024.0;

/// What backs the guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pages {
    Base,
    Transparent,
}

impl Pages {
    pub(crate) const ALL: [Self; 2] = [Self::Base, Self::Transparent];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Base => "4 KiB",
            Self::Transparent => "THP",
        }
    }

    fn wanted(self) -> &'static str {
        match self {
            Self::Base => "None",
            Self::Transparent => "Transparent",
        }
    }
}

/// A guest that has filled half of its RAM, about to be booted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Guest {
    pub(crate) memory_mib: u64,
    pub(crate) pages: Pages,
    pub(crate) is_tracked: bool,
}

impl Guest {
    pub(crate) fn new(pages: Pages) -> Self {
        Self { memory_mib: MEMORY_MIB, pages, is_tracked: false }
    }

    /// So much of its RAM is not zero.
    pub(crate) fn filled_mib(self) -> u64 {
        self.memory_mib / FILLED_DIVISOR
    }

    /// Runs it until it has filled its RAM and says `line`, which the command behind that prints.
    pub(crate) fn boot(self, command: &str, line: &str) -> Vmm {
        let mut vmm = Vmm::start();
        let machine = json!({
            "vcpu_count": 1, "mem_size_mib": self.memory_mib, "huge_pages": self.pages.wanted(),
            "track_dirty_pages": self.is_tracked,
        });
        vmm.grant("PUT", "/machine-config", &machine);
        let commands = format!("fill {} 7 {command}", self.filled_mib());
        vmm.boot_source(bare_metal(Entry::Linux64), None, &commands);
        vmm.start_instance();
        vmm.wait_for_line(line);
        vmm
    }

    /// The same, until it waits for commands.
    pub(crate) fn boot_shell(self) -> Vmm {
        self.boot("shell", "guest: shell")
    }

    /// Its files, as it waits for commands.
    pub(crate) fn saved(self, folder: &Path) -> SnapshotFiles {
        let vmm = self.boot_shell();
        vmm.pause();
        let files = SnapshotFiles::new(folder, self.pages.wanted());
        vmm.save(&files);
        files
    }
}

/// Has a guest that waits for commands do one, and gives the line that it says.
pub(crate) fn command(vmm: &mut Vmm, command: &str) -> String {
    vmm.type_text(&format!("{command}\n"));
    let name = command.split(' ').next().unwrap_or(command);
    let line = vmm.wait_for_line(&format!("guest: {name}"));
    vmm.wait_for_line("guest: done");
    line
}

/// The number in front of `unit` in a line of the guest.
pub(crate) fn number_before(line: &str, unit: &str) -> u64 {
    let words: Vec<_> = line.split([' ', ',']).filter(|word| !word.is_empty()).collect();
    let found = words.windows(2).find(|pair| pair[1] == unit).and_then(|pair| pair[0].parse().ok());
    found.unwrap_or_else(|| panic!("no number of {unit} in {line:?}"))
}

/// A folder on tmpfs.
pub(crate) fn folder() -> TempDir {
    tempfile::tempdir_in(TMPFS).unwrap_or_else(|error| panic!("{TMPFS} cannot be written: {error}"))
}

/// Removes a snapshot, so that the next one is written to names that are free, as the first was.
pub(crate) fn remove(files: &SnapshotFiles) {
    for path in [&files.state, &files.memory] {
        fs::remove_file(path).expect("a snapshot's files can be removed");
    }
}

/// What a file takes of its file system.
pub(crate) fn blocks_mib(path: &Path) -> f64 {
    let file = fs::metadata(path).expect("a snapshot that was granted has its files");
    (file.blocks() * BLOCK_BYTES) as f64 / KIB_PER_MIB / KIB_PER_MIB
}

/// What the host has given the guest: the resident part of the mapping that is as large as its RAM, or larger by what
/// aligns it.
pub(crate) fn ram_in_use_mib(vmm: &Vmm, memory_mib: u64) -> f64 {
    let smaps = fs::read_to_string(format!("/proc/{}/smaps", vmm.id())).expect("a child's maps can be read");
    let mut is_ram = false;
    for line in smaps.lines() {
        if let Some(size_kib) = kib(line, "Size:") {
            is_ram = size_kib >= memory_mib << 10;
        }
        if let Some(resident_kib) = kib(line, "Rss:").filter(|_| is_ram) {
            return resident_kib as f64 / KIB_PER_MIB;
        }
    }
    panic!("guest RAM is one mapping:\n{smaps}")
}

/// The process's proportional share of all memory that it maps, in MiB.
pub(crate) fn proportional_mib(vmm: &Vmm) -> f64 {
    let path = format!("/proc/{}/smaps_rollup", vmm.id());
    let rollup = fs::read_to_string(path).expect("a child's maps can be read");
    let share_kib = rollup.lines().find_map(|line| kib(line, "Pss:"));
    share_kib.expect("the kernel tells Pss") as f64 / KIB_PER_MIB
}

/// The value of a line such as `Pss:     12 kB`.
fn kib(line: &str, field: &str) -> Option<u64> {
    line.strip_prefix(field)?.trim().strip_suffix("kB")?.trim().parse().ok()
}
