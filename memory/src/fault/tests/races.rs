//! Two things at once, each parked at the point where it hurts: a source that holds its answers back is between read and
//! copy.

use std::sync::mpsc::Receiver;
use std::thread;

use super::harness::*;
use crate::fault::{FaultEngine, Status};
use crate::map::PageState;
use crate::page::PageIndex;
use crate::source::{PageReply, PageRequest, PageSource, SourceError};
use crate::uffd::{Placed, Wake};

const BACKINGS: [crate::Backing; 4] = [ANONYMOUS, HUGE, MEMFD, crate::Backing::MemfdPrivate];

fn received<T>(receiver: &Receiver<T>) -> T {
    receiver.recv_timeout(patience()).expect("whoever waits goes on within the budget")
}

#[test]
fn a_fault_on_a_page_that_is_prefetched_waits_for_that_answer() {
    for backing in BACKINGS {
        let ram = ram(backing, 4);
        let (engine, source) = scripted(&ram, well_behaved(), &on_demand());
        source.hold();
        engine.prefetch(pages(0, 8));
        assert_asked(&source, 3);
        let reader = reader(&ram, 3);
        until_faults(&engine, 1);
        source.release();
        assert!(is_original(3, &received(&reader)), "{backing:?}");
        assert_content(&ram, FULL, pages(0, 8));
        assert_eq!(source.asked(PageIndex(3)), 1, "{backing:?}: no page is asked for twice");
        let counts = engine.report().counts;
        assert_eq!((counts.demanded, counts.prefetched), (1, 7), "{backing:?}");
    }
}

#[test]
fn a_page_removed_between_read_and_copy_is_zero() {
    for backing in BACKINGS {
        let ram = ram(backing, 4);
        let (engine, source) = scripted(&ram, well_behaved(), &on_demand());
        source.hold();
        engine.prefetch(pages(8, 4));
        let demanding = reader(&ram, 5);
        assert_asked(&source, 5);
        assert_asked(&source, 9);
        ram.discard(page(5)).unwrap();
        ram.discard(page(9)).unwrap();
        assert!(is_zero(&received(&demanding)), "{backing:?}: whoever waited is given zeros");
        source.release();
        assert!(is_original(8, &content(&ram, 8)) && is_original(10, &content(&ram, 10)), "{backing:?}");
        assert!(is_zero(&content(&ram, 9)) && is_zero(&content(&ram, 5)), "{backing:?}");
        assert_eq!(engine.map().get(PageIndex(9)), PageState::Removed);
        assert_serving(&engine);
    }
}

#[test]
fn a_page_removed_before_its_fault_is_zero_whenever_it_is_removed_again() {
    for backing in BACKINGS {
        let ram = ram(backing, 4);
        let (engine, source) = scripted(&ram, well_behaved(), &on_demand());
        assert!(is_original(6, &content(&ram, 6)));
        for round in 0..3 {
            ram.discard(pages(6, 2)).unwrap();
            assert!(is_zero(&content(&ram, 6)), "{backing:?}, round {round}");
            write(&ram, 6, 0xee);
        }
        assert!(is_zero(&content(&ram, 7)), "{backing:?}: it was never there, and is zero now");
        assert_eq!((source.asked(PageIndex(6)), source.asked(PageIndex(7))), (1, 0));
        assert_eq!(engine.report().counts.removed, 6);
    }
}

#[test]
fn a_copy_that_runs_into_a_page_leaves_it_alone_and_goes_on() {
    for backing in [ANONYMOUS, HUGE] {
        let ram = ram(backing, 4);
        let (engine, source) = scripted(&ram, well_behaved(), &on_demand());
        source.hold();
        engine.prefetch(pages(0, 8));
        assert_asked(&source, 0);
        let placed = engine.shared.registered.copy(page(3), &[0x5a; 4096], false, Wake::Now);
        assert_eq!(placed, Placed { pages: 1, stop: None });
        source.release();
        until("the others are there", || engine.map().count(PageState::Present) == 8);
        assert_eq!(content(&ram, 3), [0x5a; 4096], "{backing:?}");
        assert_content(&ram, FULL, pages(0, 3));
        assert_content(&ram, FULL, pages(4, 4));
        assert_eq!(engine.report().counts.redundant, 1);
    }
}

#[test]
fn two_threads_on_one_page_are_served_by_one_answer() {
    for backing in BACKINGS {
        let ram = ram(backing, 4);
        let (engine, source) = scripted(&ram, well_behaved(), &on_demand());
        source.hold();
        let readers = [reader(&ram, 9), reader(&ram, 9), reader(&ram, 9)];
        until_faults(&engine, 3);
        source.release();
        assert!(readers.iter().all(|reader| is_original(9, &received(reader))), "{backing:?}");
        assert_eq!(source.asked(PageIndex(9)), 1);
    }
}

