//! Handlers that go, and those that take over.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use tests::host::HugePages;

use super::*;

/// A handler that is a process of its own; it is killed at the end.
struct Process(Child);

impl Process {
    fn start(stage: &Stage, name: &str, mode: &str) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_uffd-handler"));
        command.arg(stage.path(name)).arg(stage.path("memory")).arg(mode).stderr(Stdio::null());
        let process = Self(command.spawn().unwrap());
        let deadline = Instant::now() + WAIT;
        while !stage.path(name).exists() {
            assert!(Instant::now() < deadline, "it does not listen");
            thread::sleep(Duration::from_millis(5));
        }
        process
    }

    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_fault_that_a_dying_handler_had_read_is_told_to_the_next_one() {
    for backing in [ANONYMOUS, THP] {
        let stage = Stage::new(backing);
        let dying = stage.handler("first", Mode::DieAfter(1));
        let mut handed = stage.connect("first").unwrap();
        assert_eq!(stage.read(5)[0], content(5));
        let touch = stage.touch(6);
        assert_eq!(dying.join().unwrap().unwrap().pages, 1);
        let cause = stage.told();
        assert!(cause.contains("has closed its socket; the guest waits"), "{cause}");
        touch.assert_waits();
        // This one's fault nobody has read.
        let unread = stage.touch(1400);
        unread.assert_waits();
        let next = stage.handler("second", Mode::Good);
        handed.replace(&stage.path("second")).unwrap();
        assert_eq!((touch.value(), unread.value()), (content(6), content(1400)));
        assert_eq!(stage.read(7)[0], content(7));
        stage.assert_nothing_told();
        drop(handed);
        assert_eq!(next.join().unwrap().unwrap(), Served { pages: 3, ..Served::default() });
    }
}

#[test]
fn a_process_that_is_killed_is_a_guest_that_waits() {
    let stage = Stage::new(ANONYMOUS);
    let mut first = Process::start(&stage, "first", "good");
    let mut handed = stage.connect("first").unwrap();
    assert_eq!(stage.read(1)[0], content(1));
    first.kill();
    stage.told();
    let touch = stage.touch(2);
    touch.assert_waits();
    // Who cannot be had changes nothing.
    assert!(matches!(handed.replace(&stage.path("none")), Err(HandOverError::Connect(_))));
    touch.assert_waits();
    let mut second = Process::start(&stage, "second", "die-after=1");
    handed.replace(&stage.path("second")).unwrap();
    assert_eq!(touch.value(), content(2));
    let touch = stage.touch(3);
    stage.told();
    assert!(second.0.wait().unwrap().success());
    touch.assert_waits();
    let _third = Process::start(&stage, "third", "good");
    handed.replace(&stage.path("third")).unwrap();
    assert_eq!(touch.value(), content(3));
}

#[test]
fn the_next_handler_need_not_know_what_was_given_back() {
    let stage = Stage::new(ANONYMOUS);
    let first = stage.handler("first", Mode::DieAfter(3));
    let mut handed = stage.connect("first").unwrap();
    assert_eq!([40, 41, 50].map(|page| stage.read(page)[0]), [40, 41, 50].map(content));
    stage.ram.discard(pages(40, 70)).unwrap();
    // Touched again, and so the guest's own.
    let touch = stage.touch(45);
    assert_eq!(first.join().unwrap().unwrap(), Served { pages: 3, zeros: 0, removals: 1 });
    stage.told();
    touch.assert_waits();
    // Nobody reads this removal, until another handler takes over.
    let ram = stage.ram.clone();
    let remover = thread::spawn(move || ram.discard(pages(1200, 1210)));
    thread::sleep(MOMENT);
    assert!(!remover.is_finished());

    let next = stage.handler("second", Mode::Good);
    handed.replace(&stage.path("second")).unwrap();
    remover.join().unwrap().unwrap();
    assert_eq!(touch.value(), 0);
    for page in (40..70).chain(1200..1210) {
        assert_eq!(stage.read(page), [0; PAGE_BYTES], "{page}");
    }
    assert_eq!([39, 70, 1199, 1210].map(|page| stage.read(page)[0]), [39, 70, 1199, 1210].map(content));
    // And from here on it is told itself.
    stage.ram.discard(pages(39, 40)).unwrap();
    assert_eq!(stage.read(39), [0; PAGE_BYTES]);
    drop(handed);
    assert_eq!(next.join().unwrap().unwrap(), Served { pages: 4, zeros: 1, removals: 1 });
}

