//! `unsafe` is here for a thread that gives its permissions up.
#![expect(unsafe_code, reason = "the system call that changes one thread's user")]

use super::machine::{Setting, Turn};
use super::*;

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
fn unregistering_in_parts_wakes_those_in_the_last_one() {
    // More than is let go at once.
    let registered = registered(ANONYMOUS, 36, MISSING_WP);
    let last = registered.ram().pages().count - 1;
    assert_eq!(registered.copy(page(last), &bytes(5, 1), true, Wake::Now), done(1));
    let (missing, protected) = (touch(&registered, last - 1, None), touch(&registered, last, Some(6)));
    next_fault(&registered);
    next_fault(&registered);
    registered.unregister().unwrap();
    assert_eq!(missing.recv_timeout(BUDGET).unwrap(), 0);
    assert_eq!(protected.recv_timeout(BUDGET).unwrap(), 6);
    registered.unregister().unwrap();
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

#[test]
fn memory_whose_registration_ended_is_told_by_every_verb() {
    let memory = registered(ANONYMOUS, 2, MISSING_WP);
    memory.unregister().unwrap();
    let not_registered = stopped(0, Stop::NotRegistered);
    assert_eq!(memory.copy(page(0), &bytes(1, 1), false, Wake::Now), not_registered);
    assert_eq!(memory.zero(page(0), Wake::Now), not_registered);
    if machine::kernel_has(Feature::POISON) {
        assert_eq!(memory.poison(page(0), Wake::Now), not_registered);
    }
    assert_eq!(memory.protect(page(0)), not_registered);
    let again = Registered::new(open(Features::NONE).unwrap(), memory.ram().clone(), MISSING);
    assert!(again.is_ok(), "and another can have it: {again:?}");
}

#[test]
fn no_pages_at_all_are_refused_as_a_value() {
    let memory = registered(ANONYMOUS, 2, MISSING_WP);
    let refused = stopped(0, Stop::Unsupported);
    assert_eq!(memory.copy(pages(3, 0), &[], false, Wake::Now), refused);
    assert_eq!(memory.zero(pages(3, 0), Wake::Now), refused);
    assert_eq!(memory.protect(pages(3, 0)), refused);
}

#[test]
#[should_panic(expected = "not all in guest memory")]
fn no_range_whose_end_does_not_fit_reaches_the_kernel() {
    let registered = registered(ANONYMOUS, 2, MISSING);
    let _ = registered.poison(pages(u64::MAX, 1), Wake::Now);
}

#[test]
fn what_is_missing_of_permission_is_told_with_both_ways_to_get_it() {
    let turn = Turn::take();
    // Refused where the test is not root's; then it is 0 already, or the assertion says so.
    let _setting = Setting::set(&turn, "/proc/sys/vm/unprivileged_userfaultfd", "0");
    let answer = thread::spawn(|| {
        let nobody: libc::c_long = 65_534;
        // SAFETY: the raw call changes who this thread is and no other, and the thread ends after it.
        unsafe { libc::syscall(libc::SYS_setresuid, nobody, nobody, nobody) };
        open(Features::NONE)
    });
    let error = answer.join().unwrap().unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, OpenError::NotPermitted { .. }), "{text}");
    assert!(text.contains("setfacl -m u:$USER:rw /dev/userfaultfd"), "{text}");
    assert!(text.contains("sysctl vm.unprivileged_userfaultfd=1"), "{text}");
}
