//! A capture that fails: the guest goes on, and nothing stays protected.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::guest::*;
use crate::capture::{BeginError, Capture, CaptureError};
use crate::fault::{FaultEngine, Options, ServedMemory, Status};
use crate::image::{Progress, WriteError, WriteOptions};
use crate::page::PageRange;
use crate::ram::{GuestRam, RamRange};
use crate::source::{Content, PageReader, PageReply, PageRequest, PageSource, SourceError};
use crate::threads::scarce::with_threads;
use crate::uffd::{Modes, Registered, Wake, open, probe};

/// Half of the memory is there, and a guest runs.
fn running() -> (Arc<FaultEngine>, Guest) {
    let ram = ram(ANONYMOUS);
    let engine = served(&ram, false);
    touch(&ram, pages(0, ram.pages().count / 2));
    (engine, Guest::run(&ram, MIXED, 2, true, seed()))
}

fn begin(engine: &Arc<FaultEngine>, guest: &Guest) -> Capture {
    guest.standing(|| Capture::begin(Arc::clone(engine)).unwrap()).0
}

fn assert_free(engine: &FaultEngine, guest: &Guest) {
    guest.goes_on();
    assert_eq!(guest.standing(|| protected(engine.ram())).0, 0);
}

#[test]
fn a_file_that_fails_at_any_write_is_told_with_its_place() {
    let (engine, guest) = running();
    let mut reader = reader_of(engine.ram());
    for (nth, kind) in [1, 2, 3, 5, 8, 13, 21, 34]
        .into_iter()
        .flat_map(|nth| [io::ErrorKind::StorageFull, io::ErrorKind::Other].map(|kind| (nth, kind)))
    {
        let capture = begin(&engine, &guest);
        let file = Scripted::new(|write| if write == nth { Err(kind.into()) } else { Ok(()) });
        let error = capture.save_to(&file, Some(&mut reader), &WriteOptions::default()).unwrap_err();
        match (kind, &error) {
            (io::ErrorKind::StorageFull, CaptureError::Write(WriteError::NoRoom { offset, .. })) => {
                assert!(offset.is_multiple_of(4096) && *offset < SIZE_MIB << 20);
            }
            (io::ErrorKind::Other, CaptureError::Write(WriteError::File { .. })) => {}
            _ => panic!("{error}"),
        }
        assert_free(&engine, &guest);
    }
    guest.end();
}

#[test]
fn it_can_be_cancelled_and_dropped_at_any_time() {
    let (engine, guest) = running();
    let mut reader = reader_of(engine.ram());
    for nth in [1, 7, 20] {
        let capture = begin(&engine, &guest);
        let progress = Progress::default();
        let file = Scripted::new(|write| {
            if write == nth {
                progress.cancel();
            }
            Ok(())
        });
        let options = WriteOptions { progress: Some(&progress), threads: None };
        let error = capture.save_to(&file, Some(&mut reader), &options).unwrap_err();
        assert!(matches!(error, CaptureError::Write(WriteError::Cancelled)), "{error}");
        assert!(progress.done_pages() < engine.ram().pages().count);
        assert_free(&engine, &guest);
    }
    drop(begin(&engine, &guest));
    assert_free(&engine, &guest);
    drop(Capture::prepare(Arc::clone(&engine)).unwrap());
    assert_free(&engine, &guest);
    guest.end();
}

/// A source that answers with a panic once it is told to.
struct Deadly(Arc<AtomicBool>, crate::source::Reading<crate::source::pattern::PatternReader>);

impl PageSource for Deadly {
    fn name(&self) -> &'static str {
        "deadly"
    }

    fn submit(&mut self, requests: &[PageRequest]) -> Result<(), SourceError> {
        self.1.submit(requests)
    }

    fn complete(&mut self, sink: &mut dyn FnMut(PageReply<'_>)) -> Result<(), SourceError> {
        assert!(!self.0.load(Ordering::Relaxed), "as it is meant to");
        self.1.complete(sink)
    }

    fn has_more(&self) -> bool {
        self.1.has_more()
    }

    fn readiness(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        None
    }
}

/// Has the engine die before it reads.
struct Killing {
    engine: Arc<FaultEngine>,
    dies: Arc<AtomicBool>,
    reader: crate::source::pattern::PatternReader,
}

