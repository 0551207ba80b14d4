//! Each means gives what a diff is to hold, on memory of each kind.

use std::fs::File;
use std::io::Write;
use std::sync::{Mutex, PoisonError};

use vm_memory::{Bytes, GuestAddress};

use super::{SoftDirty, TrackError, Tracker};
use crate::page::{PageIndex, PageRange};
use crate::ram::{Backing, GuestRam, RamRange};
use crate::uffd::TrackWrites;
use crate::uffd::tests::swap::{Swap, page_out};

/// Less than a huge page: where the host gives those unasked, whole ones are given.
const PAGES: u64 = 256;
const NONE: [u64; 0] = [];
/// Soft-dirty bits are cleared for all tests of a process at once.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
const ANONYMOUS: Backing = Backing::Anonymous { transparent_huge_pages: false };

fn ranges() -> [RamRange; 1] {
    [RamRange { gpa: GuestAddress(0), size_bytes: PageIndex(PAGES).offset() }]
}

fn fresh() -> GuestRam {
    GuestRam::new(&ranges(), ANONYMOUS).unwrap()
}

/// RAM over a file of pages that are all 7.
fn saved() -> GuestRam {
    let mut file: File = tempfile::tempfile().unwrap();
    file.write_all(&vec![7; usize::try_from(PageIndex(PAGES).offset()).unwrap()]).unwrap();
    GuestRam::over_file(&ranges(), file).unwrap()
}

fn address(index: u64) -> GuestAddress {
    GuestAddress(PageIndex(index).offset())
}

fn write(ram: &GuestRam, indices: &[u64]) {
    indices.iter().for_each(|index| ram.write_obj(1_u8, address(*index)).unwrap());
}

fn read(ram: &GuestRam, indices: &[u64]) {
    indices.iter().for_each(|index| assert!(ram.read_obj::<u8>(address(*index)).is_ok()));
}

fn changed(tracker: &Tracker) -> Vec<u64> {
    tracker.changed().unwrap().into_iter().flat_map(PageRange::pages).map(|page| page.0).collect()
}

fn taken(tracker: &mut Tracker) -> Vec<u64> {
    tracker.take().unwrap();
    changed(tracker)
}

/// Tries the means that this kernel has for memory that nobody serves.
fn in_each_way(test: impl Fn(TrackWrites)) {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let best = Tracker::way();
    let soft_dirty = SoftDirty::is_supported().then_some(TrackWrites::SoftDirty);
    let exact = (best == TrackWrites::PageTables).then_some(best);
    println!("tried: {exact:?}, {soft_dirty:?}");
    exact.into_iter().chain(soft_dirty).for_each(test);
}

#[test]
fn what_was_written_since_it_was_made_and_then_since_it_was_saved_is_given() {
    in_each_way(|way| {
        for ram in [fresh(), saved()] {
            let mut tracker = Tracker::start(&ram, way, false).unwrap();
            assert!(tracker.follows_writes());
            read(&ram, &[1, 2, 3]);
            write(&ram, &[3, 200]);
            let first = taken(&mut tracker);
            if way == TrackWrites::SoftDirty {
                // Before the first save it is asked which pages there are, and a zero page that was read is one.
                assert!([3, 200].iter().all(|page| first.contains(page)), "{first:?}");
                assert!(first.iter().all(|page| [1, 2, 3, 200].contains(page)), "{first:?}");
            } else {
                assert_eq!(first, [3, 200]);
            }
            tracker.saved();
            read(&ram, &[3, 4]);
            write(&ram, &[200, 201]);
            assert_eq!(taken(&mut tracker), [200, 201], "{way:?}");
            tracker.saved();
            assert_eq!(taken(&mut tracker), NONE, "{way:?}");
        }
    });
}

#[test]
fn what_was_taken_and_not_saved_is_given_again() {
    in_each_way(|way| {
        let ram = fresh();
        let mut tracker = Tracker::start(&ram, way, false).unwrap();
        write(&ram, &[10, 20]);
        assert_eq!(taken(&mut tracker), [10, 20], "{way:?}");
        write(&ram, &[11, 20]);
        ram.discard(PageIndex(30).alone()).unwrap();
        assert_eq!(taken(&mut tracker), [10, 11, 20, 30], "{way:?}");
        assert_eq!(taken(&mut tracker), [10, 11, 20, 30], "{way:?}");
        tracker.saved();
        assert_eq!(taken(&mut tracker), NONE, "{way:?}");
    });
}

#[test]
fn without_means_all_that_the_host_has_is_given_and_what_was_thrown_away() {
    let (anonymous, file) = (fresh(), saved());
    for ram in [&anonymous, &file] {
        let mut tracker = Tracker::resident(ram).unwrap();
        assert!(!tracker.follows_writes());
        write(ram, &[3, 200]);
        for _ in 0..2 {
            assert_eq!(taken(&mut tracker), [3, 200], "{:?}", ram.backing());
            tracker.saved();
        }
    }
    let mut tracker = Tracker::resident(&anonymous).unwrap();
    anonymous.discard(PageRange { start: PageIndex(200), count: 2 }).unwrap();
    assert_eq!(taken(&mut tracker), [3, 200, 201]);
    tracker.saved();
    assert_eq!(taken(&mut tracker), [3]);
}

#[test]
fn pages_that_were_swapped_out_are_given_and_stay_followed() {
    let Some(_swap) = Swap::take() else { return };
    in_each_way(|way| {
        let ram = fresh();
        let mut tracker = Tracker::start(&ram, way, false).unwrap();
        write(&ram, &[5, 6]);
        page_out(&ram, 5);
        assert_eq!(taken(&mut tracker), [5, 6], "{way:?}");
        tracker.saved();
        page_out(&ram, 6);
        read(&ram, &[5, 6]);
        assert_eq!(taken(&mut tracker), NONE, "{way:?}: they came back as they were");
        page_out(&ram, 6);
        write(&ram, &[6]);
        assert_eq!(taken(&mut tracker), [6], "{way:?}");
    });
}

#[test]
fn where_nothing_can_be_followed_it_is_said_before_the_guest_runs() {
    let error = Tracker::start(&fresh(), TrackWrites::Nothing, false).unwrap_err();
    assert!(matches!(error, TrackError::NoMeans), "{error}");
    assert!(
        error.to_string().contains("Linux 6.7") && error.to_string().contains("faultless doctor"),
        "{error}"
    );
    let shared = GuestRam::new(&ranges(), Backing::Memfd { transparent_huge_pages: false }).unwrap();
    for (way, is_registered) in [(TrackWrites::SoftDirty, false), (TrackWrites::PageTables, true)] {
        let error = Tracker::start(&shared, way, is_registered).unwrap_err();
        assert!(matches!(error, TrackError::Shared), "{error}");
    }
}
