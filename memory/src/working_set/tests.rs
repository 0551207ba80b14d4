use proptest::prelude::*;

use super::plan::{RANGES_MAX, WHOLE_FROM_PAGES};
use super::*;

const ID: [u8; 16] = [7; 16];
/// 64 MiB, and a page.
const RAM_PAGES: u64 = 32 * 512 + 1;

fn pages(start: u64, count: u64) -> PageRange {
    PageRange { start: PageIndex(start), count }
}

fn set(wanted: &[PageRange]) -> WorkingSet {
    WorkingSet::empty(RAM_PAGES).grown(wanted)
}

fn numbers(set: &WorkingSet) -> Vec<u64> {
    set.chunks.iter().map(|chunk| chunk.number).collect()
}

#[test]
fn a_plan_is_in_the_order_in_which_chunks_were_wanted_first() {
    let set = set(&[pages(1024, 16), pages(0, 16), pages(1056, 1), pages(1040, 16), pages(16_384, 9)]);
    assert_eq!(set.plan(true), [pages(1024, 33), pages(0, 16), pages(16_384, 1)]);
    assert_eq!(set.page_count(), 50);
}

#[test]
fn a_chunk_is_placed_whole_where_that_takes_no_longer() {
    let few = set(&[pages(512, WHOLE_FROM_PAGES - 1)]);
    assert_eq!(few.plan(true), [pages(512, WHOLE_FROM_PAGES - 1)]);
    let many = set(&[pages(512, WHOLE_FROM_PAGES), pages(1024, 300), pages(300, 212)]);
    assert_eq!(many.plan(true), [pages(512, 1024), pages(0, 512)]);
    assert_eq!(many.plan(false), [pages(512, WHOLE_FROM_PAGES), pages(1024, 300), pages(300, 212)]);
    let last = WorkingSet::empty(512 + 200).grown(&[pages(512, 200)]);
    assert_eq!(last.plan(true), [pages(512, 200)], "there is no whole chunk at the end of this memory");
}

#[test]
fn what_came_too_late_is_placed_earlier_and_what_is_new_last() {
    let first = set(&[pages(0, 8), pages(512, 8), pages(1024, 8)]);
    let second = first.grown(&[pages(2048, 8), pages(1025, 1), pages(520, 1)]);
    assert_eq!(numbers(&second), [2, 1, 0, 4]);
    assert_eq!(second.page_count(), 8 + 9 + 8 + 8, "nothing that was known is forgotten");
    assert_eq!(second.grown(&[]), second);
}

#[test]
fn what_is_too_much_goes_from_the_end_and_new_pages_find_room() {
    let all = RAM_PAGES / 2;
    let full = set(&[pages(0, RAM_PAGES)]);
    assert!(full.page_count() <= all && full.page_count() > all - 512);
    let few = full.grown(&[pages(20 * 512, 512)]);
    assert_eq!(numbers(&few).last(), Some(&20));
    assert_eq!(numbers(&few)[..15], (0..15).collect::<Vec<_>>());
    let many = full.grown(&[pages(16 * 512, 16 * 512)]);
    assert_eq!(numbers(&many), (0..8).chain(16..24).collect::<Vec<_>>(), "half of the room");
}

#[test]
fn a_plan_has_no_more_ranges_than_may_wait() {
    let every_other: Vec<_> = (0..RAM_PAGES / 4).map(|nth| pages(nth * 2, 1)).collect();
    assert_eq!(set(&every_other).plan(false).len(), RANGES_MAX);
}

