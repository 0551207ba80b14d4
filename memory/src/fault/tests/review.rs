//! What was found by reading, made small.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::harness::*;
use crate::fault::{FaultEngine, Options, ServedMemory, Status};
use crate::map::PageState;
use crate::page::{PageIndex, PageRange};
use crate::ram::Backing;
use crate::source::pattern::PatternReader;
use crate::source::scripted::{Script, ScriptedSource, Trouble};
use crate::source::{
    Content, PageReader, PageReply, PageRequest, PageSource, Priority, Reading, SourceError,
};
use crate::uffd::tests::machine::HugePages;

/// The last missing page is claimed and in flight: none is `Missing`, and somebody waits.
#[test]
fn an_engine_that_is_dropped_with_its_last_page_in_flight_gives_no_zero_page() {
    let ram = ram(ANONYMOUS, 2);
    let memory = ServedMemory::new(ram.clone(), false).unwrap();
    memory.assume_present(pages(0, 511));
    let script = Script { troubles: BTreeMap::from([(PageIndex(511), Trouble::Never)]), ..well_behaved() };
    let (source, handle) = ScriptedSource::new(script, 512).unwrap();
    let engine = FaultEngine::resume(memory, Box::new(source), None, &on_demand()).unwrap();
    let waiting = reader(&ram, 511);
    assert_asked(&handle, 511);
    drop(engine);
    if let Ok(bytes) = waiting.recv_timeout(SILENCE) {
        panic!("whoever waited was given a page; is it zero? {}", is_zero(&bytes));
    }
}

/// Loses all of what is prefetched but its first pages, in one answer; demand is answered well.
struct LosesTails {
    asked: Vec<PageRequest>,
    good: Reading<PatternReader>,
}

impl PageSource for LosesTails {
    fn name(&self) -> &'static str {
        "loses-tails"
    }

    fn submit(&mut self, requests: &[PageRequest]) -> Result<(), SourceError> {
        for request in requests {
            match request.priority {
                Priority::Demand => self.good.submit(&[*request])?,
                Priority::Prefetch => self.asked.push(*request),
            }
        }
        Ok(())
    }

    fn complete(&mut self, sink: &mut dyn FnMut(PageReply<'_>)) -> Result<(), SourceError> {
        for request in self.asked.drain(..) {
            let range = request.range.split_at(32).1;
            sink(PageReply::Lost(range, SourceError::Truncated { range }));
        }
        self.good.complete(sink)
    }

    fn has_more(&self) -> bool {
        !self.asked.is_empty() || self.good.has_more()
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

#[test]
fn a_loss_that_begins_within_a_huge_page_leaks_no_claim() {
    let Some(_pool) = HugePages::take(4) else { return };
    let ram = ram(Backing::Hugetlb2M, 8);
    let good = Reading::new(PatternReader { pattern: FULL, pages: ram.pages().count });
    let source = Box::new(LosesTails { asked: Vec::new(), good });
    let engine = FaultEngine::start(ram.clone(), source, None, &on_demand()).unwrap();
    engine.prefetch(ram.pages());
    std::thread::sleep(SILENCE);
    let read = reader(&ram, 0).recv_timeout(patience());
    let status = engine.status();
    if read.is_err() {
        // Or the test would not end.
        std::mem::forget(engine);
    }
    assert!(read.is_ok(), "page 0 never comes, and the engine is {status:?}");
}

/// Cannot read page 100, and counts its reads.
struct Broken(Arc<AtomicU64>);

impl PageReader for Broken {
    fn name(&self) -> &'static str {
        "broken"
    }

    fn read(&mut self, range: PageRange, into: &mut [u8]) -> Result<Content, SourceError> {
        self.0.fetch_add(1, Ordering::Relaxed);
        if range.contains(PageIndex(100)) {
            return Err(SourceError::Corrupt { range });
        }
        into.fill(1);
        Ok(Content::Bytes)
    }
}

#[test]
fn a_part_of_a_huge_page_that_is_lost_is_told_at_once_and_with_its_cause() {
    let Some(_pool) = HugePages::take(1) else { return };
    let ram = ram(Backing::Hugetlb2M, 2);
    let reads = Arc::new(AtomicU64::new(0));
    let source = Box::new(Reading::new(Broken(Arc::clone(&reads))));
    let engine = FaultEngine::start(ram.clone(), source, None, &Options::default()).unwrap();
    // Prefetched, so that nobody has to live with a memory error; it is not let go before it is late.
    engine.prefetch(ram.pages());
    until("all is read, and the claims are given back", || {
        reads.load(Ordering::Relaxed) >= 8 && engine.map().count(PageState::Missing) == 512
    });
}

/// Whatever is expected to be wanted, a reader that fails is no reason to panic.
#[test]
fn what_is_prefetched_past_the_end_and_cannot_be_read_ends_no_filler() {
    struct Fails;
    impl PageReader for Fails {
        fn name(&self) -> &'static str {
            "fails"
        }
        fn read(&mut self, range: PageRange, _: &mut [u8]) -> Result<Content, SourceError> {
            Err(SourceError::Corrupt { range })
        }
    }
    let ram = ram(ANONYMOUS, 1);
    let engine =
        FaultEngine::start(ram.clone(), good_source(&ram), Some(Box::new(Fails)), &on_demand()).unwrap();
    engine.prefetch(pages(255, 2));
    until("the failure is noted", || engine.fill_failure().is_some());
    assert!(engine.stop().reader.is_some(), "the filler has panicked");
}

/// A source that hangs until it is let go.
struct Hangs(std::sync::mpsc::Receiver<()>);

impl PageSource for Hangs {
    fn name(&self) -> &'static str {
        "hangs"
    }

    fn submit(&mut self, _: &[PageRequest]) -> Result<(), SourceError> {
        Ok(())
    }

    fn complete(&mut self, _: &mut dyn FnMut(PageReply<'_>)) -> Result<(), SourceError> {
        // It is let go when the test ends.
        let _ = self.0.recv();
        Ok(())
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

#[test]
fn a_source_that_hangs_is_found_by_whoever_watches() {
    let ram = ram(ANONYMOUS, 1);
    let (go, hangs) = std::sync::mpsc::channel();
    let engine = FaultEngine::start(ram.clone(), Box::new(Hangs(hangs)), None, &on_demand()).unwrap();
    let waiting = reader(&ram, 5);
    until("it is found", || {
        engine.check(std::time::Duration::from_millis(20));
        matches!(engine.status(), Status::Failed(_))
    });
    let Status::Failed(failure) = engine.status() else { unreachable!("it has failed") };
    assert!(failure.cause.contains("the source hangs"), "{failure}");
    drop(go);
    let memory = engine.stop().memory;
    let _engine = FaultEngine::resume(memory, good_source(&ram), None, &on_demand()).unwrap();
    assert!(is_original(5, &waiting.recv_timeout(patience()).unwrap()));
}
