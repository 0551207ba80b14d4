use std::sync::Arc;

use proptest::prelude::*;

use super::*;

fn pages(start: u64, count: u64) -> PageRange {
    PageRange { start: PageIndex(start), count }
}

#[test]
fn a_claim_ends_where_somebody_else_has_one() {
    let map = PageMap::new(100);
    assert_eq!(map.claim(pages(40, 8)), pages(40, 8));
    assert_eq!(map.claim(pages(30, 20)), pages(30, 10));
    assert!(map.claim(pages(44, 4)).is_empty());
    map.settle(pages(40, 8));
    map.release(pages(30, 10));
    assert_eq!((map.get(PageIndex(30)), map.get(PageIndex(40))), (PageState::Missing, PageState::Present));
}

#[test]
fn what_was_removed_while_it_was_fetched_stays_removed() {
    let map = PageMap::new(64);
    assert_eq!(map.claim(pages(0, 4)).count, 4);
    map.remove(pages(1, 1));
    map.settle(pages(0, 2));
    map.release(pages(1, 3));
    let states = [0, 1, 2, 3].map(|page| map.get(PageIndex(page)));
    assert_eq!(states, [PageState::Present, PageState::Removed, PageState::Missing, PageState::Missing]);
}

#[test]
fn two_bits_a_page_are_all_it_takes() {
    let map = PageMap::new(1 << 20);
    assert_eq!(size_of_val(&*map.words), (1 << 20) / 4);
}

#[test]
fn every_page_is_claimed_once_whoever_asks() {
    let map = Arc::new(PageMap::new(10_000));
    let claimers: Vec<_> = (0..4_u64)
        .map(|thread| {
            let map = Arc::clone(&map);
            std::thread::spawn(move || {
                let mut claimed = 0;
                let step = 7 + thread;
                for start in (0..10_000 - step).step_by(3) {
                    claimed += map.claim(pages(start, step)).count;
                }
                claimed
            })
        })
        .collect();
    let claimed: u64 = claimers.into_iter().map(|claimer| claimer.join().unwrap()).sum();
    assert_eq!(claimed, map.count(PageState::Requested));
}

#[test]
fn a_chunk_is_claimed_whole_or_not_at_all() {
    let map = PageMap::new(2048);
    assert!(map.claim_all(pages(512, 512)));
    assert!(!map.claim_all(pages(512, 512)));
    assert_eq!(map.claim(pages(1500, 1)).count, 1);
    assert!(!map.claim_all(pages(1024, 512)), "one page of it is with somebody else");
    assert_eq!(map.count(PageState::Requested), 513);
    assert_eq!(map.settle(pages(512, 512)), 512);
    assert!(map.claim_all(pages(1536, 0)) && map.claim_all(pages(1600, 100)));
}

#[test]
#[should_panic(expected = "several chunks")]
fn only_pages_of_one_chunk_are_claimed_at_once() {
    let _ = PageMap::new(2048).claim_all(pages(500, 20));
}

#[test]
fn what_somebody_who_died_had_claimed_is_missing_again() {
    let map = PageMap::new(300);
    assert_eq!(map.claim(pages(10, 200)).count, 200);
    assert_eq!(map.settle(pages(10, 50)), 50);
    map.remove(pages(100, 10));
    assert_eq!(map.release(pages(0, 300)), 140);
    assert_eq!(map.count(PageState::Requested), 0);
    assert_eq!((map.count(PageState::Present), map.count(PageState::Removed)), (50, 10));
}

#[test]
fn runs_of_one_state_go_across_words() {
    let map = PageMap::new(200);
    assert_eq!(map.claim(pages(20, 100)).count, 100);
    map.settle(pages(60, 10));
    map.remove(pages(199, 1));
    let expected = [
        (pages(3, 17), PageState::Missing),
        (pages(20, 40), PageState::Requested),
        (pages(60, 10), PageState::Present),
        (pages(70, 50), PageState::Requested),
        (pages(120, 79), PageState::Missing),
        (pages(199, 1), PageState::Removed),
    ];
    assert_eq!(runs(&map, pages(3, 197)), expected);
    assert!(runs(&map, pages(3, 0)).is_empty());
}

