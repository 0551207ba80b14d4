//! Every corner of the kernel's interface that the engine counts on, on the kernel itself.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ops::Deref;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::page::{PageIndex, PageRange, PageSize};
use crate::ram::{Backing, GuestRam, RamRange};
use crate::staging::Staging;

const ANONYMOUS: Backing = Backing::Anonymous { transparent_huge_pages: false };
const MEMFD: Backing = Backing::Memfd { transparent_huge_pages: false };
const MISSING: Modes = Modes { missing: true, write_protect: false, minor: false };
const MISSING_WP: Modes = Modes { missing: true, write_protect: true, minor: false };
/// How long anything that must happen may take.
const BUDGET: Duration = Duration::from_secs(2);

fn page(index: u64) -> PageRange {
    PageIndex(index).alone()
}

fn pages(start: u64, count: u64) -> PageRange {
    PageRange { start: PageIndex(start), count }
}

fn bytes(value: u8, count: u64) -> Vec<u8> {
    vec![value; usize::try_from(PageRange { start: PageIndex(0), count }.bytes()).unwrap()]
}

/// Registered memory, and the events of it that were read and not looked at yet.
struct Memory {
    registered: Registered,
    events: RefCell<VecDeque<Event>>,
}

impl Deref for Memory {
    type Target = Registered;

    fn deref(&self) -> &Registered {
        &self.registered
    }
}

impl From<Registered> for Memory {
    fn from(registered: Registered) -> Self {
        Self { registered, events: RefCell::default() }
    }
}

fn registered(backing: Backing, mib: u64, modes: Modes) -> Memory {
    let features = probe().unwrap().features;
    let ram = GuestRam::new(&[RamRange { gpa: GuestAddress(0), size_bytes: mib << 20 }], backing).unwrap();
    // Asynchronous write-protection would take the faults away that these tests wait for.
    let asynchronous = Features::NONE.with(Feature::WRITE_PROTECT_ASYNC);
    Registered::new(open(features.without(asynchronous)).unwrap(), ram, modes).unwrap().into()
}

/// Touches a page on a thread of its own; the receiver gives what was read before the write, if there is one.
fn touch(registered: &Registered, index: u64, write: Option<u8>) -> Receiver<u8> {
    let (sender, receiver) = channel();
    let ram = registered.ram().clone();
    thread::spawn(move || {
        let address = GuestAddress(PageIndex(index).offset());
        let value = match write {
            Some(value) => {
                ram.write_obj(value, address).unwrap();
                value
            }
            None => ram.read_obj::<u8>(address).unwrap(),
        };
        // The test may have ended.
        let _ = sender.send(value);
    });
    receiver
}

fn next_event(memory: &Memory) -> Event {
    let mut buffer = EventBuffer::default();
    let deadline = Instant::now() + BUDGET;
    loop {
        let mut events = memory.events.borrow_mut();
        if let Some(event) = events.pop_front() {
            return event;
        }
        memory.read_events(&mut buffer, &mut |event| events.push_back(event)).unwrap();
        assert!(Instant::now() < deadline, "no event within {BUDGET:?}");
        thread::yield_now();
    }
}

fn next_fault(registered: &Memory) -> Fault {
    match next_event(registered) {
        Event::Fault(fault) => fault,
        other => panic!("a fault was expected, not {other:?}"),
    }
}

fn content(registered: &Registered, index: u64) -> u8 {
    registered.ram().read_obj(GuestAddress(PageIndex(index).offset())).unwrap()
}

fn done(count: u64) -> Placed {
    Placed { pages: count, stop: None }
}

fn stopped(count: u64, stop: Stop) -> Placed {
    Placed { pages: count, stop: Some(stop) }
}

#[test]
fn a_missing_page_is_copied_in_and_its_reader_goes_on() {
    for backing in [ANONYMOUS, MEMFD] {
        let registered = registered(backing, 2, MISSING);
        let reader = touch(&registered, 3, None);
        let fault = next_fault(&registered);
        assert_eq!((fault.page, fault.kind), (PageIndex(3), FaultKind::Missing), "{backing:?}");
        assert!(fault.thread > 0);
        assert_eq!(registered.copy(page(3), &bytes(0xa5, 1), false, Wake::Now), done(1));
        assert_eq!(reader.recv_timeout(BUDGET).unwrap(), 0xa5);
    }
}

