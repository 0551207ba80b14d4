//! Every order in which threads can step on each other in the map, as far as loom can tell them apart.

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::thread;

use super::*;

impl Word for AtomicU64 {
    fn new(bits: u64) -> Self {
        Self::new(bits)
    }

    fn load(&self) -> u64 {
        self.load(Ordering::Acquire)
    }

    fn store(&self, bits: u64) {
        self.store(bits, Ordering::Release);
    }

    fn replace(&self, from: u64, to: u64) -> bool {
        self.compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    fn set(&self, bits: u64) {
        self.fetch_or(bits, Ordering::AcqRel);
    }

    fn pause() {
        thread::yield_now();
    }
}

type Map = PageMap<AtomicU64>;

fn pages(start: u64, count: u64) -> PageRange {
    PageRange { start: PageIndex(start), count }
}

/// Runs `one` and `other` at once on a map of two words, in every order, and then `check` with what they gave.
fn both<A: 'static, B: 'static>(
    one: impl Fn(&Map) -> A + Copy + Send + Sync + 'static,
    other: impl Fn(&Map) -> B + Copy + Send + Sync + 'static,
    check: impl Fn(&Map, A, B) + Send + Sync + 'static,
) {
    loom::model(move || {
        let map = Arc::new(Map::all_missing(64));
        let theirs = Arc::clone(&map);
        let handle = thread::spawn(move || one(&theirs));
        let second = other(&map);
        let first = handle.join().unwrap();
        check(&map, first, second);
    });
}

#[test]
fn claims_that_overlap_share_no_page_and_lose_none() {
    both(
        |map| map.claim(pages(20, 20)),
        |map| map.claim(pages(30, 20)),
        |map, first, second| {
            assert!(first.intersection(second).is_empty());
            assert_eq!(map.count(PageState::Requested), first.count + second.count);
            assert!(first.count == 20 || first.count == 10, "it ends where the other one's begins");
        },
    );
}

#[test]
fn what_is_removed_stays_so_whoever_places_it() {
    both(
        |map| map.settle(map.claim(pages(28, 8))),
        |map| map.remove(pages(30, 4)),
        |map, settled, ()| {
            assert_eq!(map.count(PageState::Removed), 4);
            assert_eq!(map.count(PageState::Requested), 0, "a claim is left");
            assert!(map.count(PageState::Present) <= settled);
        },
    );
}

#[test]
fn a_chunk_is_claimed_whole_or_its_page_alone() {
    both(
        |map| map.claim_all(pages(0, 64)),
        |map| map.claim(pages(40, 1)).count,
        |map, chunk, page| {
            // The page may be refused only where the whole chunk is claimed: else nobody would fetch it.
            assert!(chunk != (page == 1), "chunk {chunk}, page {page}");
            assert_eq!(map.count(PageState::Requested), if chunk { 64 } else { 1 });
        },
    );
}

#[test]
fn nobody_sees_what_is_taken_back_as_requested() {
    both(
        |map| map.claim_all(pages(0, 64)),
        |map| {
            (
                map.claim(pages(63, 1)).count,
                map.get(PageIndex(0)),
                map.next_missing(PageIndex(0), PageIndex(63)),
            )
        },
        |_, chunk, (_, state, next)| {
            assert_eq!(state == PageState::Requested, chunk && state != PageState::Missing);
            assert!(chunk || next == Some(PageIndex(0)));
        },
    );
}

#[test]
fn two_who_want_a_chunk_whole_do_not_both_get_it() {
    both(
        |map| map.claim_all(pages(0, 64)),
        |map| map.claim_all(pages(30, 4)),
        |map, first, second| {
            assert!(!(first && second));
            let expected = if first {
                64
            } else if second {
                4
            } else {
                0
            };
            assert_eq!(map.count(PageState::Requested), expected);
        },
    );
}

#[test]
fn a_chunk_that_is_removed_while_it_is_claimed_is_removed() {
    both(
        |map| map.claim_all(pages(0, 64)),
        |map| map.remove(pages(40, 1)),
        |map, chunk, ()| {
            assert_eq!(map.count(PageState::Removed), 1);
            assert_eq!(map.count(PageState::Requested), if chunk { 63 } else { 0 });
        },
    );
}

#[test]
fn what_is_released_is_claimed_by_one_more_at_most() {
    both(
        |map| {
            let mine = map.claim(pages(30, 4));
            map.release(mine);
            mine.count
        },
        |map| map.claim(pages(32, 2)).count,
        |map, released, claimed| {
            assert!(released == 4 || released == 2 && claimed == 2);
            assert_eq!(map.count(PageState::Requested), claimed, "a claim was released that was another's");
        },
    );
}
