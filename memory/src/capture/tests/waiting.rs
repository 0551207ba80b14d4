//! Who waits for whom.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;

use vm_memory::{Bytes, GuestAddress};

use super::guest::*;
use crate::capture::{BUFFERS_MAX, Capture, CaptureError};
use crate::image::WriteOptions;
use crate::source::pattern::fill_range;

/// How long is waited for what must not happen.
const SILENCE: Duration = Duration::from_millis(40);

#[test]
fn a_discard_waits_until_what_it_throws_away_was_read() {
    for (there, end) in [(true, "saved"), (false, "saved"), (true, "dropped")] {
        let ram = ram(ANONYMOUS);
        let engine = served(&ram, false);
        if there {
            touch(&ram, ram.pages());
        }
        let mut memory = vec![0; usize::try_from(ram.size_bytes()).unwrap()];
        fill_range(MIXED, ram.pages(), &mut memory);
        let capture = Capture::begin(Arc::clone(&engine)).unwrap();
        let (sender, receiver) = channel();
        let discards = ram.clone();
        let discarder = std::thread::spawn(move || {
            discards.discard(pages(1000, 600)).unwrap();
            sender.send(()).unwrap();
        });
        assert!(receiver.recv_timeout(SILENCE).is_err(), "it waits");
        if end == "saved" {
            check_saved(capture, Some(&mut reader_of(&ram)), &memory);
        } else {
            drop(capture);
        }
        receiver.recv_timeout(Duration::from_secs(10)).unwrap();
        discarder.join().unwrap();
        let mut bytes = vec![1; 4096];
        ram.read_pages(pages(1300, 1), &mut bytes).unwrap();
        assert!(bytes.iter().all(|byte| *byte == 0));
        assert_eq!(protected(&ram), 0);
    }
}

#[test]
fn what_is_thrown_away_before_it_came_is_told_where_there_is_no_reader() {
    let ram = ram(ANONYMOUS);
    let engine = served(&ram, false);
    let capture = Capture::begin(Arc::clone(&engine)).unwrap();
    let discards = ram.clone();
    let discarder = std::thread::spawn(move || discards.discard(pages(0, 8)).unwrap());
    until("it is announced", || engine.map().count(crate::map::PageState::Removed) == 8);
    let file = tempfile::tempfile().unwrap();
    let error = capture.save(&file, None, &WriteOptions::default()).unwrap_err();
    assert!(matches!(error, CaptureError::Discarded { range } if range == pages(0, 8)), "{error}");
    discarder.join().unwrap();
}

#[test]
fn one_capture_follows_the_other() {
    let ram = ram(THP);
    let engine = served(&ram, true);
    let guest = Guest::run(&ram, MIXED, 2, true, seed());
    for round in 0..4 {
        let armed = (round % 2 == 0).then(|| Capture::prepare(Arc::clone(&engine)).unwrap());
        let (capture, memory) = guest.standing(|| match armed {
            Some(armed) => armed.begin().unwrap(),
            None => Capture::begin(Arc::clone(&engine)).unwrap(),
        });
        check_saved(capture, Some(&mut reader_of(&ram)), &memory);
        guest.goes_on();
    }
    guest.end();
}

#[test]
fn a_slow_file_holds_up_no_more_than_the_buffers() {
    let ram = crate::GuestRam::new(
        &[crate::RamRange { gpa: vm_memory::GuestAddress(0), size_bytes: 64 << 20 }],
        MEMFD,
    );
    let ram = ram.unwrap();
    let engine = served(&ram, false);
    touch(&ram, ram.pages());
    let guest = Guest::run(&ram, MIXED, 4, false, seed());
    let (capture, memory) = guest.standing(|| Capture::begin(Arc::clone(&engine)).unwrap());
    let desk = Arc::clone(&capture.0.desk);
    let is_open = AtomicBool::new(false);
    let file = Scripted::new(|_| {
        while !is_open.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    });
    let read =
        || desk.chunks().filter(|chunk| desk.state(*chunk) == crate::capture::desk::State::Read).count();
    let contents = std::thread::scope(|scope| {
        let saving = scope.spawn(|| capture.save_to(&file, None, &WriteOptions::default()).unwrap());
        // The guest writes everywhere, so that all buffers are used, those that are kept for it, too.
        until("all buffers are full", || read() == BUFFERS_MAX);
        std::thread::sleep(SILENCE);
        assert_eq!(read(), BUFFERS_MAX);
        is_open.store(true, Ordering::Relaxed);
        saving.join().unwrap()
    });
    check_file(&file.file, &contents, &memory);
    guest.goes_on();
    guest.end();
}