#[test]
fn a_copy_that_starts_on_a_page_says_so_and_wakes_nobody() {
    let registered = registered(ANONYMOUS, 2, MISSING);
    assert_eq!(registered.copy(page(0), &bytes(1, 1), false, Wake::Now), done(1));
    assert_eq!(registered.copy(pages(0, 4), &bytes(2, 4), false, Wake::Now), stopped(0, Stop::Exists));
    assert_eq!(content(&registered, 0), 1, "what was there stays");
}

#[test]
fn a_copy_that_runs_into_a_page_says_how_far_it_came() {
    let registered = registered(ANONYMOUS, 2, MISSING);
    assert_eq!(registered.copy(page(2), &bytes(9, 1), false, Wake::Now), done(1));
    assert_eq!(registered.copy(pages(0, 4), &bytes(2, 4), false, Wake::Now), stopped(2, Stop::Again));
    assert_eq!(registered.copy(pages(2, 2), &bytes(2, 2), false, Wake::Now), stopped(0, Stop::Exists));
    assert_eq!([0, 1, 2].map(|index| content(&registered, index)), [2, 2, 9]);
}

#[test]
fn nobody_is_woken_who_is_to_wait_for_a_wake() {
    let registered = registered(ANONYMOUS, 2, MISSING);
    let reader = touch(&registered, 0, None);
    next_fault(&registered);
    assert_eq!(registered.copy(page(0), &bytes(7, 1), false, Wake::Later), done(1));
    assert!(reader.recv_timeout(Duration::from_millis(50)).is_err(), "it sleeps on");
    registered.wake(page(0)).unwrap();
    assert_eq!(reader.recv_timeout(BUDGET).unwrap(), 7);
}

#[test]
fn a_removal_is_told_and_holds_up_placing_until_it_is_read() {
    let registered = registered(ANONYMOUS, 64, MISSING);
    assert_eq!(registered.copy(pages(0, 8), &bytes(1, 8), false, Wake::Now), done(8));
    let ram = registered.ram().clone();
    let remover = thread::spawn(move || ram.discard(pages(2, 2)).unwrap());
    let deadline = Instant::now() + BUDGET;
    // Once the removal waits to be read, nothing can be placed anywhere.
    let mut free = 100;
    while registered.copy(page(free), &bytes(1, 1), false, Wake::Now) == done(1) {
        assert!(Instant::now() < deadline && free < 16_000, "the removal never came");
        free += 1;
        thread::sleep(Duration::from_micros(200));
    }
    assert_eq!(registered.copy(page(free), &bytes(1, 1), false, Wake::Now), stopped(0, Stop::Again));
    assert_eq!(next_event(&registered), Event::Removed(pages(2, 2)));
    remover.join().unwrap();
    let reader = touch(&registered, 2, None);
    assert_eq!(next_fault(&registered).page, PageIndex(2));
    assert_eq!(registered.zero(page(2), Wake::Now), done(1));
    assert_eq!(reader.recv_timeout(BUDGET).unwrap(), 0);
}

#[test]
fn one_access_faults_as_missing_and_again_as_protected() {
    for backing in [ANONYMOUS, MEMFD] {
        let registered = registered(backing, 2, MISSING_WP);
        let writer = touch(&registered, 5, Some(0x11));
        let first = next_fault(&registered);
        assert_eq!((first.kind, first.access), (FaultKind::Missing, Access::Write), "{backing:?}");
        assert_eq!(registered.copy(page(5), &bytes(0x77, 1), true, Wake::Now), done(1));
        let second = next_fault(&registered);
        assert_eq!((second.kind, second.page), (FaultKind::WriteProtected, PageIndex(5)), "{backing:?}");
        assert_eq!(content(&registered, 5), 0x77, "the handler sees what was there before the write");
        assert_eq!(registered.unprotect(page(5)), done(1));
        assert_eq!(writer.recv_timeout(BUDGET).unwrap(), 0x11);
        assert_eq!(content(&registered, 5), 0x11);
    }
}

