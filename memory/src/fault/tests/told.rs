//! What an observer is told of protected pages, where that was found to be wrong under stress.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Instant;

use super::harness::*;
use crate::fault::{FaultEngine, Options, Verdict, WriteObserver};
use crate::page::PageRange;
use crate::ram::Backing;
use crate::source::Reading;
use crate::source::pattern::PatternReader;

/// Writes down what it is told.
struct Notes(Sender<(PageRange, Vec<u8>)>);

impl WriteObserver for Notes {
    fn before_write(&mut self, page: PageRange, content: std::io::Result<&[u8]>) -> Verdict {
        let content = content.unwrap();
        self.0.send((page, content.to_vec())).unwrap();
        Verdict::Allow
    }
}

#[test]
fn what_was_written_to_a_page_after_it_was_thrown_away_is_told_before_the_next_write() {
    for backing in protected(&[ANONYMOUS, MEMFD, Backing::MemfdPrivate]) {
        let options = Options { write_protect: true, ..on_demand() };
        let (engine, _handle) = scripted(&ram(backing, 8), well_behaved(), &options);
        engine.ram().discard(page(5)).unwrap();
        write(engine.ram(), 5, 0x11);
        let (notes, told) = channel();
        engine.protect(Box::new(Notes(notes))).unwrap();
        write(engine.ram(), 5, 0x22);
        let (range, before) = told.recv_timeout(patience()).unwrap();
        assert_eq!(range, page(5));
        assert_eq!(before.first(), Some(&0x11), "{backing:?}: what was there before the write");
    }
}

/// Has the first write wait until it is told to go on.
struct Slowly(Receiver<()>, Sender<Vec<u8>>);

impl WriteObserver for Slowly {
    fn before_write(&mut self, page: PageRange, content: std::io::Result<&[u8]>) -> Verdict {
        let content = content.unwrap();
        if page == super::harness::page(1) {
            self.0.recv().unwrap();
        } else {
            self.1.send(content.to_vec()).unwrap();
        }
        Verdict::Allow
    }
}

/// A protected page leaves between its write fault and the look at what it held.
#[test]
fn a_protected_page_that_is_paged_out_before_its_pre_image_is_read_holds_nobody_up() {
    let Some(_swap) = crate::uffd::tests::swap::Swap::take() else { return };
    for backing in protected(&[ANONYMOUS, MEMFD, Backing::MemfdPrivate]) {
        let options = Options { write_protect: true, ..on_demand() };
        let (engine, _handle) = scripted(&ram(backing, 8), well_behaved(), &options);
        assert!(is_original(1, &content(engine.ram(), 1)) && is_original(5, &content(engine.ram(), 5)));
        let ((go_on, told_to_go_on), (notes, told)) = (channel(), channel());
        engine.protect(Box::new(Slowly(told_to_go_on, notes))).unwrap();
        let first = writer(engine.ram(), 1, 0x11);
        thread::sleep(SILENCE);
        let second = writer(engine.ram(), 5, 0x55);
        thread::sleep(SILENCE);
        crate::uffd::tests::swap::page_out(engine.ram(), 5);
        go_on.send(()).unwrap();
        first.recv_timeout(patience()).unwrap();
        let before = told.recv_timeout(patience()).expect("the fault thread waits for nobody");
        assert!(is_original(5, &before), "{backing:?}");
        second.recv_timeout(patience()).unwrap();
    }
}

/// Counts what is told of pages that nobody has thrown away as if somebody had.
struct Empties(Arc<AtomicU64>);

impl WriteObserver for Empties {
    fn before_write(&mut self, _: PageRange, content: std::io::Result<&[u8]>) -> Verdict {
        let content = content.unwrap();
        if content.is_empty() {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
        Verdict::Allow
    }
}

/// The filler wakes who waits before it notes that the page is there.
#[test]
fn what_a_page_held_is_told_though_the_filler_has_not_noted_it_yet() {
    let empties = Arc::new(AtomicU64::new(0));
    let deadline = Instant::now() + 4 * BUDGET;
    while Instant::now() < deadline && empties.load(Ordering::Relaxed) == 0 {
        let ram = ram(ANONYMOUS, 8);
        let reader = PatternReader { pattern: FULL, pages: ram.pages().count };
        let options = Options { write_protect: true, ..on_demand() };
        let source = Box::new(Reading::new(reader));
        let engine = FaultEngine::start(ram, source, Some(Box::new(reader)), &options).unwrap();
        engine.protect(Box::new(Empties(Arc::clone(&empties)))).unwrap();
        let ends = Arc::new(AtomicBool::new(false));
        let writers: Vec<_> = (0..8)
            .map(|number| {
                let (ram, ends) = (engine.ram().clone(), Arc::clone(&ends));
                thread::spawn(move || {
                    let own = (0..2048).filter(|page| page % 8 == number);
                    own.take_while(|_| !ends.load(Ordering::Relaxed)).for_each(|page| write(&ram, page, 1));
                })
            })
            .collect();
        engine.prefetch(engine.ram().pages());
        writers.into_iter().for_each(|writer| writer.join().unwrap());
    }
    assert_eq!(empties.load(Ordering::Relaxed), 0);
}