/// Whoever waits for a chunk that is being written waits for no file.
#[test]
fn a_chunk_that_is_wanted_while_it_is_written_is_let_go_before_that_ends() {
    for backing in [ANONYMOUS, THP] {
        let ram = ram(backing);
        let engine = served(&ram, false);
        touch(&ram, ram.pages());
        let mut memory = vec![0; usize::try_from(ram.size_bytes()).unwrap()];
        fill_range(MIXED, ram.pages(), &mut memory);
        let capture = Capture::begin(Arc::clone(&engine)).unwrap();
        let file = Scripted::new(|write| {
            if write == 1 {
                // Page by page, so that some of it was read before and some was not.
                let (sender, receiver) = channel();
                let ram = ram.clone();
                std::thread::spawn(move || {
                    for page in 0..512 {
                        ram.write_slice(&[0xcc; 4096], GuestAddress(page * 4096)).unwrap();
                    }
                    sender.send(()).unwrap();
                });
                receiver.recv_timeout(Duration::from_secs(10)).expect("it is let go");
            }
            Ok(())
        });
        let options = WriteOptions { threads: NonZeroUsize::new(1), ..WriteOptions::default() };
        let contents = capture.save_to(&file, None, &options).unwrap();
        check_file(&file.file, &contents, &memory);
        assert_eq!(protected(&ram), 0);
    }
}

#[test]
fn chunks_that_somebody_waits_for_have_buffers_and_the_others_come_in_order() {
    use crate::capture::desk::{Desk, State};
    use crate::fault::Verdict;
    let desk = Desk::new(pages(0, 512 * 40));
    desk.chunks().for_each(|chunk| desk.arm(chunk));
    assert_eq!((desk.write(3), desk.state(3)), (Verdict::Allow, State::Open), "before the moment");
    desk.arm(3);
    desk.begin();
    assert!(desk.wanted().is_none(), "nobody waits");
    assert_eq!(
        (desk.write(30), desk.write(30), desk.write(20)),
        (Verdict::Wait, Verdict::Wait, Verdict::Wait)
    );
    let mut taken = Vec::new();
    let mut take = || {
        let (chunk, buffer) = desk.wanted()?;
        taken.push(buffer);
        desk.read(chunk).then_some(chunk)
    };
    assert_eq!([take(), take(), take()], [Some(30), Some(20), None]);
    assert_eq!((desk.write(30), desk.write(20)), (Verdict::Allow, Verdict::Allow), "they were read");
    assert_eq!([desk.cold(), desk.cold()], [Some(0), Some(1)]);
    assert_eq!(desk.write(1), Verdict::Wait, "it is being written, and not read yet");
    assert_eq!(take(), Some(1), "so it is read for whoever waits");
    assert!(!desk.read(1), "and what else was read of it does not count");
    for chunk in 2..40 {
        desk.write(chunk);
    }
    let with_buffers = std::iter::from_fn(&mut take).count();
    assert_eq!((taken.len(), with_buffers), (BUFFERS_MAX, BUFFERS_MAX - 3), "as many as there are buffers");
    desk.give_back(taken.pop().unwrap());
    assert!(desk.wanted().is_some());
    assert_eq!(desk.cold(), Some(15), "the first that was not read");
    desk.end();
    assert_eq!(desk.write(39), Verdict::Allow);
    desk.stop();
    assert!(desk.wanted().is_none() && desk.wait_for_wanted().is_none() && desk.cold().is_none());
}