impl PageReader for Killing {
    fn name(&self) -> &'static str {
        "killing"
    }

    fn read(&mut self, range: PageRange, into: &mut [u8]) -> Result<Content, SourceError> {
        self.dies.store(true, Ordering::Relaxed);
        let ram = self.engine.ram().clone();
        std::thread::spawn(move || touch(&ram, range.start.alone()));
        until("the engine dies", || matches!(self.engine.status(), Status::Failed(_)));
        self.reader.read(range, into)
    }
}

#[test]
fn an_engine_that_dies_ends_it_and_who_has_its_pages_goes_on() {
    let ram = ram(ANONYMOUS);
    let dies = Arc::new(AtomicBool::new(false));
    let source = Deadly(Arc::clone(&dies), crate::source::Reading::new(reader_of(&ram)));
    let options = Options { write_protect: true, ..Options::default() };
    let engine = Arc::new(FaultEngine::start(ram.clone(), Box::new(source), None, &options).unwrap());
    // The first pages stay with their source, and are read from there: that is when the engine dies.
    let there = pages(512, ram.pages().count - 512);
    touch(&ram, there);
    let mut reader = Killing { engine: Arc::clone(&engine), dies, reader: reader_of(&ram) };
    let capture = Capture::begin(Arc::clone(&engine)).unwrap();
    let file = tempfile::tempfile().unwrap();
    let saved = capture.save(&file, Some(&mut reader), &WriteOptions::default()).map(|_| ());
    let error = saved.unwrap_err();
    assert!(matches!(error, CaptureError::Engine(_)), "{error}");
    assert_eq!(protected(&ram), 0);
    there.pages().for_each(|page| {
        vm_memory::Bytes::write_obj(&ram, 9_u8, vm_memory::GuestAddress(page.offset())).unwrap();
    });
    let again = Capture::begin(Arc::clone(&engine));
    assert!(matches!(again, Err(BeginError::Engine(_))));
    assert_eq!(protected(&ram), 0);
}

/// Whether a source is to hang, and whether it does.
#[derive(Default)]
struct Hanging {
    is_told: AtomicBool,
    has_begun: AtomicBool,
}

/// A source that hangs from when it is told to until it is let go.
struct Hangs(Arc<Hanging>, crate::source::Reading<crate::source::pattern::PatternReader>);

impl PageSource for Hangs {
    fn name(&self) -> &'static str {
        "hangs"
    }

    fn submit(&mut self, requests: &[PageRequest]) -> Result<(), SourceError> {
        self.1.submit(requests)
    }

    fn complete(&mut self, sink: &mut dyn FnMut(PageReply<'_>)) -> Result<(), SourceError> {
        while self.0.is_told.load(Ordering::Relaxed) {
            self.0.has_begun.store(true, Ordering::Relaxed);
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        self.1.complete(sink)
    }

    fn has_more(&self) -> bool {
        self.1.has_more()
    }

    fn readiness(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        None
    }
}

fn hanging() -> (Arc<Hanging>, Arc<FaultEngine>) {
    let (hangs, ram) = (Arc::new(Hanging::default()), ram(ANONYMOUS));
    let options = Options { write_protect: true, ..Options::default() };
    let source = Box::new(Hangs(Arc::clone(&hangs), crate::source::Reading::new(reader_of(&ram))));
    (hangs, Arc::new(FaultEngine::start(ram, source, None, &options).unwrap()))
}

fn hang(hangs: &Hanging, engine: &FaultEngine) {
    hangs.is_told.store(true, Ordering::Relaxed);
    let ram = engine.ram().clone();
    std::thread::spawn(move || touch(&ram, pages(0, 1)));
    until("it hangs", || hangs.has_begun.load(Ordering::Relaxed));
}

#[test]
fn a_source_that_hangs_is_told_and_no_observer_of_that_time_stays() {
    let (hangs, engine) = hanging();
    hang(&hangs, &engine);
    assert!(matches!(Capture::begin(Arc::clone(&engine)), Err(BeginError::Hangs)));
    hangs.is_told.store(false, Ordering::Relaxed);
    // The one that was given up would be in the way of another.
    drop(Capture::begin(Arc::clone(&engine)).unwrap());
    assert_eq!(protected(engine.ram()), 0);
}

#[test]
fn a_source_that_hangs_between_preparing_and_the_moment_holds_up_neither_that_nor_the_end() {
    let (hangs, engine) = hanging();
    let armed = Capture::prepare(Arc::clone(&engine)).unwrap();
    hang(&hangs, &engine);
    assert!(matches!(armed.begin(), Err(BeginError::Hangs)));
    assert_eq!(protected(engine.ram()), 0);
    drop(engine);
    hangs.is_told.store(false, Ordering::Relaxed);
}

/// Gives nothing past a page.
struct Cut(PageRange);

impl PageReader for Cut {
    fn name(&self) -> &'static str {
        "cut"
    }

    fn read(&mut self, range: PageRange, _: &mut [u8]) -> Result<Content, SourceError> {
        if self.0.intersection(range) == range {
            Ok(Content::Zero)
        } else {
            Err(SourceError::Truncated { range })
        }
    }
}

