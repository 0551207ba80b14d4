//! State files that cannot be loaded: each is refused with what to do, before anything of the guest runs.

use std::fs;
use std::ops::Range;
use std::path::PathBuf;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use tests::guest::mmio;
use vmm::snapshot::file::{self, Architecture, Builder, Kind};
use vmm::snapshot::saved::Saved;

use super::*;

/// How many bytes of a state file are changed, each for itself.
const FLIPS: usize = 40;
/// At how many lengths it is cut off.
const CUTS: usize = 24;

/// How often a byte is changed and the checksum with it.
const NONSENSE_ROUNDS: u32 = 80;

/// A snapshot of which the state file is `state`.
struct Damaged {
    whole: Vec<u8>,
    files: SnapshotFiles,
    _folder: tempfile::TempDir,
}

impl Damaged {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let files = SnapshotFiles::new(folder.path(), "saved");
        let disk = folder.path().join("disk");
        fs::write(&disk, vec![0; 1 << 20]).unwrap();
        let mut vmm = Vmm::configured(&format!("rng {} fill {FILLED_MIB} {SEED} shell exit", mmio(1)));
        vmm.drive("data", &disk, false, false);
        vmm.entropy();
        vmm.start_instance();
        vmm.wait_for_line("guest: shell");
        vmm.pause();
        vmm.save(&files);
        Self { whole: fs::read(&files.state).unwrap(), files, _folder: folder }
    }

    /// Why a state file of these bytes is refused. Nothing of the guest was said.
    fn refusal(&self, state: &[u8]) -> String {
        fs::write(&self.files.state, state).unwrap();
        self.refusal_as_it_is()
    }

    fn refusal_as_it_is(&self) -> String {
        let refusal = Vmm::refused_load(&self.files.load("Lazy"));
        let known = ["Load snapshot error: Failed to get snapshot state from file: "];
        assert!(known.iter().any(|start| refusal.starts_with(start)), "{refusal}");
        refusal
    }

    /// The snapshot with some bytes of its sections of `kind` changed, and checksums that fit.
    fn with_bytes(&self, kind: Kind, places: Range<usize>, byte: u8) -> Vec<u8> {
        let file = file::StateFile::inspect(self.whole.clone()).unwrap();
        let mut builder = Builder::for_architecture(file.header().id, file.header().architecture);
        for section in file.sections() {
            let mut body = section.body.to_vec();
            let end = places.end.min(body.len());
            if section.name.kind == kind && places.start < end {
                body[places.start..end].fill(byte);
            }
            builder.add(section.name.kind, section.version, section.name.instance, body);
        }
        builder.finish().unwrap()
    }

    /// The snapshot's sections, put together anew.
    fn rebuilt(&self, architecture: Architecture, edit: impl Fn(Kind, u16) -> Option<u16>) -> Vec<u8> {
        let file = file::StateFile::inspect(self.whole.clone()).unwrap();
        let mut builder = Builder::for_architecture(file.header().id, architecture);
        for section in file.sections() {
            if let Some(version) = edit(section.name.kind, section.version) {
                builder.add(section.name.kind, version, section.name.instance, section.body.to_vec());
            }
        }
        builder.finish().unwrap()
    }
}

/// Some of the numbers below `end`, spread over them all, the first and the last among them.
fn spread(end: usize, count: usize) -> impl Iterator<Item = usize> {
    (0..count).map(move |nth| nth * (end - 1) / (count - 1))
}

#[test]
fn a_state_file_that_is_none_is_refused() {
    on_kvm_host(|| {
        let snapshot = Damaged::new();
        let state: PathBuf = snapshot.files.state.clone();
        let firecracker = [&[0, 0x10, 0x64, 0x86, 0x84, 0x19, 0x10, 0x07][..], &[0; 4000]].concat();
        for (bytes, said) in [
            (&[][..], "it is empty"),
            (b"hello, this is no snapshot", "it is not a snapshot's state file"),
            (&firecracker, "it is a snapshot of Firecracker"),
            (&fs::read(&snapshot.files.memory).unwrap(), "it is not a snapshot's state file"),
        ] {
            let refusal = snapshot.refusal(bytes);
            assert!(refusal.contains(said), "{refusal}");
        }
        fs::remove_file(&state).unwrap();
        assert!(snapshot.refusal_as_it_is().contains("there is no snapshot"));
        fs::create_dir(&state).unwrap();
        assert!(snapshot.refusal_as_it_is().contains("is not a regular file"));
        fs::remove_dir(&state).unwrap();
        mknodat(CWD, &state, FileType::Fifo, Mode::RWXU, 0).unwrap();
        assert!(snapshot.refusal_as_it_is().contains("is not a regular file"));
    });
}

#[test]
fn a_state_file_that_is_cut_off_or_continued_is_refused() {
    on_kvm_host(|| {
        let snapshot = Damaged::new();
        for length in spread(snapshot.whole.len(), CUTS) {
            let refusal = snapshot.refusal(&snapshot.whole[..length]);
            let is_told = refusal.contains("truncated") || refusal.contains("it is empty");
            assert!(is_told, "{length} bytes of {}: {refusal}", snapshot.whole.len());
        }
        let continued = [&snapshot.whole[..], b"\n"].concat();
        assert!(snapshot.refusal(&continued).contains("something was appended"));
    });
}