#[test]
fn protecting_populated_and_unpopulated_pages_catches_the_first_write() {
    let registered = registered(ANONYMOUS, 2, MISSING_WP);
    assert_eq!(registered.copy(page(0), &bytes(1, 1), false, Wake::Now), done(1));
    assert_eq!(registered.protect(registered.ram().pages()).stop, None);
    let writer = touch(&registered, 0, Some(2));
    assert_eq!(next_fault(&registered).kind, FaultKind::WriteProtected);
    assert_eq!(registered.unprotect(page(0)), done(1));
    assert_eq!(writer.recv_timeout(BUDGET).unwrap(), 2);

    // A page that is not there has a marker now: it is missing first, and ZEROPAGE cannot replace the marker.
    let writer = touch(&registered, 9, Some(3));
    assert_eq!(next_fault(&registered).kind, FaultKind::Missing);
    assert_eq!(registered.zero(page(9), Wake::Now), stopped(0, Stop::Exists));
    assert_eq!(registered.copy(page(9), &bytes(0, 1), true, Wake::Now), done(1));
    assert_eq!(next_fault(&registered).kind, FaultKind::WriteProtected);
    assert_eq!(registered.unprotect(page(9)), done(1));
    assert_eq!(writer.recv_timeout(BUDGET).unwrap(), 3);
}

#[test]
fn a_huge_page_is_moved_in_whole() {
    let ram = GuestRam::new(
        &[RamRange { gpa: GuestAddress(0), size_bytes: 4 << 20 }],
        Backing::Anonymous { transparent_huge_pages: true },
    );
    let features = Features::NONE.with(Feature::EVENT_REMOVE).with(Feature::MOVE);
    let uffd = match open(features) {
        Ok(uffd) => uffd,
        Err(error @ OpenError::Lacks { .. }) => {
            return assert!(error.to_string().contains("move"), "{error}");
        }
        Err(error) => panic!("{error}"),
    };
    let registered = Memory::from(Registered::new(uffd, ram.unwrap(), MISSING).unwrap());
    let mut staging = Staging::new(1).unwrap();
    staging.bytes_mut().fill(0x3c);
    let chunk = PageIndex(512).containing(PageSize::Huge2M);
    assert_eq!(registered.move_in(chunk, &mut staging, Wake::Now), done(512));
    assert_eq!([512, 777, 1023].map(|index| content(&registered, index)), [0x3c; 3]);
    assert_eq!(staging.bytes_mut()[0], 0, "the pages are gone from here");
    staging.bytes_mut().fill(1);
    assert_eq!(registered.move_in(chunk, &mut staging, Wake::Now), stopped(0, Stop::Exists));
    assert_eq!(content(&registered, 600), 0x3c);
}

#[test]
fn moving_into_a_memfd_is_not_supported_and_is_told() {
    let registered = registered(MEMFD, 2, MISSING);
    let mut staging = Staging::new(1).unwrap();
    staging.bytes_mut().fill(1);
    assert_eq!(registered.move_in(pages(0, 512), &mut staging, Wake::Now), stopped(0, Stop::Unsupported));
}

#[test]
fn cached_pages_are_mapped_once() {
    let minor = Modes { minor: true, ..Modes::default() };
    let registered = registered(MEMFD, 2, minor);
    assert_eq!(
        registered.map_cached(page(4), false, Wake::Now),
        stopped(0, Stop::NoSource),
        "no such page yet"
    );
    let file = std::fs::File::from(registered.ram().memfd().unwrap().try_clone_to_owned().unwrap());
    std::os::unix::fs::FileExt::write_all_at(&file, &bytes(0x42, 1), 4 * 4096).unwrap();
    let reader = touch(&registered, 4, None);
    assert_eq!(next_fault(&registered).kind, FaultKind::Minor);
    assert_eq!(registered.map_cached(page(4), false, Wake::Now), done(1));
    assert_eq!(reader.recv_timeout(BUDGET).unwrap(), 0x42);
    assert_eq!(registered.map_cached(page(4), false, Wake::Now), stopped(0, Stop::Exists));
}