#[test]
fn a_source_that_does_not_give_what_is_missing_is_told() {
    let (engine, guest) = running();
    let capture = begin(&engine, &guest);
    let file = tempfile::tempfile().unwrap();
    let mut reader = Cut(pages(0, 2048));
    let error = capture.save(&file, Some(&mut reader), &WriteOptions::default()).unwrap_err();
    assert!(matches!(error, CaptureError::Source { .. }), "{error}");
    assert_free(&engine, &guest);
    guest.end();
}

#[test]
fn a_poisoned_page_is_told_with_its_number() {
    let ram = ram(ANONYMOUS);
    let modes = Modes { missing: true, write_protect: false, minor: false };
    let memory = Registered::new(open(probe().unwrap().features).unwrap(), ram.clone(), modes).unwrap();
    if memory.poison(pages(70, 1), Wake::Now).stop.is_some() {
        return println!("NOT TESTED: this needs UFFDIO_POISON, Linux 6.6");
    }
    memory.unregister().unwrap();
    drop(memory);
    let memory = ServedMemory::new(ram.clone(), true).unwrap();
    memory.assume_present(pages(70, 1));
    let options = Options { write_protect: true, ..Options::default() };
    let source = Box::new(crate::source::Reading::new(reader_of(&ram)));
    let engine = Arc::new(FaultEngine::resume(memory, source, None, &options).unwrap());
    let capture = Capture::begin(engine).unwrap();
    let file = tempfile::tempfile().unwrap();
    let error = capture.save(&file, Some(&mut reader_of(&ram)), &WriteOptions::default()).unwrap_err();
    let CaptureError::Write(WriteError::Page(error)) = error else { panic!("{error}") };
    assert_eq!(error.page.0, 70);
}

#[test]
fn what_cannot_be_captured_is_refused() {
    let ram = ram(ANONYMOUS);
    let source = Box::new(crate::source::Reading::new(reader_of(&ram)));
    let engine = FaultEngine::start(ram, source, None, &Options::default()).unwrap();
    assert!(matches!(Capture::begin(Arc::new(engine)), Err(BeginError::Unprotectable)));
    let (engine, guest) = running();
    let first = begin(&engine, &guest);
    assert!(matches!(Capture::begin(Arc::clone(&engine)), Err(BeginError::Busy)));
    drop(first);
    drop(begin(&engine, &guest));
    guest.end();
}

#[test]
fn without_other_threads_the_caller_s_does_it_all() {
    // So much that protecting it would be shared: a chunk more than is worth one thread.
    let ranges = [RamRange { gpa: vm_memory::GuestAddress(0), size_bytes: 66 << 20 }];
    let ram = GuestRam::new(&ranges, ANONYMOUS).unwrap();
    let engine = served(&ram, false);
    touch(&ram, pages(0, 300));
    let mut memory = vec![0; usize::try_from(ram.size_bytes()).unwrap()];
    crate::source::pattern::fill_range(MIXED, ram.pages(), &mut memory);
    with_threads(0, || {
        let capture = Capture::begin(Arc::clone(&engine)).unwrap();
        check_saved(capture, Some(&mut reader_of(&ram)), &memory);
        let capture = Capture::begin(Arc::clone(&engine)).unwrap();
        let file = Scripted::new(|_| Err(io::ErrorKind::StorageFull.into()));
        let saved = capture.save_to(&file, Some(&mut reader_of(&ram)), &WriteOptions::default());
        assert!(matches!(saved, Err(CaptureError::Write(WriteError::NoRoom { .. }))));
    });
    assert_eq!(protected(&ram), 0);
}