#[test]
fn a_state_file_with_any_bit_changed_is_refused() {
    on_kvm_host(|| {
        let snapshot = Damaged::new();
        for (nth, place) in spread(snapshot.whole.len(), FLIPS).enumerate() {
            let mut bytes = snapshot.whole.clone();
            bytes[place] ^= 1 << (nth % 8);
            let refusal = snapshot.refusal(&bytes);
            assert!(refusal.contains(": "), "byte {place}: {refusal}");
        }
        fs::write(&snapshot.files.state, &snapshot.whole).unwrap();
        let mut vmm = Vmm::restored(&snapshot.files, "Lazy");
        is_whole(&mut vmm);
    });
}

#[test]
fn what_another_program_or_host_has_written_is_refused() {
    on_kvm_host(|| {
        let snapshot = Damaged::new();
        let host = Architecture::HOST;
        let other = if host == Architecture::X86_64 { Architecture::AARCH64 } else { Architecture::X86_64 };
        let elsewhere = snapshot.rebuilt(other, |_, version| Some(version));
        assert!(snapshot.refusal(&elsewhere).contains(&format!("restore it on a host of {other}")));
        // The format's major version: behind the magic, and before everything that is checked.
        let mut newer = snapshot.whole.clone();
        newer[8] += 1;
        assert!(snapshot.refusal(&newer).contains("it was written by a newer faultless"));
        for kind in [Kind::META, Kind::CONFIG, Kind::PLATFORM, Kind::VCPU, Kind::DEVICE_SERIAL, Kind::MEMORY]
        {
            let later = snapshot.rebuilt(host, |found, version| Some(version + u16::from(found == kind)));
            let refusal = snapshot.refusal(&later);
            assert!(refusal.contains(&format!("the section {kind} was written in version")), "{refusal}");
            let without = snapshot.rebuilt(host, |found, version| (found != kind).then_some(version));
            let refusal = snapshot.refusal(&without);
            assert!(refusal.contains("no section") || refusal.contains("contradicts itself"), "{refusal}");
        }
    });
}

#[test]
fn a_state_file_that_contradicts_itself_is_refused() {
    on_kvm_host(|| {
        let snapshot = Damaged::new();
        let saved = Saved::decode(&file::read(&snapshot.files.state).unwrap()).unwrap();
        let refusal = |change: fn(&mut Saved)| {
            let mut changed = saved.clone();
            change(&mut changed);
            snapshot.refusal(&changed.encode().finish().unwrap())
        };
        for change in [
            |saved: &mut Saved| saved.memory.regions[0].1 /= 2,
            |saved: &mut Saved| saved.config.machine_config.as_mut().unwrap().mem_size_mib = 128,
            |saved: &mut Saved| saved.config.machine_config.as_mut().unwrap().vcpu_count = 2,
            |saved: &mut Saved| saved.vcpus.clear(),
        ] {
            let refusal = refusal(change);
            assert!(refusal.contains("the state file contradicts itself"), "{refusal}");
        }
    });
}

/// Checksums are no defence against who can write them: whatever is in a state file, there is an answer.
#[test]
fn nonsense_with_checksums_that_fit_is_refused_or_run_but_never_a_crash() {
    on_kvm_host(|| {
        let mut chance = chance();
        let snapshot = Damaged::new();
        let kinds: Vec<_> = {
            let file = file::StateFile::inspect(snapshot.whole.clone()).unwrap();
            file.sections().map(|section| (section.name.kind, section.body.len())).collect()
        };
        let mut granted = 0;
        for round in 0..NONSENSE_ROUNDS {
            let (kind, length) = kinds[usize::try_from(chance.below(kinds.len() as u64)).unwrap()];
            let place = usize::try_from(chance.below(length as u64)).unwrap();
            let places = place..place + 1 + usize::try_from(chance.below(8)).unwrap();
            let byte = if chance.happens(50) { 0xff } else { u8::try_from(chance.below(256)).unwrap() };
            let state = snapshot.with_bytes(kind, places.clone(), byte);
            fs::write(&snapshot.files.state, state).unwrap();
            let mut vmm = Vmm::start();
            let answer = vmm.request("PUT", "/snapshot/load", &snapshot.files.load(any_backend(&mut chance)));
            let what = format!("round {round}: bytes {places:?} of {kind} as {byte:#x}");
            if answer.is_success() {
                granted += 1;
                // A guest that was changed may end in any way, and its process with it.
                vmm.signal("TERM");
            }
            let status = vmm.wait_for_exit();
            let text = answer.fault_message();
            assert!(status.code().is_some_and(|code| code != 101), "{what}: {status} {text}\n{}", vmm.log());
            assert!(!vmm.log().contains("panicked"), "{what}: {text}\n{}", vmm.log());
        }
        println!("{granted} of {NONSENSE_ROUNDS} were run");
    });
}
