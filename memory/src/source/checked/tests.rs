use proptest::prelude::*;

use super::*;
use crate::source::pattern::{Pattern, PatternReader, range_is};

/// No whole number of any chunks but single pages.
const PAGES: u64 = 131;
const PATTERN: Pattern = |page| (page.0 % 40 < 15).then_some(1);
const READER: PatternReader = PatternReader { pattern: PATTERN, pages: PAGES };

fn pages(start: u64, count: u64) -> PageRange {
    PageRange { start: PageIndex(start), count }
}

/// Reads a pattern with one thing wrong.
struct Wrong {
    page: PageIndex,
    /// Says that everything is zero, and else flips a bit.
    lies: bool,
}

impl PageReader for Wrong {
    fn name(&self) -> &'static str {
        "wrong"
    }

    fn read(&mut self, range: PageRange, into: &mut [u8]) -> Result<Content, SourceError> {
        let mut reader = READER;
        let content = reader.read(range, into)?;
        if !range.contains(self.page) {
            return Ok(content);
        }
        if self.lies {
            return Ok(Content::Zero);
        }
        if content == Content::Zero {
            into.fill(0);
        }
        into[bytes_of(self.page.0 - range.start.0) + 4095] ^= 0x10;
        Ok(Content::Bytes)
    }
}

proptest! {
    #[test]
    fn what_is_right_passes_unchanged(chunk_pages in 1_u64..70, start in 0..PAGES, count in 1..=PAGES) {
        let range = pages(start, count.min(PAGES - start));
        let mut checked = Checked::new(READER, Checksums::of_chunks(&mut READER.clone(), PAGES, chunk_pages).unwrap());
        let mut into = vec![0xee; bytes_of(range.count)];
        match checked.read(range, &mut into).unwrap() {
            Content::Bytes => prop_assert!(range_is(PATTERN, range, &into)),
            Content::Zero => prop_assert!(range.pages().all(|page| PATTERN(page).is_none())),
        }
    }

    #[test]
    fn one_wrong_bit_is_found_wherever_it_is(
        chunk_pages in 1_u64..70, wrong in 0..PAGES, before in 0_u64..20, after in 0_u64..20,
    ) {
        let checksums = Checksums::of_chunks(&mut READER.clone(), PAGES, chunk_pages).unwrap();
        let range = PageRange::between(PageIndex(wrong.saturating_sub(before)), PageIndex((wrong + 1 + after).min(PAGES)));
        let mut into = vec![0; bytes_of(range.count)];
        let mut checked = Checked::new(Wrong { page: PageIndex(wrong), lies: false }, checksums);
        let error = checked.read(range, &mut into).unwrap_err();
        let found = matches!(error, SourceError::Corrupt { range } if range.contains(PageIndex(wrong)));
        prop_assert!(found, "{}", error);
    }
}

#[test]
fn a_lie_about_zero_is_found_and_told_with_what_to_do() {
    let checksums = Checksums::of(&mut READER.clone(), PAGES).unwrap();
    let mut checked = Checked::new(Wrong { page: PageIndex(41), lies: true }, checksums);
    let mut into = vec![0; 4096];
    let error = checked.read(pages(41, 1), &mut into).unwrap_err();
    let message =
        "the content of pages 41..42 is not what was saved: restore from another copy of the snapshot";
    assert_eq!(error.to_string(), message);
    assert_eq!(checked.read(pages(42, 1), &mut into).unwrap(), Content::Bytes);
    assert_eq!(checked.read(pages(30, 1), &mut into).unwrap(), Content::Zero, "zero pages may be zero");
}

#[test]
fn bytes_that_are_zero_and_zero_have_the_same_checksum() {
    let none: Pattern = |_| None;
    let checksums = Checksums::of_chunks(&mut PatternReader { pattern: none, pages: 70 }, 70, 32).unwrap();
    assert_eq!(
        checksums.sums(),
        [crc32c::crc32c(&[0; 32 * 4096]), checksums.sums()[0], crc32c::crc32c(&[0; 6 * 4096])]
    );
    let mut checked = Checked::new(PatternReader { pattern: none, pages: 70 }, checksums);
    assert_eq!(checked.read(pages(3, 66), &mut vec![1; bytes_of(66)]).unwrap(), Content::Zero);
}

#[test]
fn past_the_end_nothing_can_be_checked() {
    let mut checked = Checked::new(READER, Checksums::of(&mut READER.clone(), PAGES - 1).unwrap());
    let error = checked.read(pages(PAGES - 1, 1), &mut vec![0; 4096]).unwrap_err();
    assert!(matches!(error, SourceError::Truncated { .. }));
    assert!(Checksums::of(&mut READER.clone(), PAGES + 1).is_err(), "what the reader says is passed on");
}

#[test]
fn a_table_that_was_saved_is_looked_at_before_it_is_used() {
    let saved = Checksums::of_chunks(&mut READER.clone(), PAGES, 64).unwrap();
    assert_eq!(Checksums::from_sums(PAGES, 64, saved.sums().to_vec()), Ok(saved.clone()));
    let short = saved.sums()[1..].to_vec();
    assert_eq!(
        Checksums::from_sums(PAGES, 64, short),
        Err(ChecksumsError::Length { actual: 2, pages: PAGES })
    );
    for chunk_pages in [0, 513] {
        let error = Checksums::from_sums(PAGES, chunk_pages, Vec::new());
        assert_eq!(error, Err(ChecksumsError::ChunkPages { chunk_pages }));
    }
}
