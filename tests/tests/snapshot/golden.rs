//! Snapshots that were made once, one for each version of the format, and that every later build restores
//! (`resources/golden/README.md`). Restored in the lab, which is the same machine everywhere; refused anywhere.

use std::fs;
use std::process::Command;

use kvm_bindings::kvm_cpuid_entry2;
use serde_json::{Value, json};
use tests::guest::mmio;
use tests::host::in_lab;
use tests::vmm::snapshot::with;
use vmm::snapshot::file::{FORMAT_VERSION, SectionName, StateFile};
use vmm::snapshot::saved::Saved;

use super::*;

/// The machine that the `golden` program has made.
const DISK_BYTES: usize = 1 << 20;
const KEPT: &str = "kept 24 7";
const KEPT_WHOLE: &str = "guest: kept 24 pages of 3584, 0 wrong pages";

/// A vendor that no processor is of.
const NO_VENDOR: [u8; 12] = *b"FaultlessCPU";
/// CPUID 0x8000_0001, EDX: both of 3DNow!, which no processor has had that can run this.
const GONE: (u32, u32) = (0x8000_0001, 0b11 << 30);

/// What stands in the repository.
struct Golden {
    version: &'static str,
    state: &'static [u8],
    /// Packed by gzip.
    memory: &'static [u8],
}

macro_rules! golden {
    ($version:literal) => {
        Golden {
            version: $version,
            state: include_bytes!(concat!("../../../resources/golden/", $version, "/state")),
            memory: include_bytes!(concat!("../../../resources/golden/", $version, "/memory.gz")),
        }
    };
}

/// From the first on; the last one is of the format that is written.
const ALL: [Golden; 1] = [golden!("1.0")];

/// A golden snapshot whose files are in `folder`, and a disk for it.
struct Unpacked {
    files: SnapshotFiles,
    disk: PathBuf,
}

impl Golden {
    fn unpack(&self, folder: &Path) -> Unpacked {
        let files = SnapshotFiles::new(folder, self.version);
        fs::write(&files.state, self.state).unwrap();
        let packed = files.memory.with_extension("memory.gz");
        fs::write(&packed, self.memory).unwrap();
        assert!(Command::new("gzip").arg("-d").arg(&packed).status().unwrap().success());
        let disk = folder.join("disk");
        fs::write(&disk, vec![0x5a; DISK_BYTES]).unwrap();
        Unpacked { files, disk }
    }

    fn saved(&self) -> Saved {
        Saved::decode(&StateFile::inspect(self.state.to_vec()).unwrap()).unwrap()
    }
}

impl Unpacked {
    fn load(&self, backend: &str) -> Value {
        let drives = json!([{ "drive_id": "data", "path_on_host": self.disk }]);
        with(self.files.load(backend), &json!({ "drive_overrides": drives }))
    }
}

/// A new process, on whose console there is a question before the guest can ask for it.
fn asked() -> Vmm {
    let mut vmm = Vmm::start();
    vmm.type_text(&format!("{KEPT}\n"));
    vmm
}

#[test]
fn what_every_earlier_version_saved_goes_on() {
    in_lab(|| {
        for golden in &ALL {
            let folder = tempfile::tempdir().unwrap();
            let unpacked = golden.unpack(folder.path());
            for backend in ["File", "Lazy"] {
                let mut vmm = asked();
                vmm.grant("PUT", "/snapshot/load", &unpacked.load(backend));
                assert_eq!(vmm.wait_for_line("guest: kept"), KEPT_WHOLE, "{}, {backend}", golden.version);
                vmm.type_text(&format!("rng {} disk-read {} 1 peek {:#x}\n", mmio(1), mmio(0), 2 << 20));
                vmm.wait_for_line("guest: rng");
                vmm.wait_for_line("guest: disk-read 1 MiB, 0 failed requests");
                vmm.wait_for_line("0x5a5a5a5a");
                quits(&mut vmm);
            }
        }
    });
}

