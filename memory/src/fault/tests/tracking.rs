//! Served memory whose writes the kernel notes: what a diff of it holds.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use vm_memory::GuestAddress;

use super::harness::*;
use crate::dirty::Tracker;
use crate::fault::{FaultEngine, FillOptions, Options, ServedMemory, StartError, Verdict, WriteObserver};
use crate::map::PageState;
use crate::page::{PageIndex, PageRange};
use crate::ram::{Backing, GuestRam};
use crate::source::pattern::{Pattern, PatternReader, Sequence, range_is};
use crate::source::{PageReader, Reading};
use crate::uffd::{Feature, Features, Stop, TrackWrites, WRITE_TRACKING};

/// Private memory only: what is shared is refused.
const TRACKED: [Backing; 3] = [ANONYMOUS, HUGE, Backing::MemfdPrivate];

/// Whether this kernel notes writes to served memory; one that does not says what it lacks.
fn is_tracked() -> bool {
    match ServedMemory::tracked(ram(ANONYMOUS, 2)) {
        Ok(_) => true,
        Err(StartError::NoTracking { missing }) => {
            assert!(!missing.is_empty() && Tracker::way() != TrackWrites::PageTables, "{missing}");
            println!("this kernel does not note writes to served memory: it lacks {missing}");
            false
        }
        Err(error) => panic!("{error}"),
    }
}

fn tracking() -> Options {
    Options { track_writes: true, ..on_demand() }
}

/// Memory served by a pattern, which is also what fills it, and who follows its writes.
fn served(backing: Backing, pattern: Pattern, options: &Options) -> (GuestRam, FaultEngine, Tracker) {
    let ram = ram(backing, 8);
    let reader = || PatternReader { pattern, pages: ram.pages().count };
    let filler = options.fill.everything.then(|| Box::new(reader()) as Box<dyn PageReader>);
    let engine = FaultEngine::start(ram.clone(), Box::new(Reading::new(reader())), filler, options).unwrap();
    let tracker = Tracker::start(&ram, TrackWrites::PageTables, engine.tracks_writes()).unwrap();
    (ram, engine, tracker)
}

/// What was written since this was last asked.
fn taken(tracker: &mut Tracker) -> BTreeSet<u64> {
    tracker.take().unwrap();
    let changed = tracker.changed().unwrap();
    tracker.saved();
    changed.into_iter().flat_map(PageRange::pages).map(|page| page.0).collect()
}

#[test]
fn pages_are_given_that_were_written_and_no_others() {
    if !is_tracked() {
        return;
    }
    for backing in TRACKED {
        for pattern in [FULL, MIXED] {
            let (ram, engine, mut tracker) = served(backing, pattern, &tracking());
            [0, 1, 2, 3, 600].into_iter().for_each(|index| drop(content(&ram, index)));
            assert_eq!(taken(&mut tracker), BTreeSet::new(), "{backing:?}: pages that were only read");
            // There and zero, there, and missing: one that has content, one that has none.
            for index in [3, 1, 700, 702] {
                write(&ram, index, 0xee);
            }
            assert_eq!(taken(&mut tracker), BTreeSet::from([1, 3, 700, 702]), "{backing:?}");
            assert_eq!(taken(&mut tracker), BTreeSet::new(), "{backing:?}");
            write(&ram, 1, 0xef);
            ram.discard(pages(600, 2)).unwrap();
            assert_eq!(
                taken(&mut tracker),
                BTreeSet::from([1, 600, 601]),
                "{backing:?}: again, and thrown away"
            );
            assert!(is_zero(&content(&ram, 600)), "{backing:?}");
            assert_eq!(taken(&mut tracker), BTreeSet::new(), "{backing:?}: a reader changes nothing");
            write(&ram, 600, 1);
            assert_eq!(taken(&mut tracker), BTreeSet::from([600]), "{backing:?}");
            assert_serving(&engine);
        }
    }
}

#[test]
fn what_is_filled_and_prefetched_is_not_given() {
    if !is_tracked() {
        return;
    }
    for backing in TRACKED {
        let fill = FillOptions { everything: true, ..FillOptions::default() };
        let options = Options { track_writes: true, fill, ..Options::default() };
        let (ram, engine, mut tracker) = served(backing, MIXED, &options);
        engine.prefetch(pages(512, 512));
        write(&ram, 1030, 1);
        until("all is there", || engine.map().count(PageState::Missing) == 0);
        until("nothing is on its way", || engine.map().count(PageState::Requested) == 0);
        write(&ram, 40, 1);
        assert_eq!(taken(&mut tracker), BTreeSet::from([40, 1030]), "{backing:?}");
    }
}

