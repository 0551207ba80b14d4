//! The background against faults, discards and bad readers.

use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread;

use super::harness::*;
use crate::fault::{FaultEngine, FillOptions, Limits, Options};
use crate::map::PageState;
use crate::page::{PageIndex, PageRange};
use crate::ram::GuestRam;
use crate::source::pattern::PatternReader;
use crate::source::{Content, PageReader, SourceError};
use crate::uffd::Feature;
use crate::uffd::tests::machine::kernel_has;

/// A reader that says what it is to read, and waits to be let on.
struct Parked {
    reader: PatternReader,
    begun: Sender<PageRange>,
    on: Receiver<()>,
}

impl PageReader for Parked {
    fn name(&self) -> &'static str {
        "parked"
    }

    fn read(&mut self, range: PageRange, into: &mut [u8]) -> Result<Content, SourceError> {
        // Once the test has ended, nobody holds it up.
        let _ = self.begun.send(range);
        let _ = self.on.recv();
        self.reader.read(range, into)
    }
}

fn parked(ram: &GuestRam, options: &Options) -> (FaultEngine, Receiver<PageRange>, Sender<()>) {
    let (begun, begins) = channel();
    let (go, on) = channel();
    let reader = Parked { reader: PatternReader { pattern: FULL, pages: ram.pages().count }, begun, on };
    let engine = FaultEngine::start(ram.clone(), good_source(ram), Some(Box::new(reader)), options).unwrap();
    (engine, begins, go)
}

#[test]
fn who_faults_does_not_wait_for_the_background_and_keeps_what_is_written() {
    for backing in [HUGE, MEMFD] {
        let ram = ram(backing, 4);
        let (engine, begins, go) = parked(&ram, &on_demand());
        engine.prefetch(pages(0, 512));
        assert!(begins.recv_timeout(patience()).unwrap().contains(PageIndex(7)));
        assert!(is_original(7, &content(&ram, 7)), "{backing:?}");
        write(&ram, 7, 0xee);
        drop(go);
        until("the rest is there", || engine.map().count(PageState::Present) == 512);
        assert_eq!(content(&ram, 7)[0], 0xee, "{backing:?}: what was written stays");
        assert_content(&ram, FULL, pages(0, 7));
        assert_content(&ram, FULL, pages(8, 504));
        assert_eq!(engine.report().counts.filled, 511);
    }
}

#[test]
fn pages_discarded_while_the_background_reads_them_stay_zero() {
    for backing in [HUGE, MEMFD] {
        let ram = ram(backing, 4);
        let (engine, begins, go) = parked(&ram, &on_demand());
        engine.prefetch(pages(512, 512));
        begins.recv_timeout(patience()).unwrap();
        ram.discard(pages(600, 10)).unwrap();
        drop(go);
        until("the rest is there", || engine.map().count(PageState::Present) == 502);
        assert!((600..610).all(|index| is_zero(&content(&ram, index))), "{backing:?}");
        assert_content(&ram, FULL, pages(512, 88));
        assert_content(&ram, FULL, pages(610, 414));
    }
}

#[test]
fn discards_race_the_background_and_never_lose() {
    for round in 0..20_u64 {
        let ram = ram(HUGE, 16);
        let reader = PatternReader { pattern: FULL, pages: ram.pages().count };
        let fill = FillOptions { everything: true, ..FillOptions::default() };
        let options = Options { fill, ..on_demand() };
        let engine =
            FaultEngine::start(ram.clone(), good_source(&ram), Some(Box::new(reader)), &options).unwrap();
        let discarded = move |chunk: u64| pages(chunk * 512 + 37 * round % 500, 3);
        let remover = {
            let ram = ram.clone();
            thread::spawn(move || (0..8).for_each(|chunk| ram.discard(discarded(chunk)).unwrap()))
        };
        remover.join().unwrap();
        until("all is there", || engine.map().count(PageState::Missing) == 0);
        for chunk in 0..8 {
            let gone = discarded(chunk);
            assert!(gone.pages().all(|page| is_zero(&content(&ram, page.0))), "round {round}");
            assert_content(&ram, FULL, PageRange::between(gone.end(), PageIndex((chunk + 1) * 512)));
        }
        assert_serving(&engine);
    }
}

/// A reader that cannot read.
struct Broken;

impl PageReader for Broken {
    fn name(&self) -> &'static str {
        "broken"
    }

    fn read(&mut self, range: PageRange, _: &mut [u8]) -> Result<Content, SourceError> {
        Err(SourceError::Truncated { range })
    }
}

/// A reader whose thread dies.
struct Deadly;

impl PageReader for Deadly {
    fn name(&self) -> &'static str {
        "deadly"
    }

    fn read(&mut self, _: PageRange, _: &mut [u8]) -> Result<Content, SourceError> {
        panic!("as it is meant to");
    }
}

