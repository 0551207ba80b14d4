use super::*;

#[test]
fn a_missing_page_is_copied_in_and_its_reader_goes_on() {
    for backing in [ANONYMOUS, MEMFD, Backing::MemfdPrivate] {
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
