use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::page::{PageIndex, PageRange};
use crate::ram::{Backing, GuestRam, RamRange, Sharing};
use crate::uffd::tests::machine::HugePages;
use crate::uffd::{self, Feature, Features, RegisterError};

const CHUNKS: u64 = 4;
const BACKINGS: [Backing; 5] = [
    Backing::Anonymous { transparent_huge_pages: false },
    Backing::Anonymous { transparent_huge_pages: true },
    Backing::Memfd { transparent_huge_pages: false },
    Backing::Memfd { transparent_huge_pages: true },
    Backing::MemfdPrivate,
];

fn ram(backing: Backing) -> GuestRam {
    let range = RamRange { gpa: GuestAddress(0), size_bytes: CHUNKS << 21 };
    GuestRam::new(&[range], backing).unwrap()
}

fn pages(start: u64, end: u64) -> PageRange {
    PageRange::between(PageIndex(start), PageIndex(end))
}

/// That `taken` are the pages `written`. Where the host gives huge pages the first write to an empty chunk may have
/// brought a whole one.
fn assert_given(backing: Backing, taken: &[PageRange], written: &[u64], empty: PageRange) {
    let brings_more = matches!(backing, Backing::Anonymous { .. });
    let mut given = covered(taken);
    given.retain(|index| {
        let is_more = brings_more && empty.start.0 <= *index && *index < empty.end().0;
        written.contains(index) || !is_more
    });
    assert_eq!(given, written, "{backing:?}");
}

fn page(index: u64) -> PageRange {
    PageIndex(index).alone()
}

fn address(index: u64) -> GuestAddress {
    GuestAddress(PageIndex(index).offset())
}

fn write(ram: &GuestRam, index: u64) {
    ram.write_obj(0x55_u8, address(index)).unwrap();
}

fn taken_of(tracker: &WriteTracker, range: PageRange) -> Vec<PageRange> {
    let mut found = Vec::new();
    tracker.take(range, &mut |range| found.push(range)).unwrap();
    found
}

fn taken(tracker: &WriteTracker) -> Vec<PageRange> {
    taken_of(tracker, tracker.ram().pages())
}

/// Whether this kernel can track writes. One that cannot says so at the start, and what is done instead.
fn is_tracked() -> bool {
    match WriteTracker::start(&ram(BACKINGS[0])) {
        Ok(_) => true,
        Err(error) => {
            let has = |feature| uffd::probe().unwrap().has(feature);
            assert!(
                !has(Feature::WRITE_PROTECT_ASYNC)
                    && error.to_string().contains("without `track_dirty_pages`"),
                "{error}"
            );
            println!("this kernel does not track writes: {error}");
            false
        }
    }
}

/// A tracker over RAM whose first and second chunk were written before it began.
fn started(backing: Backing) -> (GuestRam, WriteTracker) {
    let ram = ram(backing);
    (0..1024).for_each(|index| write(&ram, index));
    let tracker = WriteTracker::start(&ram).unwrap();
    let own = if backing.shares_writes() { pages(0, CHUNKS * 512) } else { pages(0, 1024) };
    assert_eq!(taken(&tracker), [own], "{backing:?}: what the mapping has");
    assert_eq!(taken(&tracker), [], "{backing:?}: nothing was written since");
    (ram, tracker)
}

#[test]
fn written_pages_are_given_once_and_read_ones_never() {
    if !is_tracked() {
        return;
    }
    for backing in BACKINGS {
        let (ram, tracker) = started(backing);
        for index in [0, 700, 1500] {
            ram.read_obj::<u8>(address(index)).unwrap();
        }
        assert_eq!(taken(&tracker), [], "{backing:?}");
        for index in [2, 3, 700, 1500, 2047] {
            write(&ram, index);
        }
        assert_given(backing, &taken(&tracker), &[2, 3, 700, 1500, 2047], pages(1024, 2048));
        assert_eq!(taken(&tracker), [], "{backing:?}");
        let other = ram.clone();
        thread::spawn(move || write(&other, 3)).join().unwrap();
        assert_eq!(taken(&tracker), [page(3)], "{backing:?}: a thread's write, and again");
    }
}

#[test]
fn a_take_of_a_part_leaves_the_rest_for_later() {
    if !is_tracked() {
        return;
    }
    let (ram, tracker) = started(BACKINGS[1]);
    [10, 20, 30].into_iter().for_each(|index| write(&ram, index));
    ram.discard(pages(40, 50)).unwrap();
    assert_eq!(taken_of(&tracker, pages(20, 30)), [page(20)]);
    assert_eq!(taken_of(&tracker, pages(5, 5)), []);
    assert_eq!(taken_of(&tracker, pages(45, 46)), [page(45)]);
    let rest = covered(&taken(&tracker));
    assert!([10, 30, 40, 49].iter().all(|index| rest.contains(index)) && !rest.contains(&45), "{rest:?}");
}

fn covered(ranges: &[PageRange]) -> Vec<u64> {
    let mut pages: Vec<u64> = ranges.iter().flat_map(|range| range.pages()).map(|page| page.0).collect();
    pages.sort_unstable();
    pages.dedup();
    pages
}

