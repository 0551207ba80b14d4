//! Files that are not what was written.

use proptest::prelude::*;

use super::*;

fn refusal(bytes: &[u8]) -> FormatError {
    StateFile::inspect(bytes.to_vec()).unwrap_err()
}

/// `file` with `bytes` at `offset`, and a header checksum that fits.
fn crafted(offset: usize, bytes: &[u8]) -> Vec<u8> {
    let mut file = small();
    file[offset..][..bytes.len()].copy_from_slice(bytes);
    file[36..40].fill(0);
    let checksum = crc32c::crc32c(&file[..48 + 4 * 32]);
    file[36..40].copy_from_slice(&checksum.to_le_bytes());
    file
}

#[test]
fn every_truncation_is_refused() {
    let file = small();
    StateFile::parse(file.clone()).unwrap();
    assert_eq!(refusal(&[]), FormatError::Empty);
    for actual in 1..file.len() {
        let expected = if actual < 48 { 48 } else { file.len() as u64 };
        assert_eq!(refusal(&file[..actual]), FormatError::Truncated { actual, expected });
    }
    let longer = [&file[..], &[0]].concat();
    let expected = FormatError::TooLong { actual: longer.len(), expected: file.len() as u64 };
    assert_eq!(refusal(&longer), expected);
}

#[test]
fn every_flipped_bit_is_refused() {
    let file = small();
    for bit in 0..file.len() * 8 {
        let mut damaged = file.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        let error = refusal(&damaged);
        let names_section = matches!(error, FormatError::DamagedSection { .. });
        assert_eq!(names_section, bit / 8 >= 48 + 4 * 32, "bit {bit}: {error}");
    }
}

#[test]
fn every_byte_that_is_lost_or_doubled_is_refused() {
    let file = small();
    for at in 0..file.len() {
        refusal(&[&file[..at], &file[at + 1..]].concat());
        refusal(&[&file[..=at], &file[at..]].concat());
    }
}

#[test]
fn what_is_damaged_is_named() {
    let mut file = small();
    file[48 + 4 * 32 + 8] ^= 1;
    let error = refusal(&file);
    assert_eq!(error.to_string(), "its section vcpu/0 is damaged: restore from another copy of the snapshot");
    let mut file = small();
    file[50] ^= 1;
    assert_eq!(refusal(&file), FormatError::DamagedHeader);
}

#[test]
fn what_is_no_state_file_is_told_apart() {
    assert_eq!(refusal(&[0; 4096]), FormatError::NotASnapshot);
    assert_eq!(refusal(b"\x7fELF\x02\x01\x01"), FormatError::NotASnapshot);
    for architecture in [0x8664_u64, 0xaaaa] {
        let magic = (0x0710_1984_0000_0000 | architecture << 16).to_le_bytes();
        assert_eq!(refusal(&[&magic[..], b"1.7.0"].concat()), FormatError::Firecracker);
        assert_eq!(refusal(&[b"\x03", &magic[..], b"9.0.0"].concat()), FormatError::Firecracker);
        assert_eq!(refusal(&[&[0; 4096], &magic[..]].concat()), FormatError::NotASnapshot);
    }
    assert!(FormatError::Firecracker.to_string().contains("Firecracker"));
}

#[test]
fn a_copy_as_text_is_told_apart() {
    let rest = &small()[8..];
    for magic in [
        &b"\x89FLTLS\n"[..],
        b"\x89FLTLS\r\r\n",
        b"\x09FLTLS\r\n",
        b"\xc2\x89FLTLS\r\n",
        b"\xef\xbf\xbdFLTLS\n",
    ] {
        assert_eq!(refusal(&[magic, rest].concat()), FormatError::TextMode);
    }
}

#[test]
fn another_version_is_refused_by_its_major_number() {
    let error = refusal(&crafted(8, &[3, 0, 0, 0]));
    let text =
        "it was written by a newer faultless (format 3.0), and this one reads up to 1.x: use that version";
    assert_eq!(error.to_string(), text);
    assert_eq!(refusal(&crafted(8, &[3, 0, 1, 0])[..12]).to_string(), text.replace("3.0", "3.1"));
    assert_eq!(refusal(&crafted(8, &[0, 0, 9, 0])), FormatError::DamagedHeader);
    let newer = StateFile::parse(crafted(8, &[1, 0, 9, 0])).unwrap();
    assert_eq!(newer.header().version, FormatVersion { major: 1, minor: 9 });
}

