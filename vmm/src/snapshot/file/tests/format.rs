//! What is written is read again, and is as documented.

use proptest::prelude::*;

use super::*;

#[test]
fn a_file_is_laid_out_as_documented() {
    let mut builder = Builder::for_architecture(ID, Architecture::AARCH64);
    let file = builder.add_optional(Kind::VCPU, 3, 2, vec![0xaa; 9]).finish().unwrap();
    assert_eq!(file.len(), 48 + 32 + 16);
    assert_eq!(file[..8], *b"\x89FLTLS\r\n");
    assert_eq!(file[8..16], [1, 0, 0, 0, 183, 0, 0, 0]);
    assert_eq!(file[16..32], ID.0);
    assert_eq!(file[32..36], [1, 0, 0, 0]);
    assert_eq!(file[40..48], 96_u64.to_le_bytes());
    assert_eq!(file[48..56], [5, 0, 0, 0, 3, 0, 2, 0]);
    assert_eq!(file[56..64], 80_u64.to_le_bytes());
    assert_eq!(file[64..72], 9_u64.to_le_bytes());
    assert_eq!(file[72..76], crc32c::crc32c(&file[80..]).to_le_bytes());
    assert_eq!(file[76..80], [1, 0, 0, 0]);
    assert_eq!(file[80..89], [0xaa; 9]);
    assert_eq!(file[89..], [0; 7]);
    let mut head = file[..80].to_vec();
    head[36..40].fill(0);
    assert_eq!(file[36..40], crc32c::crc32c(&head).to_le_bytes());
}

#[test]
fn sections_are_found_by_name_and_listed_in_their_order() {
    let file = StateFile::parse(small()).unwrap();
    let name = |kind, instance| SectionName { kind, instance };
    let names: Vec<_> = file.sections().map(|section| section.name).collect();
    let expected = [name(Kind::META, 0), name(Kind::VCPU, 0), name(Kind::VCPU, 1), name(Kind::DEVICE_RTC, 0)];
    assert_eq!(names, expected);
    let vcpu = file.section(Kind::VCPU, 1).unwrap();
    assert_eq!((vcpu.version, vcpu.optional, vcpu.body), (3, false, &[][..]));
    assert_eq!(file.section(Kind::META, 0).unwrap().body, b"who");
    assert!(file.section(Kind::VCPU, 2).is_none());
    assert_eq!(file.header().id, ID);
    assert_eq!(file.header().architecture, Architecture::HOST);
    assert_eq!(file.header().version, FORMAT_VERSION);
    assert_eq!(StateFile::parse(Builder::new(ID).finish().unwrap()).unwrap().sections().count(), 0);
}

#[test]
fn what_no_reader_would_take_is_not_built() {
    let mut builder = Builder::new(ID);
    builder.add(Kind::VCPU, 1, 0, Vec::new()).add(Kind::VCPU, 2, 0, Vec::new());
    let error = builder.finish().unwrap_err();
    assert!(error.to_string().starts_with("the snapshot has two sections vcpu/0"), "{error}");
    let mut builder = Builder::new(ID);
    let count = u16::try_from(SECTIONS_MAX).unwrap();
    (0..count).for_each(|instance| _ = builder.add(Kind::VCPU, 1, instance, vec![1]));
    assert_eq!(StateFile::parse(builder.finish().unwrap()).unwrap().sections().count(), SECTIONS_MAX);
    builder.add(Kind::META, 1, 0, Vec::new());
    assert_eq!(builder.finish(), Err(BuildError::TooManySections { count: SECTIONS_MAX + 1 }));
    // Zeroed memory that nobody touches is not there.
    let error = Builder::new(ID).add(Kind::MEMORY, 1, 0, vec![0; FILE_BYTES_MAX]).finish().unwrap_err();
    assert_eq!(error, BuildError::TooLong { bytes: FILE_BYTES_MAX + 80 });
}

#[test]
fn ids_differ_and_kinds_are_numbered_once() {
    assert_ne!(SnapshotId::random().unwrap(), SnapshotId::random().unwrap());
    assert_eq!(SnapshotId([0xab; 16]).to_string(), "ab".repeat(16));
    let known: Vec<_> = (0..0x1000).map(Kind).filter_map(Kind::name).collect();
    let names: std::collections::HashSet<_> = known.iter().collect();
    assert_eq!((known.len(), names.len()), (12, 12));
}

proptest! {
    #[test]
    fn what_is_written_is_read_again(
        id in any::<[u8; 16]>(),
        parts in prop::collection::btree_map(
            (any::<u32>(), any::<u16>()),
            (any::<u16>(), any::<bool>(), prop::collection::vec(any::<u8>(), 0..100)),
            0..20,
        ),
    ) {
        let mut builder = Builder::new(SnapshotId(id));
        for (&(kind, instance), (version, optional, body)) in &parts {
            let add = if *optional { Builder::add_optional } else { Builder::add };
            add(&mut builder, Kind(kind), *version, instance, body.clone());
        }
        let file = StateFile::inspect(builder.finish().unwrap()).unwrap();
        prop_assert_eq!(file.header().id, SnapshotId(id));
        prop_assert_eq!(file.sections().count(), parts.len());
        for (&(kind, instance), (version, optional, body)) in &parts {
            let section = file.section(Kind(kind), instance).unwrap();
            prop_assert_eq!((section.version, section.optional, section.body), (*version, *optional, &body[..]));
        }
    }
}