fn runs(map: &PageMap, range: PageRange) -> Vec<(PageRange, PageState)> {
    let mut runs = Vec::new();
    map.state_runs(range, |run, state| runs.push((run, state)));
    runs
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Claim,
    ClaimAll,
    Settle,
    Release,
    Remove,
    NextMissing,
}

const ALL_STATES: [PageState; 4] =
    [PageState::Missing, PageState::Requested, PageState::Present, PageState::Removed];
/// More than two words, and a last one that is not full.
const PAGES: u64 = 75;

fn steps() -> impl Strategy<Value = Vec<(Step, PageRange)>> {
    let range =
        (0..PAGES).prop_flat_map(|start| (0..=PAGES - start).prop_map(move |count| pages(start, count)));
    let step = prop_oneof![
        Just(Step::Claim),
        Just(Step::ClaimAll),
        Just(Step::Settle),
        Just(Step::Release),
        Just(Step::Remove),
        Just(Step::NextMissing),
    ];
    proptest::collection::vec((step, range), 0..60)
}

/// The states of the pages that a step is about. A step does to it what it should do to the map, and gives what the
/// map should answer.
struct Model<'a>(&'a mut [PageState]);

impl Model<'_> {
    fn replace(&mut self, from: PageState, to: PageState) -> u64 {
        let changed = self.0.iter_mut().filter(|state| **state == from);
        changed.map(|state| *state = to).count() as u64
    }

    fn claim(&mut self) -> u64 {
        let count = self.0.iter().take_while(|state| **state == PageState::Missing).count();
        self.0[..count].fill(PageState::Requested);
        count as u64
    }

    fn step(&mut self, step: Step) -> Option<u64> {
        match step {
            Step::Claim => Some(self.claim()),
            Step::ClaimAll if self.0.iter().all(|state| *state == PageState::Missing) => {
                Some(self.claim().min(1))
            }
            Step::ClaimAll => None,
            Step::Settle => Some(self.replace(PageState::Requested, PageState::Present)),
            Step::Release => Some(self.replace(PageState::Requested, PageState::Missing)),
            Step::Remove => {
                self.0.fill(PageState::Removed);
                None
            }
            Step::NextMissing => {
                self.0.iter().position(|state| *state == PageState::Missing).map(|offset| offset as u64)
            }
        }
    }
}

/// Does a step to the map; gives what it answers.
fn apply(map: &PageMap, step: Step, range: PageRange) -> Option<u64> {
    match step {
        Step::Claim => Some(map.claim(range).count),
        Step::ClaimAll => map.claim_all(range).then_some(range.count.min(1)),
        Step::Settle => Some(map.settle(range)),
        Step::Release => Some(map.release(range)),
        Step::Remove => {
            map.remove(range);
            None
        }
        Step::NextMissing => map.next_missing(range.start, range.end()).map(|page| page.0 - range.start.0),
    }
}

proptest! {
    #[test]
    fn it_is_a_vector_of_states(steps in steps()) {
        let map = PageMap::new(PAGES);
        let mut states = vec![PageState::Missing; usize::try_from(PAGES).unwrap()];
        for (step, range) in steps {
            let slice = usize::try_from(range.start.0).unwrap()..usize::try_from(range.end().0).unwrap();
            let expected = Model(&mut states[slice.clone()]).step(step);
            prop_assert_eq!(apply(&map, step, range), expected, "{:?} of {}", step, range);
            for (page, state) in (0..).zip(&states) {
                prop_assert_eq!(map.get(PageIndex(page)), *state);
            }
            for state in ALL_STATES {
                let expected = states.iter().filter(|it| **it == state).count() as u64;
                prop_assert_eq!(map.count(state), expected);
            }
            let runs = runs(&map, range);
            let flat: Vec<_> = runs.iter().flat_map(|(run, state)| run.pages().map(|_| *state)).collect();
            prop_assert_eq!(&flat[..], &states[slice]);
            prop_assert!(runs.windows(2).all(|pair| pair[0].0.end() == pair[1].0.start && pair[0].1 != pair[1].1));
        }
    }
}