#[test]
fn what_is_wrong_with_a_file_is_told() {
    let good = set(&[pages(0, 8), pages(16_384, 1)]).to_bytes(&ID);
    let read = |bytes: &[u8]| WorkingSet::from_bytes(bytes, &ID, RAM_PAGES);
    assert_eq!(read(&good), Ok(set(&[pages(0, 8), pages(16_384, 1)])));
    assert_eq!(WorkingSet::from_bytes(&good, &[8; 16], RAM_PAGES), Err(FormatError::Other));
    assert_eq!(WorkingSet::from_bytes(&good, &ID, RAM_PAGES + 1), Err(FormatError::Other));
    assert_eq!(read(&good[..39]), Err(FormatError::Length));
    assert_eq!(read(&good[..good.len() - 1]), Err(FormatError::Length));
    assert_eq!(read(&good[..good.len() - 72]), Err(FormatError::Checksum));
    assert_eq!(read(&vec![0; good.len()]), Err(FormatError::Format));
    assert_eq!(read(&vec![0; FILE_BYTES_MAX + 1]), Err(FormatError::Length));
}

#[test]
fn chunks_that_cannot_be_are_refused_though_their_checksum_is_right() {
    let chunk = |number, first| Chunk { number, pages: [first, 0, 0, 0, 0, 0, 0, 0] };
    let whole = |number| Chunk { number, pages: [u64::MAX; WORDS] };
    for chunks in [
        vec![chunk(33, 1)],
        vec![chunk(u64::MAX, 1)],
        vec![chunk(3, 1), chunk(3, 2)],
        vec![chunk(3, 0)],
        vec![chunk(32, 2)],
        (0..17).map(whole).collect(),
    ] {
        let bytes = WorkingSet { chunks: chunks.clone(), ..WorkingSet::empty(RAM_PAGES) }.to_bytes(&ID);
        let read = WorkingSet::from_bytes(&bytes, &ID, RAM_PAGES);
        assert_eq!(read, Err(FormatError::Chunks), "{chunks:?}");
    }
}

fn any_wanted() -> impl Strategy<Value = Vec<PageRange>> {
    let range = (0..RAM_PAGES + 600, 0..1200_u64).prop_map(|(start, count)| pages(start, count));
    prop::collection::vec(range, 0..40)
}

proptest! {
    /// Whatever is wanted in however many restores: sets are sound, and come back from their files.
    #[test]
    fn sets_are_sound_and_survive_their_file(rounds in prop::collection::vec(any_wanted(), 1..5)) {
        let mut set = WorkingSet::empty(RAM_PAGES);
        for wanted in rounds {
            set = set.grown(&wanted);
            prop_assert!(set.is_sound());
            let read = WorkingSet::from_bytes(&set.to_bytes(&ID), &ID, RAM_PAGES);
            prop_assert_eq!(read.as_ref(), Ok(&set));
        }
    }

    /// A plan has all pages of its set, each once, and none outside the memory.
    #[test]
    fn a_plan_has_every_page_once(wanted in any_wanted(), moves in any::<bool>()) {
        let set = set(&wanted);
        let plan = set.plan(moves);
        let mut planned: Vec<_> = plan.iter().flat_map(|range| range.pages()).collect();
        let count = planned.len();
        planned.sort_unstable();
        planned.dedup();
        prop_assert_eq!(planned.len(), count);
        prop_assert!(planned.iter().all(|page| page.0 < RAM_PAGES));
        let is_planned = |page: PageIndex| planned.binary_search(&page).is_ok();
        let mut known = set.chunks.iter().flat_map(|chunk| chunk.range().pages().filter(|page| chunk.has(*page)));
        prop_assert!(known.all(is_planned));
        prop_assert!(moves || count as u64 == set.page_count());
    }

    /// No bytes whatever are more than refused.
    #[test]
    fn damage_is_found(wanted in any_wanted(), at in any::<prop::sample::Index>(), flip in 1..=255_u8) {
        let mut bytes = set(&wanted).to_bytes(&ID);
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        prop_assert!(WorkingSet::from_bytes(&bytes, &ID, RAM_PAGES).is_err());
    }

    #[test]
    fn no_bytes_are_too_strange(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(WorkingSet::from_bytes(&bytes, &ID, RAM_PAGES).is_err());
    }
}