#[test]
fn whoever_waits_while_an_engine_stops_is_served_by_the_next() {
    for backing in BACKINGS {
        let ram = ram(backing, 4);
        let (engine, source) = scripted(&ram, well_behaved(), &on_demand());
        source.hold();
        engine.prefetch(pages(20, 4));
        let readers = [reader(&ram, 1), reader(&ram, 2)];
        assert_asked(&source, 1);
        assert_asked(&source, 2);
        let stopped = engine.stop();
        assert_eq!(stopped.memory.map().count(PageState::Requested), 0, "nothing stays claimed");
        let late = reader(&ram, 3);
        readers.iter().for_each(assert_waiting);
        assert_waiting(&late);
        let engine = FaultEngine::resume(stopped.memory, good_source(&ram), None, &on_demand()).unwrap();
        assert!([1, 2].iter().zip(&readers).all(|(index, reader)| is_original(*index, &received(reader))));
        assert!(is_original(3, &received(&late)));
        assert_content(&ram, FULL, pages(20, 4));
        assert_serving(&engine);
    }
}

/// A source whose thread dies of its first answer.
struct Deadly;

impl PageSource for Deadly {
    fn name(&self) -> &'static str {
        "deadly"
    }

    fn submit(&mut self, _: &[PageRequest]) -> Result<(), SourceError> {
        Ok(())
    }

    fn complete(&mut self, _: &mut dyn FnMut(PageReply<'_>)) -> Result<(), SourceError> {
        panic!("as it is meant to");
    }

    fn readiness(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        None
    }
}

fn assert_failed(engine: &FaultEngine, cause: &str) {
    until("the failure is told", || matches!(engine.status(), Status::Failed(_)));
    let Status::Failed(failure) = engine.status() else { unreachable!("it has failed") };
    assert!(failure.to_string().contains(cause), "{failure}");
}

#[test]
fn whoever_waits_when_the_handler_is_killed_is_served_by_the_next() {
    let ram = ram(ANONYMOUS, 4);
    let engine = FaultEngine::start(ram.clone(), Box::new(Deadly), None, &on_demand()).unwrap();
    let readers = [reader(&ram, 1), reader(&ram, 2)];
    assert_failed(&engine, "has panicked (whoever wants them waits: end the VM)");
    let stopped = engine.stop();
    assert!(stopped.source.is_none());
    readers.iter().for_each(assert_waiting);
    let _engine = FaultEngine::resume(stopped.memory, good_source(&ram), None, &on_demand()).unwrap();
    assert!([1, 2].iter().zip(&readers).all(|(index, reader)| is_original(*index, &received(reader))));
}

#[test]
fn what_a_dead_handler_has_placed_and_not_noted_is_not_placed_again() {
    for backing in BACKINGS {
        let ram = ram(backing, 4);
        let (engine, _) = scripted(&ram, well_behaved(), &on_demand());
        // As a thread leaves it that dies between placing a page and noting so.
        assert_eq!(engine.map().claim(page(5)), page(5));
        let registered = &engine.shared.registered;
        let placed = if backing == MEMFD {
            ram.write_cached(page(5), &[0x11; 4096]).unwrap();
            registered.map_cached(page(5), false, Wake::Now)
        } else {
            registered.copy(page(5), &[0x11; 4096], false, Wake::Now)
        };
        assert_eq!(placed, Placed { pages: 1, stop: None });
        let memory = engine.stop().memory;
        write(&ram, 5, 0xee);
        let engine = FaultEngine::resume(memory, good_source(&ram), None, &on_demand()).unwrap();
        engine.prefetch(pages(4, 4));
        until("the others are there", || engine.map().count(PageState::Present) == 4);
        assert_eq!(content(&ram, 5)[0], 0xee, "{backing:?}");
    }
}

#[test]
fn an_engine_that_is_dropped_leaves_those_who_wait_waiting() {
    let ram = ram(ANONYMOUS, 4);
    let (engine, source) = scripted(&ram, well_behaved(), &on_demand());
    source.hold();
    let waiting = reader(&ram, 1);
    assert_asked(&source, 1);
    drop(engine);
    assert_waiting(&waiting);
}

#[test]
fn removals_from_several_threads_hold_up_nobody_for_good() {
    for backing in BACKINGS {
        let ram = ram(backing, 4);
        let (engine, _) = scripted(&ram, well_behaved(), &on_demand());
        let removers: Vec<_> = (0..3_u64)
            .map(|lane| {
                let ram = ram.clone();
                thread::spawn(move || (0..40).for_each(|n| ram.discard(page(lane + n * 4)).unwrap()))
            })
            .collect();
        for index in (3..160).step_by(4) {
            assert!(is_original(index, &content(&ram, index)), "{backing:?}");
        }
        removers.into_iter().for_each(|remover| remover.join().unwrap());
        assert!((0..160).filter(|index| index % 4 != 3).all(|index| is_zero(&content(&ram, index))));
        assert_serving(&engine);
    }
}
