//! `unsafe` is here for the signal that a poisoned page raises, which ends the process that touches it.
#![expect(unsafe_code, reason = "a signal handler, in a process of its own")]

use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use super::machine::{HugePages, kernel_has};
use super::*;

/// Which backing the child is to poison; a process without it is the parent.
const CHILD: &str = "FAULTLESS_TEST_POISON";
const LOST: u64 = 7;

/// Added to the number of the page where the kernel says "no such address" rather than "memory is broken".
const AS_BAD_ADDRESS: i32 = 100;

/// Ends the process with the number of the page, and the way that the kernel tells of it.
extern "C" fn tell_page(_signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel hands a handler with SA_SIGINFO a structure that is valid for the call.
    let info = unsafe { &*info };
    // SAFETY: of SIGBUS, the address is what is filled in.
    let address = unsafe { info.si_addr() }.addr() as u64;
    let page = i32::try_from(PageIndex::at_offset(address).0 % 64).unwrap_or(0);
    let status = match info.si_code {
        libc::BUS_MCEERR_AR => page,
        libc::BUS_ADRERR => AS_BAD_ADDRESS + page,
        _ => 0,
    };
    // SAFETY: `_exit` may be called in a handler, and nothing of the process is needed any more.
    unsafe { libc::_exit(status) }
}

/// What a process that touches the page ends with. A kernel without CONFIG_MEMORY_FAILURE raises the same signal, and
/// calls it a bad address.
fn expected_status() -> i32 {
    let tells_broken_memory = std::path::Path::new("/proc/sys/vm/memory_failure_early_kill").exists();
    let lost = i32::try_from(LOST).unwrap();
    if tells_broken_memory { lost } else { AS_BAD_ADDRESS + lost }
}

fn handle_sigbus() {
    // SAFETY: an all-zero `struct sigaction` is one without flags or blocked signals.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = tell_page;
    action.sa_sigaction = handler as usize;
    action.sa_flags = libc::SA_SIGINFO;
    // SAFETY: the handler has the signature that SA_SIGINFO asks for, and calls nothing but `_exit`.
    assert_eq!(unsafe { libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()) }, 0);
}

/// In the child: a thread waits for the page, which is then given up.
fn lose_a_page(backing: Backing) {
    handle_sigbus();
    let memory = registered(backing, 2, MISSING);
    let waiting = touch(&memory, LOST, None);
    next_fault(&memory);
    let lost = PageIndex(LOST).containing(backing.page_size());
    assert_eq!(memory.poison(lost, Wake::Now), done(lost.count));
    panic!("the page was read: {:?}", waiting.recv_timeout(BUDGET));
}

fn touching_it_raises_a_memory_error(test: &str, backings: &[(&str, Backing)]) {
    if let Ok(name) = std::env::var(CHILD) {
        return lose_a_page(backings.iter().find(|(other, _)| *other == name).unwrap().1);
    }
    if !kernel_has(Feature::POISON) {
        let memory = registered(ANONYMOUS, 2, MISSING);
        return assert_eq!(memory.poison(page(LOST), Wake::Now), stopped(0, Stop::Unsupported));
    }
    for (name, _) in backings {
        let test = format!("uffd::tests::poison::{test}");
        let mut child = Command::new(std::env::current_exe().unwrap());
        let output = child.args(["--exact", &test, "--nocapture"]).env(CHILD, name).output().unwrap();
        let signal = output.status.signal();
        assert_eq!(output.status.code(), Some(expected_status()), "{name}: {output:?}, {signal:?}");
    }
}

#[test]
fn whoever_touches_a_lost_page_gets_a_memory_error() {
    let backings = [("anonymous", ANONYMOUS), ("memfd", MEMFD), ("private", Backing::MemfdPrivate)];
    touching_it_raises_a_memory_error("whoever_touches_a_lost_page_gets_a_memory_error", &backings);
}

#[test]
fn a_lost_huge_page_is_a_memory_error_too() {
    // The child is in its parent's turn.
    let _pool = match std::env::var(CHILD) {
        Ok(_) => None,
        Err(_) => match HugePages::take(2) {
            None => return,
            pool => pool,
        },
    };
    touching_it_raises_a_memory_error(
        "a_lost_huge_page_is_a_memory_error_too",
        &[("hugetlb", Backing::Hugetlb2M)],
    );
}

#[test]
fn a_page_that_is_there_is_not_poisoned_and_a_poisoned_one_can_be_mended_by_a_copy() {
    let memory = registered(ANONYMOUS, 2, MISSING);
    assert_eq!(memory.copy(page(1), &bytes(1, 1), false, Wake::Now), done(1));
    if !kernel_has(Feature::POISON) {
        return assert_eq!(memory.poison(page(1), Wake::Now), stopped(0, Stop::Unsupported));
    }
    assert_eq!(memory.poison(page(1), Wake::Now), stopped(0, Stop::Exists));
    assert_eq!(memory.poison(pages(2, 3), Wake::Now), done(3));
    assert_eq!(memory.zero(page(2), Wake::Now), stopped(0, Stop::Exists));
    assert_eq!(memory.poison(page(2), Wake::Now), stopped(0, Stop::Exists));
    assert_eq!(memory.copy(page(2), &bytes(2, 1), false, Wake::Now), done(1));
    // Thrown away, it is a missing page again.
    let ram = memory.ram().clone();
    let remover = thread::spawn(move || ram.discard(page(3)).unwrap());
    assert_eq!(next_event(&memory), Event::Removed(page(3)));
    remover.join().unwrap();
    assert_eq!(memory.zero(page(3), Wake::Now), done(1));
    assert_eq!([1, 2, 3].map(|index| content(&memory, index)), [1, 2, 0]);
}
