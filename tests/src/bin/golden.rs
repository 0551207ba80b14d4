//! Makes a golden snapshot: `golden FOLDER`, in the lab. Every later version has to restore it;
//! `resources/golden/README.md` says how one is made, and when.
//!
//! The machine has one of everything that a state file has sections for, twice where that is possible: two vCPUs, a disk
//! and an entropy device that have been used. Its memory is small, and all but a few pages of it are zeros.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use tests::guest::{Entry, bare_metal, mmio};
use tests::lab::LAB_VARIABLE;
use tests::vmm::{SnapshotFiles, Vmm};
use vmm::snapshot::file::StateFile;
use vmm::snapshot::saved::Saved;

const CPUS: u32 = 2;
const MEMORY_MIB: u32 = 16;
const DISK_BYTES: usize = 1 << 20;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [folder] = &arguments[..] else {
        eprintln!("usage: golden FOLDER");
        return ExitCode::from(2);
    };
    if std::env::var_os(LAB_VARIABLE).is_none() {
        eprintln!(
            "golden: no other machine than the lab is the same everywhere; run this by `kvm-host`, as \
             resources/golden/README.md says"
        );
        return ExitCode::FAILURE;
    }
    match make(folder) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("golden: {}: {error}", folder.display());
            ExitCode::FAILURE
        }
    }
}

/// Leaves `state` and `memory.gz` in `folder`.
fn make(folder: &Path) -> io::Result<()> {
    let disk = folder.join("disk");
    fs::write(&disk, vec![0x5a; DISK_BYTES])?;
    let mut vmm = Vmm::start();
    vmm.machine(CPUS, MEMORY_MIB);
    // The disk's requests have their payloads where `keep` leaves zeros, so it comes last.
    let commands = format!("rng {} disk-write {} 1 keep 24 7 shell exit", mmio(1), mmio(0));
    vmm.boot_source(bare_metal(Entry::Linux64), None, &commands);
    vmm.drive("data", &disk, false, false);
    vmm.entropy();
    vmm.start_instance();
    vmm.wait_for_line("guest: keep");
    vmm.wait_for_line("guest: shell");
    vmm.pause();
    let files = SnapshotFiles::new(vmm.folder(), "golden");
    vmm.save(&files);
    fs::write(folder.join("state"), without_frequency(fs::read(&files.state)?)?)?;
    compress(&files.memory, &folder.join("memory.gz"))
}

/// The state without the frequency of the time stamp counter. The lab's counter is that of the machine outside, and
/// cannot be scaled: a guest that knows no frequency takes what there is.
fn without_frequency(state: Vec<u8>) -> io::Result<Vec<u8>> {
    let file = StateFile::parse(state).map_err(io::Error::other)?;
    let mut saved = Saved::decode(&file).map_err(io::Error::other)?;
    saved.vcpus.iter_mut().for_each(|vcpu| vcpu.tsc_khz = None);
    saved.encode().finish().map_err(io::Error::other)
}

/// The same bytes make the same file: without a name and a time.
fn compress(from: &Path, to: &Path) -> io::Result<()> {
    let status =
        Command::new("gzip").arg("-9nc").stdin(File::open(from)?).stdout(File::create(to)?).status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("gzip: {status}"))) }
}