#[test]
fn another_architecture_is_named_and_can_be_looked_at() {
    let other =
        if Architecture::HOST == Architecture::X86_64 { Architecture::AARCH64 } else { Architecture::X86_64 };
    let file = crafted(12, &other.0.to_le_bytes());
    let error = StateFile::parse(file.clone()).unwrap_err();
    assert_eq!(error, FormatError::Architecture { found: other });
    assert!(
        error.to_string().starts_with(&format!("it is of {other} and this host is {}", Architecture::HOST))
    );
    assert_eq!(StateFile::inspect(file).unwrap().header().architecture, other);
    assert_eq!(Architecture(7).to_string(), "architecture 7");
}

#[test]
fn an_unknown_section_is_passed_over_only_if_it_may_be() {
    let unknown = Kind(0x7777);
    let mut builder = Builder::new(ID);
    builder.add_optional(unknown, 1, 0, vec![1]);
    StateFile::parse(builder.finish().unwrap()).unwrap();
    let file = builder.add(unknown, 1, 1, vec![1]).finish().unwrap();
    let error = StateFile::parse(file.clone()).unwrap_err();
    assert!(error.to_string().starts_with("its section 0x7777/1 is of a kind"), "{error}");
    StateFile::inspect(file).unwrap();
    let error = refusal(&crafted(48 + 28, &[3]));
    assert!(matches!(error, FormatError::UnknownFlags { flags: 3, .. }), "{error}");
}

#[test]
fn sections_that_overlap_or_leave_the_file_are_refused() {
    let (first, second) = (48, 48 + 32);
    let start = 48 + 4 * 32_u64;
    // The second section on the first one's body, one byte on, in the table, and far outside.
    for offset in [start, start + 9, 0, 1 << 63, u64::MAX] {
        let error = refusal(&crafted(second + 8, &offset.to_le_bytes()));
        assert!(matches!(error, FormatError::Misplaced { actual, .. } if actual == offset), "{error}");
    }
    for length in [1 << 20, 1 << 63, u64::MAX, u64::MAX - start + 1] {
        let error = refusal(&crafted(first + 16, &length.to_le_bytes()));
        assert!(matches!(error, FormatError::OutOfBounds { .. }), "{error}");
    }
    let error = refusal(&crafted(second + 4, &[3, 0, 1, 0]));
    assert!(matches!(error, FormatError::Twice { section: SectionName { kind: Kind::VCPU, instance: 1 } }));
    let error = refusal(&crafted(32, &1025_u32.to_le_bytes()));
    assert_eq!(error, FormatError::TooManySections { count: 1025 });
    assert_eq!(refusal(&crafted(32, &1024_u32.to_le_bytes())), FormatError::DamagedHeader);
}

#[test]
fn bytes_of_no_section_are_refused() {
    let mut file = [Builder::new(ID).finish().unwrap(), vec![0; 8]].concat();
    file[40] += 8;
    file[36..40].fill(0);
    let checksum = crc32c::crc32c(&file[..48]);
    file[36..40].copy_from_slice(&checksum.to_le_bytes());
    assert_eq!(refusal(&file), FormatError::Unclaimed { offset: 48 });
}

proptest! {
    #[test]
    fn random_bytes_are_refused_and_nothing_worse(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(StateFile::inspect(bytes).is_err());
    }

    #[test]
    fn a_header_that_fits_lets_nothing_worse_in(
        table in prop::collection::vec(any::<u8>(), 0..160),
        count in 0_u32..6,
    ) {
        let mut file = [&small()[..48], &table].concat();
        file[32..36].copy_from_slice(&count.to_le_bytes());
        let total = file.len() as u64;
        file[40..48].copy_from_slice(&total.to_le_bytes());
        file[36..40].fill(0);
        let end = (48 + count as usize * 32).min(file.len());
        let checksum = crc32c::crc32c(&file[..end]);
        file[36..40].copy_from_slice(&checksum.to_le_bytes());
        let is_empty = count == 0 && table.is_empty();
        prop_assert_eq!(StateFile::inspect(file).is_ok(), is_empty);
    }
}