#[test]
fn pages_that_were_thrown_away_are_given() {
    if !is_tracked() {
        return;
    }
    for backing in BACKINGS {
        let (ram, tracker) = started(backing);
        ram.discard(pages(5, 7)).unwrap();
        assert_eq!(covered(&taken(&tracker)), [5, 6], "{backing:?}");
        // A whole chunk, whose page table may go with it.
        ram.discard(pages(512, 1024)).unwrap();
        assert_eq!(covered(&taken(&tracker)), (512..1024).collect::<Vec<_>>(), "{backing:?}");
        ram.read_obj::<u8>(address(600)).unwrap();
        assert_eq!(taken(&tracker), [], "{backing:?}: a reader changes nothing");
        write(&ram, 601);
        assert_given(backing, &taken(&tracker), &[601], pages(512, 1024));
        // Thrown away and written before anyone asked.
        ram.discard(pages(8, 9)).unwrap();
        write(&ram, 8);
        assert_eq!(covered(&taken(&tracker)), [8], "{backing:?}");
    }
}

#[test]
fn hugetlb_pages_are_given_whole() {
    if !is_tracked() {
        return;
    }
    let Some(_pool) = HugePages::take(2 * CHUNKS) else { return };
    for backing in [Backing::Hugetlb2M, Backing::HugetlbMemfd { sharing: Sharing::Shared }] {
        let (ram, tracker) = started(backing);
        ram.read_obj::<u8>(address(700)).unwrap();
        assert_eq!(taken(&tracker), [], "{backing:?}");
        write(&ram, 700);
        assert_eq!(taken_of(&tracker, page(1000)), [pages(512, 1024)], "{backing:?}");
        assert_eq!(taken(&tracker), [], "{backing:?}");
        ram.discard(pages(0, 512)).unwrap();
        assert_eq!(covered(&taken(&tracker)), (0..512).collect::<Vec<_>>(), "{backing:?}");
    }
}

#[test]
fn ram_that_is_served_or_tracked_is_refused_until_that_ends() {
    if !is_tracked() {
        return;
    }
    let (ram, tracker) = started(BACKINGS[0]);
    let error = WriteTracker::start(&ram).unwrap_err();
    assert!(matches!(error, TrackError::Register(RegisterError::Busy)), "{error}");
    assert!(error.to_string().contains("end the other registration first"), "{error}");
    tracker.stop().unwrap();
    write(&ram, 0);
    let tracker = WriteTracker::start(&ram).unwrap();
    drop(tracker);
    let tracker = WriteTracker::start(&ram).unwrap();
    assert_eq!(taken(&tracker), [pages(0, 1024)], "another one knows nothing of the last");
}

#[test]
fn a_kernel_that_cannot_is_told_with_the_next_best() {
    let missing = Features::NONE.with(Feature::WRITE_PROTECT_ASYNC);
    let texts = [
        TrackError::from(uffd::OpenError::Lacks { missing }).to_string(),
        TrackError::from(uffd::ScanError::Unsupported).to_string(),
    ];
    assert!(texts[0].contains("wp_async (Linux 6.7)"), "{}", texts[0]);
    assert!(texts.iter().all(|text| text.contains("without `track_dirty_pages`")), "{texts:?}");
}

/// Writes a number that only grows into one page after the other, in an order of its own.
fn storm(ram: &GuestRam, half: u64, ends: &AtomicBool) -> u64 {
    let (mut number, mut state) = (0_u64, half + 1);
    while !ends.load(Ordering::Relaxed) {
        number += 1;
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // Both write to the same pages, each its own word.
        let index = (state >> 33) % ram.pages().count;
        ram.write_obj(number, GuestAddress(address(index).0 + 8 * half)).unwrap();
    }
    number
}

/// What a snapshot or a migration has of the two words of each page.
struct Copied {
    ram: GuestRam,
    words: Vec<[u64; 2]>,
}

impl Copied {
    fn new(ram: &GuestRam) -> Self {
        Self { ram: ram.clone(), words: ram.pages().pages().map(|_| [0; 2]).collect() }
    }

    fn in_ram(&self, index: u64) -> [u64; 2] {
        [0, 8].map(|offset| self.ram.read_obj(GuestAddress(address(index).0 + offset)).unwrap())
    }

    fn round(&mut self, tracker: &WriteTracker) {
        let mut copy = |range: PageRange| {
            for page in range.pages() {
                self.words[usize::try_from(page.0).unwrap()] = self.in_ram(page.0);
            }
        };
        tracker.take(tracker.ram().pages(), &mut copy).unwrap();
    }

    fn lost(&self) -> Option<u64> {
        (0..).zip(&self.words).find(|(index, words)| self.in_ram(*index) != **words).map(|(index, _)| index)
    }
}

/// Copies what is given: in the end the copy is the RAM.
#[test]
fn no_write_of_a_storm_is_lost_between_takes() {
    if !is_tracked() {
        return;
    }
    for backing in BACKINGS {
        let ram = ram(backing);
        let tracker = WriteTracker::start(&ram).unwrap();
        let (ends, mut copied, mut rounds) = (AtomicBool::new(false), Copied::new(&ram), 0_u64);
        let written = thread::scope(|scope| {
            let (ram, ends) = (&ram, &ends);
            let writers = [0, 1].map(|half| scope.spawn(move || storm(ram, half, ends)));
            let deadline = Instant::now() + Duration::from_millis(200);
            // On a busy machine the writers come late.
            while Instant::now() < deadline || rounds < 10 {
                copied.round(&tracker);
                rounds += 1;
            }
            ends.store(true, Ordering::Relaxed);
            writers.map(|writer| writer.join().unwrap())
        });
        copied.round(&tracker);
        assert_eq!(copied.lost(), None, "{backing:?}, after {written:?} writes and {rounds} takes");
        assert!(written.iter().all(|count| *count > 0), "{written:?}");
    }
}
