//! A filler without an engine: nobody faults.

use std::thread;
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::fault::ServedMemory;
use crate::page::PageIndex;
use crate::ram::{Backing, GuestRam, RamRange};
use crate::source::pattern::{PatternReader, range_is};
use crate::uffd::Feature;
use crate::uffd::tests::machine::kernel_has;

const CHUNKS: u64 = 48;
const LIMIT: Duration = Duration::from_secs(60);

fn slowly(staging: &mut Staging) {
    thread::sleep(pace::SLOW * 8);
    staging.populate();
}

fn at_once(staging: &mut Staging) {
    staging.populate();
}

/// Memory that a filler has filled, and how many of its pages were copied as huge pages were slow.
fn filled(populate: Populate) -> (GuestRam, u64) {
    let range = RamRange { gpa: GuestAddress(0), size_bytes: CHUNKS << 21 };
    let ram = GuestRam::new(&[range], Backing::Anonymous { transparent_huge_pages: true }).unwrap();
    let memory = ServedMemory::new(ram.clone(), false).unwrap();
    let (registered, map) = (Arc::clone(&memory.registered), Arc::clone(&memory.map));
    let shared = Arc::new(Shared::new(registered, map, Arc::clone(&memory.gate), "none", false).unwrap());
    let options = FillOptions { everything: true, ..FillOptions::default() };
    let queue = Arc::new(FillQueue::new(&shared, options, kernel_has(Feature::MOVE)));
    let reader = Box::new(PatternReader { pattern: |_| Some(7), pages: ram.pages().count });
    let filler = Filler::with(Arc::clone(&shared), queue, reader, options, populate).unwrap();
    let filler = FillerThread::spawn(filler).unwrap();
    let deadline = Instant::now() + LIMIT;
    while memory.map.count(PageState::Present) < ram.pages().count {
        assert!(Instant::now() < deadline, "not filled: {:?}", filler.queue.failure());
        thread::sleep(Duration::from_millis(1));
    }
    assert!(matches!(filler.stop(), FillerEnd::Stopped(_)));
    let counts = shared.statistics.snapshot().counts;
    assert_eq!((counts.filled, counts.fill_failures), (ram.pages().count, 0));
    (memory.release().map_err(|(_, error)| error).unwrap(), counts.huge_pages_slow)
}

fn assert_content(ram: &GuestRam) {
    let mut bytes = [0; 4096];
    for page in ram.pages().pages() {
        ram.read_slice(&mut bytes, GuestAddress(page.offset())).unwrap();
        assert!(range_is(|_| Some(7), page.alone(), &bytes), "page {} is wrong", page.0);
    }
}

#[test]
fn chunks_are_copied_while_huge_pages_are_slow_and_that_is_counted() {
    let (ram, copied) = filled(slowly);
    assert_content(&ram);
    if kernel_has(Feature::MOVE) {
        assert!((8 * 512..CHUNKS * 512).contains(&copied), "{copied} pages copied");
    }
    assert_eq!(copied % 512, 0, "chunks are whole");
}

#[test]
fn every_byte_is_right_however_huge_pages_are_had() {
    fn not_at_all(_: &mut Staging) {}
    for populate in [at_once as Populate, not_at_all] {
        assert_content(&filled(populate).0);
    }
}

fn chunk(number: u64) -> PageRange {
    PageIndex(number * 512).containing(PageSize::Huge2M)
}

/// Memory of four chunks that nobody fills, and what is to be filled of it: all, at once or when it is said.
fn four_chunks(waits: bool) -> (ServedMemory, Shared, FillQueue) {
    let range = RamRange { gpa: GuestAddress(0), size_bytes: 8 << 20 };
    let ram = GuestRam::new(&[range], Backing::Anonymous { transparent_huge_pages: false }).unwrap();
    let memory = ServedMemory::new(ram, false).unwrap();
    let (registered, map) = (Arc::clone(&memory.registered), Arc::clone(&memory.map));
    let shared = Shared::new(registered, map, Arc::clone(&memory.gate), "none", false).unwrap();
    let options = FillOptions { everything: true, waits, ..FillOptions::default() };
    let queue = FillQueue::new(&shared, options, true);
    (memory, shared, queue)
}

#[test]
fn the_rest_waits_where_it_is_to_and_what_is_asked_for_does_not() {
    let (_memory, shared, queue) = four_chunks(true);
    let next = || queue.next(&shared, Instant::now(), Some(Duration::ZERO)).unwrap();
    assert_eq!(next(), Job::Nothing);
    queue.look_again();
    assert_eq!(next(), Job::Nothing, "who looks again waits, too");
    queue.ahead(chunk(3));
    assert_eq!(next(), Job::Ahead(chunk(3)));
    assert_eq!(next(), Job::Nothing);
    queue.begin_rest();
    assert_eq!(next(), Job::Rest(chunk(0)));
}

#[test]
fn the_rest_is_looked_for_from_the_last_fault_on() {
    let (memory, shared, queue) = four_chunks(false);
    let next = || queue.next(&shared, Instant::now(), Some(Duration::ZERO)).unwrap();
    queue.fault_at(PageIndex(2 * 512 + 9));
    assert_eq!(next(), Job::Rest(chunk(2)));
    assert_eq!(next(), Job::Rest(chunk(3)));
    queue.fault_at(PageIndex(512));
    assert_eq!(next(), Job::Rest(chunk(1)));
    queue.ahead(PageRange { start: PageIndex(7), count: 600 });
    assert!(!queue.is_urgent(chunk(3)) && queue.deadline(Duration::ZERO).is_none());
    assert!(queue.take_over(chunk(3)) && queue.is_urgent(chunk(3)) && queue.deadline(LIMIT).is_some());
    assert_eq!(next(), Job::Urgent(chunk(3)));
    assert!(queue.is_urgent(chunk(3)), "until it is done");
    queue.finish_urgent(false);
    assert!(!queue.is_urgent(chunk(3)) && queue.deadline(Duration::ZERO).is_none());
    assert_eq!(next(), Job::Ahead(PageRange { start: PageIndex(7), count: 505 }));
    assert_eq!(next(), Job::Ahead(PageRange { start: PageIndex(512), count: 95 }));
    memory.assume_present(shared.registered.ram().pages());
    assert_eq!(next(), Job::Nothing);
    queue.look_again();
    queue.stop();
    assert_eq!(queue.next(&shared, Instant::now(), None), None);
}
