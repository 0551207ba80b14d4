//! Putting granules together that a source answers in pieces: memory of huge pages is placed by huge pages only.
//!
//! ```text
//!   answer, a part of a granule ──▶ its buffer ── all there ──▶ the whole granule
//! ```

use std::collections::BTreeMap;

use super::install::{Content, Placement};
use crate::page::{PageIndex, PageRange, PageSize};

/// How many granules may be incomplete. More than the engine has in flight: see [`Assembly::DEMANDED_MAX`].
const GRANULES_MAX: usize = 32;

/// A granule that is not complete.
#[derive(Debug)]
struct Parts {
    bytes: Vec<u8>,
    /// Which of its base pages have come.
    has_come: Vec<bool>,
    left: usize,
}

/// Granules that are not complete.
#[derive(Debug, Default)]
pub(super) struct Assembly(BTreeMap<PageIndex, Parts>);

impl Assembly {
    /// How many huge granules may be demanded of a source, so that there is a buffer for each.
    pub(super) const DEMANDED_MAX: usize = GRANULES_MAX / 2;

    /// Takes an answer, and hands on what can be placed of it: granules that came whole, and those that it completes.
    pub(super) fn take(
        &mut self,
        answer: Placement<'_>,
        size: PageSize,
        whole: &mut dyn FnMut(Placement<'_>),
    ) {
        if answer.range.is_whole(size) {
            answer.range.wholes(size).for_each(|granule| drop(self.0.remove(&granule.start)));
            return whole(answer);
        }
        for granule in answer.range.widened(size).wholes(size) {
            let part = answer.part(granule.intersection(answer.range));
            if part.range == granule {
                self.0.remove(&granule.start);
                whole(part);
            } else if let Some(bytes) = self.add(granule, part) {
                whole(Placement { range: granule, content: Content::Bytes(&bytes) });
            }
        }
    }

    /// Forgets what nobody wants any more, where there is no room for more.
    pub(super) fn make_room(&mut self, is_wanted: impl Fn(PageIndex) -> bool) {
        if self.0.len() == GRANULES_MAX {
            self.0.retain(|page, _| is_wanted(*page));
        }
    }

    /// Adds a part of a granule; gives its bytes once all have come.
    fn add(&mut self, granule: PageRange, part: Placement<'_>) -> Option<Vec<u8>> {
        if self.0.len() == GRANULES_MAX && !self.0.contains_key(&granule.start) {
            // Not so where there was room made: fewer are wanted. What is dropped is asked for again, in time.
            self.0.pop_first();
        }
        let parts = self.0.entry(granule.start).or_insert_with(|| Parts::new(granule));
        parts.add(PageRange::between(granule.start, part.range.start), part);
        if parts.left > 0 {
            return None;
        }
        self.0.remove(&granule.start).map(|parts| parts.bytes)
    }
}

impl Parts {
    fn new(granule: PageRange) -> Self {
        let pages = length(granule.count);
        Self { bytes: vec![0; length(granule.bytes())], has_come: vec![false; pages], left: pages }
    }

    /// Adds what follows `before` in the granule. What comes again is the same, or as good.
    fn add(&mut self, before: PageRange, part: Placement<'_>) {
        let start = length(before.bytes());
        let place = &mut self.bytes[start..start + length(part.range.bytes())];
        match part.content {
            Content::Bytes(bytes) => place.copy_from_slice(bytes),
            Content::Zero => place.fill(0),
            Content::InPlace => unreachable!("a part is copied, and never mapped"),
        }
        let first = length(before.count);
        for has_come in &mut self.has_come[first..first + length(part.range.count)] {
            self.left -= usize::from(!std::mem::replace(has_come, true));
        }
    }
}

fn length(count: u64) -> usize {
    usize::try_from(count).expect("a granule's length fits")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages(start: u64, count: u64) -> PageRange {
        PageRange { start: PageIndex(start), count }
    }

    fn take(assembly: &mut Assembly, range: PageRange, value: Option<u8>) -> Vec<(PageRange, Vec<u8>)> {
        let mut done = Vec::new();
        let bytes = vec![value.unwrap_or(0); length(range.bytes())];
        let content = value.map_or(Content::Zero, |_| Content::Bytes(&bytes));
        assembly.take(Placement { range, content }, PageSize::Huge2M, &mut |placement| {
            let Content::Bytes(bytes) = placement.content else {
                return done.push((placement.range, vec![]));
            };
            done.push((placement.range, bytes.to_vec()));
        });
        done
    }

    #[test]
    fn a_granule_is_handed_on_once_all_of_it_has_come() {
        let mut assembly = Assembly::default();
        assert!(take(&mut assembly, pages(512, 300), Some(1)).is_empty());
        assert!(take(&mut assembly, pages(600, 100), Some(1)).is_empty(), "what comes twice counts once");
        assert!(take(&mut assembly, pages(812, 100), None).is_empty());
        let done = take(&mut assembly, pages(912, 200), Some(3));
        assert_eq!(done.len(), 1, "the next granule has only begun");
        let (range, bytes) = &done[0];
        assert_eq!(*range, pages(512, 512));
        let page = |index: usize| bytes[index * 4096];
        assert_eq!([page(0), page(299), page(300), page(399), page(400), page(511)], [1, 1, 0, 0, 3, 3]);
        assert_eq!(take(&mut assembly, pages(1112, 424), Some(4))[0].0, pages(1024, 512));
    }

    #[test]
    fn whole_granules_pass_and_there_is_a_limit_to_the_others() {
        let mut assembly = Assembly::default();
        assert_eq!(take(&mut assembly, pages(0, 1024), None), [(pages(0, 1024), vec![])]);
        (0..40).for_each(|granule| drop(take(&mut assembly, pages(granule * 512, 1), None)));
        assert_eq!(assembly.0.len(), GRANULES_MAX);
    }

    #[test]
    fn what_is_not_wanted_any_more_makes_room_for_what_is_coming() {
        let mut assembly = Assembly::default();
        (100..132).for_each(|granule| drop(take(&mut assembly, pages(granule * 512, 1), Some(9))));
        // Two granules whose halves come in turns, as from a disk.
        let halves = [(0, 0), (1, 0), (0, 256), (1, 256)];
        let mut done = 0;
        for (granule, half) in halves {
            assembly.make_room(|page| page.0 < 1024);
            done += take(&mut assembly, pages(granule * 512 + half, 256), Some(1)).len();
        }
        assert_eq!(done, 2);
    }
}
