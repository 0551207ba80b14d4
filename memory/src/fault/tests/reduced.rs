//! What rounds under stress have found, each made as small as it goes.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use super::harness::*;
use crate::fault::{AroundPolicy, FaultEngine, Limits, Options};
use crate::page::PageIndex;
use crate::page::PageRange;
use crate::ram::{Backing, DiscardWatcher, GuestRam, RamRange, Sharing};
use crate::source::pattern::{PatternReader, fill_range};
use crate::source::scripted::{Script, Trouble};
use crate::source::{Content, InPlaceSource, PageReader, Reading, SourceError};
use vm_memory::GuestAddress;

/// Discards on a thread of its own; says when it is done.
fn discard(ram: &GuestRam, range: PageRange) -> Receiver<()> {
    let (sender, receiver) = channel();
    let ram = ram.clone();
    thread::spawn(move || {
        ram.discard(range).unwrap();
        // The test may have ended by then.
        let _ = sender.send(());
    });
    receiver
}

#[test]
fn a_page_whose_prefetch_was_lost_can_still_be_had() {
    let (engine, handle) = scripted(
        &ram(ANONYMOUS, 8),
        Script { pattern: FULL, ..Script::trouble(PageIndex(5), Trouble::LostTimes(1)) },
        &on_demand(),
    );
    engine.prefetch(pages(0, 8));
    until("the page is lost", || handle.answers() >= 3);
    thread::sleep(SILENCE);
    let bytes = reader(engine.ram(), 5).recv_timeout(patience()).expect("nobody waits for ever");
    assert!(is_original(5, &bytes));
}

/// Keeps a discard between its announcement and its deed until told to go on.
struct Pause {
    announced: Mutex<Sender<()>>,
    go_on: Mutex<Receiver<()>>,
}

impl DiscardWatcher for Pause {
    fn before_discard(&self, _: PageRange) {
        self.announced.lock().unwrap().send(()).unwrap();
        self.go_on.lock().unwrap().recv().unwrap();
    }
}

#[test]
fn who_waits_for_a_page_that_is_thrown_away_while_its_answer_is_placed_goes_on() {
    let (engine, handle) = scripted(&ram(ANONYMOUS, 8), well_behaved(), &on_demand());
    let ((announced, was_announced), (go_on, told_to_go_on)) = (channel(), channel());
    let pause: Arc<dyn DiscardWatcher> =
        Arc::new(Pause { announced: Mutex::new(announced), go_on: Mutex::new(told_to_go_on) });
    engine.ram().watch_discards(Arc::downgrade(&pause)).unwrap();
    handle.hold();
    let waiting = reader(engine.ram(), 5);
    assert!(handle.wait_until_asked(PageIndex(5), 1, patience()));
    let discarded = discard(engine.ram(), page(5));
    was_announced.recv_timeout(patience()).unwrap();
    handle.release();
    until("the answer is taken", || engine.report().counts.demanded == 1);
    go_on.send(()).unwrap();
    discarded.recv_timeout(patience()).unwrap();
    let bytes = waiting.recv_timeout(patience()).expect("nobody waits for ever");
    assert!(is_zero(&bytes));
}

/// The second of two threads that miss a removed page is looked at late, since the engine has no room meanwhile: what
/// the first has written by then is not to be overwritten by zeros.
#[test]
fn zeros_for_a_late_fault_do_not_overwrite_what_was_written_since() {
    for backing in [ANONYMOUS, MEMFD] {
        let limits = Limits { demand_pages_max: 1, ..Limits::default() };
        let script = Script::trouble(PageIndex(11), Trouble::LostTimes(4));
        let (engine, handle) = scripted(
            &ram(backing, 8),
            Script { pattern: FULL, ..script },
            &Options { limits, ..on_demand() },
        );
        engine.ram().discard(page(5)).unwrap();
        handle.hold();
        let first = reader(engine.ram(), 9);
        assert!(handle.wait_until_asked(PageIndex(9), 1, patience()));
        // These faults wait in the kernel, in this order.
        let written = writer(engine.ram(), 5, 0x42);
        thread::sleep(SILENCE);
        let between = reader(engine.ram(), 11);
        thread::sleep(SILENCE);
        let late = reader(engine.ram(), 5);
        thread::sleep(SILENCE);
        handle.release();
        for waiting in [first, between, written, late] {
            waiting.recv_timeout(patience()).unwrap();
        }
        assert_eq!(content(engine.ram(), 5)[0], 0x42, "{backing:?}");
        assert_serving(&engine);
    }
}

