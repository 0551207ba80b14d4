//! What a page holds, as the model knows it.

use memory::source::pattern::{Pattern, Sequence, fill_page};
use memory::{PageIndex, PageSize};

/// How long a page is.
pub(super) const PAGE: usize = 4096;
const _: () = assert!(PAGE as u64 == PageSize::Base4K.bytes());

/// What was there before a stamp.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Base {
    /// What the source has.
    Original,
    /// Nothing: it was thrown away.
    Zero,
    /// What follows from this seed: it was written whole.
    Seed(u64),
}

/// What a page holds: its base, and over it one word that was written since.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Content {
    pub(super) base: Base,
    pub(super) stamp: Option<u64>,
}

impl Content {
    pub(super) const ORIGINAL: Self = Self { base: Base::Original, stamp: None };
    pub(super) const ZERO: Self = Self { base: Base::Zero, stamp: None };

    /// All its bytes.
    pub(super) fn bytes(self, pattern: Pattern, page: u64, into: &mut [u8; PAGE]) {
        let seed = match self.base {
            Base::Original => pattern(PageIndex(page)),
            Base::Zero => None,
            Base::Seed(seed) => Some(seed),
        };
        match seed {
            Some(seed) => fill_page(PageIndex(page), seed, into),
            None => into.fill(0),
        }
        if let Some(stamp) = self.stamp {
            let offset = stamp_offset(page);
            into[offset..offset + 8].copy_from_slice(&stamp.to_le_bytes());
        }
    }
}

/// Where in a page its stamp is: at another place in each of a huge page's.
pub(super) fn stamp_offset(page: u64) -> usize {
    usize::try_from(page % 512 * 8).expect("it is less than a page")
}

/// A number that tells bytes from others.
pub(super) fn digest(bytes: &[u8]) -> u64 {
    bytes.chunks(8).fold(0, |digest: u64, word| {
        let word = word.try_into().map_or(0, u64::from_le_bytes);
        Sequence::new(digest.rotate_left(17) ^ word).next_u64()
    })
}

/// The first byte that is not as it should be, for people.
pub(super) fn difference(found: &[u8], expected: &[u8]) -> String {
    let wrong = found.iter().zip(expected).filter(|(found, expected)| found != expected).count();
    let Some(first) = found.iter().zip(expected).position(|(found, expected)| found != expected) else {
        return "it is as it should be".to_owned();
    };
    let word = first / 8 * 8;
    let text = |bytes: &[u8]| bytes.get(word..word + 8).map(|bytes| format!("{bytes:02x?}"));
    let kind =
        if found.iter().all(|byte| *byte == 0) { "all of it is zero" } else { "not all of it is zero" };
    format!(
        "{wrong} bytes differ, the first at {first}: {} there, {} expected; {kind}",
        text(found).unwrap_or_default(),
        text(expected).unwrap_or_default()
    )
}

/// Words that anybody may write to a wild page at any time: each tells whose it is.
pub(super) fn wild_word(page: u64, chance: u64) -> u64 {
    0xc0de << 48 | (page & 0xffff_ffff) << 16 | chance & 0xffff
}

/// Whether a wild page may hold these bytes.
pub(super) fn is_wild(pattern: Pattern, page: u64, bytes: &[u8; PAGE]) -> bool {
    let mut original = [0; PAGE];
    Content::ORIGINAL.bytes(pattern, page, &mut original);
    bytes.chunks(8).zip(original.chunks(8)).all(|(found, original)| {
        let word = found.try_into().map_or(0, u64::from_le_bytes);
        found == original || word == 0 || word >> 16 == wild_word(page, 0) >> 16
    })
}