#[test]
fn an_engine_after_the_first_goes_on() {
    if !is_tracked() {
        return;
    }
    let (ram, engine, mut tracker) = served(ANONYMOUS, FULL, &tracking());
    write(&ram, 5, 1);
    let stopped = engine.stop();
    let engine = FaultEngine::resume(stopped.memory, good_source(&ram), None, &tracking()).unwrap();
    write(&ram, 9, 1);
    content(&ram, 10);
    assert_eq!(taken(&mut tracker), BTreeSet::from([5, 9]));
    assert_serving(&engine);
}

/// Writes numbers that only grow to its own word of pages, in an order of its own; `written` is the last.
fn storm(ram: &GuestRam, half: u64, ends: &AtomicBool, written: &AtomicU64) {
    let mut order = Sequence::new(half);
    while !ends.load(Ordering::Relaxed) {
        let number = written.load(Ordering::Relaxed) + 1;
        let address = PageIndex(order.below(ram.pages().count)).offset() + 8 * half;
        vm_memory::Bytes::write_obj(ram, number, GuestAddress(address)).unwrap();
        written.store(number, Ordering::Relaxed);
    }
}

/// What a snapshot has of each page; nothing where it was never given.
struct Copies(Vec<Option<Vec<u8>>>);

impl Copies {
    fn take(&mut self, ram: &GuestRam, tracker: &mut Tracker) {
        for index in taken(tracker) {
            self.0[usize::try_from(index).unwrap()] = Some(content(ram, index));
        }
    }

    fn assert_whole(&self, ram: &GuestRam, backing: Backing) {
        for (index, copy) in (0..).zip(&self.0) {
            let now = content(ram, index);
            let is_so = match copy {
                Some(copy) => *copy == now,
                None => range_is(MIXED, page(index), &now),
            };
            assert!(is_so, "{backing:?}: a write to page {index} was lost, given: {}", copy.is_some());
        }
    }
}

/// While pages are placed on demand and filled, two threads write: what is copied of what is given is the memory in the
/// end.
#[test]
fn no_write_is_lost_while_pages_come() {
    if !is_tracked() {
        return;
    }
    for backing in TRACKED {
        let fill = FillOptions { everything: true, ..FillOptions::default() };
        let options = Options { track_writes: true, fill, ..Options::default() };
        let (ram, _engine, mut tracker) = served(backing, MIXED, &options);
        let (ends, written) = (AtomicBool::new(false), [AtomicU64::new(0), AtomicU64::new(0)]);
        let mut copies = Copies(vec![None; usize::try_from(ram.pages().count).unwrap()]);
        thread::scope(|scope| {
            for (half, written) in (0..).zip(&written) {
                let (ram, ends) = (&ram, &ends);
                scope.spawn(move || storm(ram, half, ends, written));
            }
            let has_written = || written.iter().all(|count| count.load(Ordering::Relaxed) > 1000);
            until("both have written", || {
                copies.take(&ram, &mut tracker);
                has_written()
            });
            ends.store(true, Ordering::Relaxed);
        });
        copies.take(&ram, &mut tracker);
        copies.assert_whole(&ram, backing);
    }
}

#[test]
fn nobody_is_asked_before_writes_that_the_kernel_notes() {
    if !is_tracked() {
        return;
    }
    struct Refuses;
    impl WriteObserver for Refuses {
        fn before_write(&mut self, _: PageRange, _: std::io::Result<&[u8]>) -> Verdict {
            Verdict::Wait
        }
    }
    let (ram, engine, mut tracker) = served(ANONYMOUS, FULL, &tracking());
    assert_eq!(engine.protect(Box::new(Refuses)), Err(Stop::Unsupported));
    assert!(engine.unprotect().is_none());
    engine.allow_writes(ram.pages());
    content(&ram, 4);
    write(&ram, 7, 1);
    assert_eq!(taken(&mut tracker), BTreeSet::from([7]));
}

#[test]
fn what_cannot_be_tracked_is_refused_with_what_is_missing() {
    let there = WRITE_TRACKING.without(Features::NONE.with(Feature::WRITE_PROTECT_ASYNC));
    let error = ServedMemory::tracked_with(there, ram(ANONYMOUS, 2)).unwrap_err();
    assert!(error.to_string().contains("wp_async (Linux 6.7)"), "{error}");
    let error = ServedMemory::tracked(ram(MEMFD, 2)).unwrap_err();
    assert!(matches!(error, StartError::NoTracking { .. }), "{error}");
}