#[test]
fn a_page_that_was_written_after_it_was_given_back_stays() {
    let stage = Stage::new(ANONYMOUS);
    let first = stage.handler("first", Mode::DieAfter(1));
    let mut handed = stage.connect("first").unwrap();
    stage.ram.discard(pages(8, 12)).unwrap();
    assert_eq!(stage.read(9)[0], 0);
    vm_memory::Bytes::write_obj(&stage.ram, 0xee_u8, GuestAddress(9 * PAGE_BYTES as u64)).unwrap();
    assert_eq!(stage.read(100)[0], content(100));
    let touch = stage.touch(101);
    first.join().unwrap().unwrap();
    let _next = stage.handler("second", Mode::Good);
    handed.replace(&stage.path("second")).unwrap();
    assert_eq!(touch.value(), content(101));
    assert_eq!([8, 9, 10, 11].map(|page| stage.read(page)[0]), [0, 0xee, 0, 0]);
}

/// A guest that gives back and takes without a pause, under handlers that each give a part and go.
#[test]
fn no_byte_is_wrong_however_often_handlers_go() {
    let stage = Stage::new(ANONYMOUS);
    let lives = 6;
    let pages_each = 150;
    stage.handler("0", Mode::DieAfter(pages_each));
    let mut handed = stage.connect("0").unwrap();
    let has_read = Arc::new(AtomicBool::new(false));
    let (ram, is_over) = (stage.ram.clone(), Arc::clone(&has_read));
    let giving_back = thread::spawn(move || {
        while !is_over.load(Ordering::Relaxed) {
            for page in 1024..PAGES {
                ram.discard(pages(page, page + 1)).unwrap();
                assert_eq!(read(&ram, page), [0; PAGE_BYTES], "{page}");
            }
        }
    });
    let ram = stage.ram.clone();
    let reading = thread::spawn(move || {
        (0..1024).for_each(|page| assert_eq!(read(&ram, page), [content(page); PAGE_BYTES], "{page}"));
        has_read.store(true, Ordering::Relaxed);
    });
    for life in 1..=lives {
        stage.told();
        let name = life.to_string();
        stage.handler(&name, if life == lives { Mode::Good } else { Mode::DieAfter(pages_each) });
        handed.replace(&stage.path(&name)).unwrap();
    }
    reading.join().unwrap();
    giving_back.join().unwrap();
    stage.assert_nothing_told();
}

#[test]
fn huge_pages_that_were_given_back_are_zero_under_the_next_handler() {
    let Some(_pool) = HugePages::reserve(3) else {
        println!("this machine has no huge pages to reserve: memory of base pages is tested alone");
        return;
    };
    let stage = Stage::new(Backing::Hugetlb2M);
    let first = stage.handler("first", Mode::DieAfter(1));
    let mut handed = stage.connect("first").unwrap();
    assert_eq!(stage.read(1)[0], content(1));
    stage.ram.discard(pages(0, 512)).unwrap();
    let touch = stage.touch(513);
    first.join().unwrap().unwrap();
    let cause = stage.told();
    assert!(cause.contains("the guest waits"), "{cause}");
    touch.assert_waits();
    let next = stage.handler("second", Mode::Good);
    handed.replace(&stage.path("second")).unwrap();
    assert_eq!(touch.value(), content(513));
    assert_eq!(stage.read(1), [0; PAGE_BYTES]);
    drop(handed);
    assert_eq!(next.join().unwrap().unwrap(), Served { pages: 1, ..Served::default() });
}

#[test]
fn a_handler_that_unregisters_is_told_of_and_has_no_next_one() {
    let stage = Stage::new(ANONYMOUS);
    let first = stage.handler("first", Mode::UnregisterAfter(1));
    let mut handed = stage.connect("first").unwrap();
    assert_eq!(stage.read(0)[0], content(0));
    // Not the guest's memory any more, but the kernel's zeros: this is what has to be told.
    assert_eq!(stage.touch(1).value(), 0);
    first.join().unwrap().unwrap();
    let cause = stage.told();
    assert!(cause.contains("had unregistered guest memory"), "{cause}");
    let _next = stage.handler("second", Mode::Good);
    let error = handed.replace(&stage.path("second")).unwrap_err();
    assert!(matches!(error, HandOverError::Unregistered), "{error}");
}