#[test]
fn written_pages_are_found_without_a_fault() {
    let wanted = Features::NONE
        .with(Feature::WRITE_PROTECT)
        .with(Feature::WRITE_PROTECT_UNPOPULATED)
        .with(Feature::WRITE_PROTECT_ASYNC);
    let uffd = match open(wanted) {
        Ok(uffd) => uffd,
        Err(error @ OpenError::Lacks { .. }) => {
            return assert!(error.to_string().contains("wp_async (Linux 6.7)"), "{error}");
        }
        Err(error) => panic!("{error}"),
    };
    let ram = GuestRam::new(&[RamRange { gpa: GuestAddress(0), size_bytes: 2 << 20 }], ANONYMOUS).unwrap();
    let modes = Modes { write_protect: true, ..Modes::default() };
    let registered = Registered::new(uffd, ram, modes).unwrap();
    let whole = registered.ram().pages();
    assert_eq!(registered.protect(whole).stop, None);
    let scan = PagemapScan::open().unwrap();
    let written = || {
        let mut found = Vec::new();
        scan.take_written(registered.ram(), whole, &mut |range| found.push(range)).unwrap();
        found
    };
    assert_eq!(written(), []);
    for index in [3, 4, 200] {
        registered.ram().write_obj(1_u8, GuestAddress(PageIndex(index).offset())).unwrap();
    }
    assert_eq!(written(), [pages(3, 2), page(200)]);
    assert_eq!(written(), [], "they are protected again");
    registered.ram().write_obj(1_u8, GuestAddress(PageIndex(4).offset())).unwrap();
    assert_eq!(written(), [page(4)]);
}

#[test]
fn unregistering_wakes_those_who_miss_and_those_who_wait_to_write() {
    let registered = registered(ANONYMOUS, 2, MISSING_WP);
    assert_eq!(registered.copy(page(1), &bytes(5, 1), true, Wake::Now), done(1));
    let (missing, protected) = (touch(&registered, 0, None), touch(&registered, 1, Some(6)));
    next_fault(&registered);
    next_fault(&registered);
    registered.unregister().unwrap();
    assert_eq!(missing.recv_timeout(BUDGET).unwrap(), 0);
    assert_eq!(protected.recv_timeout(BUDGET).unwrap(), 6);
}

#[test]
fn registering_is_refused_with_its_reason() {
    let first = registered(ANONYMOUS, 2, MISSING);
    let uffd = || open(Features::NONE).unwrap();
    let again = Registered::new(uffd(), first.ram().clone(), MISSING);
    assert!(matches!(again, Err(RegisterError::Busy)), "{again:?}");
    let nothing = Registered::new(uffd(), first.ram().clone(), Modes::default());
    assert!(matches!(nothing, Err(RegisterError::NoModes)));
    let minor = Modes { minor: true, ..Modes::default() };
    let ram = GuestRam::new(&[RamRange { gpa: GuestAddress(0), size_bytes: 2 << 20 }], ANONYMOUS).unwrap();
    let unsupported = Registered::new(uffd(), ram, minor);
    assert!(matches!(unsupported, Err(RegisterError::Unsupported)), "{unsupported:?}");
}

#[test]
#[should_panic(expected = "not all in guest memory")]
fn no_range_outside_of_the_memory_reaches_the_kernel() {
    let registered = registered(ANONYMOUS, 2, MISSING);
    let _ = registered.zero(pages(511, 2), Wake::Now);
}

#[test]
fn a_duplicate_keeps_a_waiting_thread_waiting() {
    let registered = registered(ANONYMOUS, 2, MISSING);
    let ram = registered.ram().clone();
    let reader = touch(&registered, 0, None);
    next_fault(&registered);
    let kept = registered.duplicate_fd().unwrap();
    drop(registered);
    assert!(
        reader.recv_timeout(Duration::from_millis(50)).is_err(),
        "it waits for whoever has the duplicate"
    );
    drop(kept);
    assert_eq!(reader.recv_timeout(BUDGET).unwrap(), 0, "the last one closed gives a zero page, silently");
    drop(ram);
}