#[test]
fn a_walk_whose_chunks_cannot_be_filled_is_served_on_demand() {
    let broken: [Box<dyn PageReader>; 2] = [Box::new(Broken), Box::new(Deadly)];
    for reader in broken {
        let ram = ram(HUGE, 16);
        let engine =
            FaultEngine::start(ram.clone(), good_source(&ram), Some(reader), &Options::default()).unwrap();
        assert_content(&ram, FULL, ram.pages());
        assert_serving(&engine);
        assert_eq!(engine.report().counts.filled, 0);
    }
}

#[test]
fn what_stood_in_the_way_of_filling_can_be_asked() {
    let ram = ram(ANONYMOUS, 4);
    let engine =
        FaultEngine::start(ram.clone(), good_source(&ram), Some(Box::new(Broken)), &on_demand()).unwrap();
    assert_eq!(engine.fill_failure(), None);
    engine.prefetch(pages(0, 4));
    until("the failure is told", || engine.fill_failure().is_some());
    assert!(engine.fill_failure().unwrap().contains("ends before pages 0..4"));
    assert_serving(&engine);
}

#[test]
fn who_waits_for_a_chunk_whose_reader_hangs_is_served_on_demand() {
    let ram = ram(HUGE, 16);
    let limits = Limits { answer_ticks_max: 30, ..Limits::default() };
    let (engine, begins, go) = parked(&ram, &Options { limits, ..Options::default() });
    assert_content(&ram, FULL, ram.pages());
    if kernel_has(Feature::MOVE) {
        assert!(begins.try_recv().is_ok(), "the walk came to whole chunks");
        assert!(engine.fill_failure().unwrap().contains("hangs"));
    }
    assert_serving(&engine);
    drop(go);
}

/// The last thing such a thread does is to drop its reader.
fn until_gone(begins: &Receiver<PageRange>) {
    while begins.recv_timeout(patience()).is_ok() {}
    assert!(begins.try_recv().is_err_and(|error| error == TryRecvError::Disconnected), "the thread is there");
}

#[test]
fn a_filler_whose_reader_hangs_holds_up_no_stop_and_places_nothing_afterwards() {
    for backing in [HUGE, MEMFD] {
        let ram = ram(backing, 4);
        let (engine, begins, go) = parked(&ram, &on_demand());
        engine.prefetch(ram.pages());
        begins.recv_timeout(patience()).unwrap();
        assert!(is_original(3, &content(&ram, 3)));
        let stopped = engine.stop();
        assert!(stopped.filler_hangs && stopped.reader.is_none(), "{backing:?}");
        assert_eq!(stopped.memory.map().count(PageState::Requested), 0, "it has no claims");
        let engine = FaultEngine::resume(stopped.memory, good_source(&ram), None, &on_demand()).unwrap();
        write(&ram, 5, 0xee);
        ram.discard(pages(9, 2)).unwrap();
        drop(go);
        until_gone(&begins);
        assert_eq!(engine.map().count(PageState::Missing), 1024 - 4, "{backing:?}: nothing was placed");
        assert!(is_zero(&content(&ram, 9)) && content(&ram, 5)[0] == 0xee, "{backing:?}");
        assert_content(&ram, FULL, pages(11, 1024 - 11));
        assert_serving(&engine);
    }
}

#[test]
fn who_waits_for_the_chunk_of_a_filler_that_hangs_is_served_by_the_next_engine() {
    let ram = ram(HUGE, 16);
    let (engine, begins, go) = parked(&ram, &Options::default());
    let walker = {
        let ram = ram.clone();
        thread::spawn(move || assert_content(&ram, FULL, ram.pages()))
    };
    if kernel_has(Feature::MOVE) {
        begins.recv_timeout(patience()).unwrap();
        let stopped = engine.stop();
        assert!(stopped.filler_hangs);
        let engine = FaultEngine::resume(stopped.memory, good_source(&ram), None, &on_demand()).unwrap();
        walker.join().unwrap();
        assert_serving(&engine);
    } else {
        walker.join().unwrap();
        assert!(!engine.stop().filler_hangs, "nothing was left to it");
    }
    drop(go);
    until_gone(&begins);
}

#[test]
fn a_rate_is_kept() {
    let ram = ram(HUGE, 8);
    let reader = PatternReader { pattern: FULL, pages: ram.pages().count };
    let fill = FillOptions { everything: true, rate_mib_s: std::num::NonZeroU32::new(20), waits: false };
    let begun = std::time::Instant::now();
    let options = Options { fill, ..on_demand() };
    let engine =
        FaultEngine::start(ram.clone(), good_source(&ram), Some(Box::new(reader)), &options).unwrap();
    until("all is there", || engine.map().count(PageState::Missing) == 0);
    // Three of four chunks wait for a tenth of a second each.
    assert!(begun.elapsed() >= std::time::Duration::from_millis(300), "{:?}", begun.elapsed());
}
