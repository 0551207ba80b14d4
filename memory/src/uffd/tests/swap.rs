//! `unsafe` is here to page memory out on purpose, and to see that it is out.
#![expect(unsafe_code, reason = "madvise and mincore on memory that a test owns")]

use std::fs;
use std::process::Command;

use super::machine::Turn;
use super::*;

/// A compressed swap device of 64 MiB, for as long as one test has its turn.
pub(crate) struct Swap {
    _turn: Turn,
}

const DEVICE: &str = "/dev/zram0";
/// 64 MiB and a page, so that it is known again.
const SIZE_BYTES: &str = "67112960";

fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let output =
        Command::new(program).args(arguments).output().map_err(|error| format!("{program}: {error}"))?;
    output.status.success().then_some(()).ok_or_else(|| format!("{program}: {output:?}"))
}

impl Swap {
    /// `None`, and why on the output, where the machine gives none.
    pub(crate) fn take() -> Option<Self> {
        let turn = Turn::take();
        stay_on_one_processor();
        // Built in, or loaded already, where this fails.
        let _ = run("modprobe", &["zram"]);
        let size = || fs::read_to_string("/sys/block/zram0/disksize").unwrap_or_default();
        if size().trim() == SIZE_BYTES {
            // A test that was killed has left it behind: nobody else has one of exactly this size.
            let _ = run("swapoff", &[DEVICE]);
            let _ = fs::write("/sys/block/zram0/reset", "1");
        }
        let size = size();
        if size.trim() != "0" {
            println!("NOT TESTED: the machine has no zram device that is free (size: {size:?})");
            return None;
        }
        let sized = fs::write("/sys/block/zram0/disksize", SIZE_BYTES).map_err(|error| error.to_string());
        let swap = Self { _turn: turn };
        let on = sized.and_then(|()| run("mkswap", &[DEVICE])).and_then(|()| run("swapon", &[DEVICE]));
        match on {
            Ok(()) => Some(swap),
            Err(error) => {
                println!("NOT TESTED: no swap can be had: {error}");
                None
            }
        }
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        let off = run("swapoff", &[DEVICE]);
        let reset = fs::write("/sys/block/zram0/reset", "1");
        if reset.is_err() {
            eprintln!("the zram device is left behind: {off:?}, {reset:?}");
        }
    }
}

/// A fresh page waits in a list of the processor that made it, and `madvise` takes pages off its own processor's only.
/// Threads that are made later stay here, too.
fn stay_on_one_processor() {
    // SAFETY: the set is plain bits, all of which may be zero.
    let mut processors: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the call has no preconditions.
    let this = usize::try_from(unsafe { libc::sched_getcpu() }).unwrap();
    // SAFETY: the kernel numbers its processors below the set's size on any machine that tests run on.
    unsafe { libc::CPU_SET(this, &mut processors) };
    // SAFETY: the set is one structure of that size, and 0 is this thread.
    assert_eq!(unsafe { libc::sched_setaffinity(0, size_of_val(&processors), &raw const processors) }, 0);
}

fn pointer(ram: &GuestRam, index: u64) -> *mut libc::c_void {
    let address = ram.base_address() + PageIndex(index).offset();
    std::ptr::without_provenance_mut(usize::try_from(address).unwrap())
}

fn is_resident(ram: &GuestRam, index: u64) -> bool {
    let mut resident = 0_u8;
    // SAFETY: the page belongs to the RAM, and the kernel writes one byte for it.
    assert_eq!(unsafe { libc::mincore(pointer(ram, index), 4096, &raw mut resident) }, 0);
    resident & 1 == 1
}

/// Pages one page out, and waits until it is.
pub(crate) fn page_out(ram: &GuestRam, index: u64) {
    let deadline = Instant::now() + BUDGET;
    while is_resident(ram, index) {
        // SAFETY: the page belongs to the RAM, and its content stays what it is.
        assert_eq!(unsafe { libc::madvise(pointer(ram, index), 4096, libc::MADV_PAGEOUT) }, 0);
        assert!(Instant::now() < deadline, "page {index} of {:?} is not paged out", ram.backing());
        thread::yield_now();
    }
}

const BACKINGS: [Backing; 3] = [ANONYMOUS, MEMFD, Backing::MemfdPrivate];

#[test]
fn a_protected_page_that_was_swapped_out_faults_at_its_first_write() {
    let Some(_swap) = Swap::take() else { return };
    for backing in BACKINGS {
        let memory = registered(backing, 2, MISSING_WP);
        assert_eq!(memory.copy(page(5), &bytes(0x77, 1), true, Wake::Now), done(1));
        page_out(memory.ram(), 5);
        assert_eq!(content(&memory, 5), 0x77, "{backing:?}: a reader swaps it in, and hears of nothing");
        page_out(memory.ram(), 5);
        let writer = touch(&memory, 5, Some(0x11));
        let fault = next_fault(&memory);
        assert_eq!((fault.page, fault.kind), (PageIndex(5), FaultKind::WriteProtected), "{backing:?}");
        assert_eq!(content(&memory, 5), 0x77, "{backing:?}: what was there before the write");
        assert_eq!(memory.unprotect(page(5)), done(1));
        assert_eq!(writer.recv_timeout(BUDGET).unwrap(), 0x11);
        assert_eq!(content(&memory, 5), 0x11);
    }
}

#[test]
fn one_access_survives_missing_protected_and_swapped() {
    let Some(_swap) = Swap::take() else { return };
    for backing in BACKINGS {
        let memory = registered(backing, 2, MISSING_WP);
        let writer = touch(&memory, 5, Some(0x11));
        assert_eq!(next_fault(&memory).kind, FaultKind::Missing, "{backing:?}");
        assert_eq!(memory.copy(page(5), &bytes(0x77, 1), true, Wake::Later), done(1));
        // It goes out before the writer has looked again.
        page_out(memory.ram(), 5);
        memory.wake(page(5)).unwrap();
        assert_eq!(next_fault(&memory).kind, FaultKind::WriteProtected, "{backing:?}");
        // And once more while it waits to write.
        page_out(memory.ram(), 5);
        assert_eq!(memory.unprotect(page(5)), done(1));
        assert_eq!(writer.recv_timeout(BUDGET).unwrap(), 0x11);
        let address = GuestAddress(PageIndex(5).offset());
        let (mut found, mut expected) = (bytes(0, 1), bytes(0x77, 1));
        memory.ram().read_slice(&mut found, address).unwrap();
        expected[0] = 0x11;
        assert!(found == expected, "{backing:?}: the rest of the page is what was placed");
    }
}