#[test]
fn pages_that_a_clone_has_thrown_away_are_zero_when_its_memory_is_released() {
    let template = ram(MEMFD, 2);
    let mut bytes = vec![0; 2 << 20];
    fill_range(FULL, template.pages(), &mut bytes);
    template.write_cached(template.pages(), &bytes).unwrap();
    let memfd = || template.memfd().unwrap().try_clone_to_owned().unwrap();
    let ranges = [RamRange { gpa: GuestAddress(0), size_bytes: 2 << 20 }];
    let clone = GuestRam::over_memfd(&ranges, memfd(), Sharing::Private).unwrap();
    let engine =
        FaultEngine::start(clone, Box::new(InPlaceSource::new(memfd())), None, &on_demand()).unwrap();
    assert_content(engine.ram(), FULL, engine.ram().pages());
    engine.ram().discard(page(5)).unwrap();
    let released = engine.stop().memory.release().map_err(drop).unwrap();
    assert!(is_zero(&content(&released, 5)), "what was thrown away does not come back");
}

/// Takes its time.
struct Slow(PatternReader, Duration);

impl PageReader for Slow {
    fn name(&self) -> &'static str {
        "slow"
    }

    fn read(&mut self, range: PageRange, into: &mut [u8]) -> Result<Content, SourceError> {
        thread::sleep(self.1);
        self.0.read(range, into)
    }
}

/// 32 chunks at 100 ms each are expected to be wanted; a guest walks into another one meanwhile, and the engine is
/// stopped.
#[test]
fn what_is_expected_to_be_wanted_holds_up_neither_a_guest_nor_a_stop() {
    let ram = ram(HUGE, 80);
    let reader = PatternReader { pattern: FULL, pages: ram.pages().count };
    let around = AroundPolicy::Adaptive { pages_min: 512, pages_max: 512 };
    let options = Options { around, ..Options::default() };
    let slow = Slow(reader, Duration::from_millis(100));
    let source = Box::new(Reading::new(reader));
    let engine = FaultEngine::start(ram, source, Some(Box::new(slow)), &options).unwrap();
    engine.prefetch(pages(4096, 32 * 512));
    thread::sleep(SILENCE);
    let start = Instant::now();
    let walker = super::harness::reader(engine.ram(), 512);
    walker.recv_timeout(Duration::from_secs(10)).unwrap();
    let walked = start.elapsed();
    let start = Instant::now();
    drop(engine.stop());
    let stopped = start.elapsed();
    assert!(walked < Duration::from_secs(1) && stopped < Duration::from_secs(1), "{walked:?}, {stopped:?}");
}

/// Four threads throw pages away without a pause: what others wait for comes all the same.
#[test]
fn pages_come_while_others_are_thrown_away_without_a_pause() {
    let (engine, _handle) = scripted(&ram(ANONYMOUS, 8), well_behaved(), &on_demand());
    let ends = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let discarders: Vec<_> = (0..4)
        .map(|number| {
            let (ram, ends) = (engine.ram().clone(), Arc::clone(&ends));
            thread::spawn(move || {
                let deadline = Instant::now() + 5 * BUDGET;
                while !ends.load(std::sync::atomic::Ordering::Relaxed) && Instant::now() < deadline {
                    ram.discard(page(1024 + number)).unwrap();
                }
            })
        })
        .collect();
    let mut worst = Duration::ZERO;
    for index in 0..100 {
        let start = Instant::now();
        let bytes = content(engine.ram(), index);
        worst = worst.max(start.elapsed());
        assert!(is_original(index, &bytes));
    }
    ends.store(true, std::sync::atomic::Ordering::Relaxed);
    discarders.into_iter().for_each(|discarder| discarder.join().unwrap());
    println!("the longest wait was {worst:?}: {:?}", engine.report().counts);
    assert!(worst < Duration::from_millis(500), "{worst:?}");
    assert_serving(&engine);
}

/// A huge page comes whole, in whatever pieces its source reads.
#[test]
fn huge_pages_are_served_by_a_source_that_reads_in_pieces() {
    let Some(_pool) = crate::uffd::tests::machine::HugePages::take(2) else { return };
    let limits = Limits { answer_ticks_max: 300, ..Limits::default() };
    let ram = ram(Backing::Hugetlb2M, 4);
    let source = Reading::new(PatternReader { pattern: FULL, pages: ram.pages().count });
    let options = Options { limits, ..on_demand() };
    let engine = FaultEngine::start(ram, Box::new(source), None, &options).unwrap();
    let bytes = reader(engine.ram(), 5).recv_timeout(patience()).expect("nobody waits for ever");
    assert!(is_original(5, &bytes));
}
