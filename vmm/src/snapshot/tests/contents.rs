//! What a state file has to have, and in which form.

use super::super::file::{Builder, Kind, StateFile};
use super::super::saved::DecodeError;
use super::*;

fn parsed(builder: &Builder) -> StateFile {
    StateFile::parse(builder.finish().unwrap()).unwrap()
}

/// The sections of a machine, each as `edit` makes it.
fn edited(edit: impl Fn(Kind, u16, &[u8]) -> Option<(u16, Vec<u8>)>) -> Result<Saved, DecodeError> {
    let file = parsed(&machine(1).encode());
    let mut builder = Builder::new(file.header().id);
    for section in file.sections() {
        if let Some((version, body)) = edit(section.name.kind, section.version, section.body) {
            builder.add(section.name.kind, version, section.name.instance, body);
        }
    }
    Saved::decode(&parsed(&builder))
}

/// What is wrong with a machine that was changed by `change`.
fn contradiction(change: impl FnOnce(&mut Saved)) -> &'static str {
    let mut saved = machine(1);
    change(&mut saved);
    match Saved::decode(&parsed(&saved.encode())) {
        Err(DecodeError::Contradiction(what)) => what,
        other => panic!("{other:?}"),
    }
}

fn kinds() -> Vec<Kind> {
    let mut kinds: Vec<_> =
        parsed(&machine(1).encode()).sections().map(|section| section.name.kind).collect();
    kinds.dedup();
    kinds
}

#[test]
fn a_machine_is_read_as_it_was_written() {
    let folder = Path::new("/snapshots");
    for saved in [machine(1), diff(2, 1, folder)] {
        assert_eq!(Saved::decode(&parsed(&saved.encode())).unwrap(), saved);
    }
}

#[test]
fn a_section_that_is_missing_is_named_or_leaves_a_contradiction() {
    let kinds = kinds();
    assert_eq!(kinds.len(), 12, "{kinds:?}");
    for missing in kinds {
        let refused = edited(|kind, version, body| (kind != missing).then(|| (version, body.to_vec())));
        match refused {
            Err(DecodeError::Missing(kind)) => assert_eq!(kind, missing),
            Err(DecodeError::Contradiction(_)) => {
                let several = [Kind::VCPU, Kind::DEVICE_BLOCK, Kind::DEVICE_ENTROPY];
                assert!(several.contains(&missing), "{missing}");
            }
            other => panic!("{missing}: {other:?}"),
        }
    }
}

#[test]
fn a_section_of_a_later_version_is_not_guessed_at() {
    for later in kinds() {
        let refused = edited(|kind, version, body| Some((version + u16::from(kind == later), body.to_vec())));
        match refused {
            Err(DecodeError::Version { kind, found: 2, known: 1 }) => assert_eq!(kind, later),
            other => panic!("{later}: {other:?}"),
        }
    }
}

#[test]
fn a_section_that_is_shorter_or_longer_makes_no_sense() {
    for changed in kinds() {
        for longer in [false, true] {
            let refused = edited(|kind, version, body| {
                let mut body = body.to_vec();
                match kind == changed {
                    true if longer => body.push(b'!'),
                    true => drop(body.pop()),
                    false => {}
                }
                Some((version, body))
            });
            match refused {
                Err(DecodeError::Body { kind, .. }) => assert_eq!(kind, changed),
                other => panic!("{changed}: {other:?}"),
            }
        }
    }
}

#[test]
fn parts_that_do_not_fit_each_other_are_refused() {
    let machine_config = |saved: &mut Saved| saved.config.machine_config.clone().unwrap();
    for (said, expected) in [
        (contradiction(|saved| saved.config.machine_config = None), "no machine configuration"),
        (contradiction(|saved| saved.vcpus.truncate(1)), "number of vCPUs"),
        (contradiction(|saved| saved.vcpus.push(vcpu(3))), "number of vCPUs"),
        (contradiction(|saved| saved.memory.regions[0].1 = 2 * MIB), "memory is of another size"),
        (contradiction(|saved| saved.memory.regions.push((u64::MAX, u64::MAX))), "memory is of another size"),
        (
            contradiction(|saved| {
                let mut machine = machine_config(saved);
                machine.mem_size_mib = 8;
                saved.config.machine_config = Some(machine);
                saved.memory.regions[0].1 = 8 * MIB;
            }),
            "memory file is of another size",
        ),
        (contradiction(|saved| drop(saved.devices.virtio.pop())), "other devices"),
        (contradiction(|saved| saved.devices.virtio.push(saved.devices.virtio[1].clone())), "other devices"),
        (contradiction(|saved| saved.config.entropy = None), "other devices"),
        (contradiction(|saved| saved.config.drives[0].drive_id = "other".to_owned()), "other devices"),
    ] {
        assert!(said.contains(expected), "{said}");
    }
}