/// A section whose layout is another has to get another version, and the format a golden snapshot that has it.
#[test]
fn what_is_written_now_is_what_the_last_of_them_has() {
    let newest = ALL.last().unwrap();
    assert_eq!(newest.version, FORMAT_VERSION.to_string(), "make one: see resources/golden/README.md");
    let written = newest.saved().encode().finish().unwrap();
    let (written, golden) =
        (StateFile::inspect(written).unwrap(), StateFile::inspect(newest.state.to_vec()).unwrap());
    let names = |file: &StateFile| -> Vec<(SectionName, u16)> {
        file.sections().map(|section| (section.name, section.version)).collect()
    };
    assert_eq!(names(&written), names(&golden));
    for (written, golden) in written.sections().zip(golden.sections()) {
        assert!(
            written.body == golden.body,
            "the section {} is laid out otherwise, and its version is still {}",
            golden.name,
            golden.version
        );
    }
}

/// The versions of what a machine of this host is saved as, rather than of what was decoded.
#[test]
fn a_machine_is_saved_in_the_versions_that_the_last_of_them_has() {
    on_kvm_host(|| {
        let golden = StateFile::inspect(ALL.last().unwrap().state.to_vec()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let files = saved(folder.path(), "now");
        let now = StateFile::inspect(fs::read(&files.state).unwrap()).unwrap();
        assert_eq!(now.header().version, golden.header().version);
        for section in now.sections() {
            let known = golden.section(section.name.kind, section.name.instance);
            let known = known.unwrap_or_else(|| panic!("no golden snapshot has a section {}", section.name));
            assert_eq!(section.version, known.version, "{}", section.name);
        }
    });
}

#[test]
fn a_later_format_is_refused_with_its_version() {
    on_kvm_host(|| {
        let folder = tempfile::tempdir().unwrap();
        let unpacked = ALL[0].unpack(folder.path());
        let later = FORMAT_VERSION.major + 1;
        let mut state = ALL[0].state.to_vec();
        state[8..12].copy_from_slice(&[later.to_le_bytes(), 3u16.to_le_bytes()].concat());
        fs::write(&unpacked.files.state, state).unwrap();
        let refusal = refused(&unpacked.load("Lazy"));
        assert!(refusal.contains(&format!("a newer faultless (format {later}.3)")), "{refusal}");
    });
}

/// Whatever this host's processor is, the guest's is of another vendor and has what no other has.
#[test]
fn a_processor_that_lacks_what_the_guests_had_is_refused_by_name() {
    on_kvm_host(|| {
        let mut saved = ALL.last().unwrap().saved();
        for vcpu in &mut saved.vcpus {
            vcpu.cpuid.iter_mut().for_each(|leaf| make_foreign(&mut leaf.0));
        }
        let folder = tempfile::tempdir().unwrap();
        let unpacked = ALL.last().unwrap().unpack(folder.path());
        fs::write(&unpacked.files.state, saved.encode().finish().unwrap()).unwrap();
        for backend in ["File", "Lazy"] {
            let refusal = refused(&unpacked.load(backend));
            for said in [
                "this host cannot take the guest",
                "its processor is of FaultlessCPU, this host's of ",
                "this host lacks ",
                "3dnowext, 3dnow",
            ] {
                assert!(refusal.contains(said), "{said:?} is not in: {refusal}");
            }
        }
    });
}

fn make_foreign(leaf: &mut kvm_cpuid_entry2) {
    let word = |at: usize| u32::from_le_bytes(NO_VENDOR[at..at + 4].try_into().unwrap());
    if leaf.function == 0 {
        (leaf.ebx, leaf.edx, leaf.ecx) = (word(0), word(4), word(8));
    }
    if leaf.function == GONE.0 {
        leaf.edx |= GONE.1;
    }
}

/// Why a load is refused. The process ends, and its guest, which has been asked something, has not run.
fn refused(load: &Value) -> String {
    let mut vmm = asked();
    let refusal = vmm.refuse("PUT", "/snapshot/load", load);
    assert!(!vmm.wait_for_exit().success());
    assert_eq!(vmm.console(), "", "something of the guest has run");
    refusal
}
