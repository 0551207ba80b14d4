//! Memory to be served, threads that touch it, and a budget of time for everything that must happen.

use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use vm_memory::GuestAddress;

use crate::fault::{AroundPolicy, FaultEngine, Options, ServedMemory, Status};
use crate::page::{PageIndex, PageRange};
use crate::ram::{Backing, GuestRam, RamRange};
use crate::source::pattern::{Pattern, PatternReader, page_is, range_is};
use crate::source::scripted::{Script, ScriptedHandle, ScriptedSource};
use crate::source::{PageSource, Reading};
use crate::uffd::{Feature, probe};

/// How long anything that must happen may take.
pub(super) const BUDGET: Duration = Duration::from_secs(2);
/// How long is waited for what must not happen.
pub(super) const SILENCE: Duration = Duration::from_millis(40);
pub(super) const ANONYMOUS: Backing = Backing::Anonymous { transparent_huge_pages: false };
pub(super) const HUGE: Backing = Backing::Anonymous { transparent_huge_pages: true };
pub(super) const MEMFD: Backing = Backing::Memfd { transparent_huge_pages: false };
/// Only what is wanted is fetched.
pub(super) const ON_DEMAND: AroundPolicy = AroundPolicy::Off;
/// Every page has content.
pub(super) const FULL: Pattern = |_| Some(7);
/// Every third page is zero.
pub(super) const MIXED: Pattern = |page| (!page.0.is_multiple_of(3)).then_some(7);

pub(super) fn page(index: u64) -> PageRange {
    PageIndex(index).alone()
}

pub(super) fn pages(start: u64, count: u64) -> PageRange {
    PageRange { start: PageIndex(start), count }
}

pub(super) fn ram(backing: Backing, mib: u64) -> GuestRam {
    GuestRam::new(&[RamRange { gpa: GuestAddress(0), size_bytes: mib << 20 }], backing).unwrap()
}

pub(super) fn on_demand() -> Options {
    Options { around: ON_DEMAND, ..Options::default() }
}

/// What a page holds; whoever asks waits until it is there.
pub(super) fn content(ram: &GuestRam, index: u64) -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    ram.read_pages(page(index), &mut bytes).unwrap();
    bytes
}

pub(super) fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

pub(super) fn is_original(index: u64, bytes: &[u8]) -> bool {
    page_is(PageIndex(index), 7, bytes)
}

/// Reads all of `range` and compares every byte.
pub(super) fn assert_content(ram: &GuestRam, pattern: Pattern, range: PageRange) {
    for page in range.pages() {
        assert!(range_is(pattern, page.alone(), &content(ram, page.0)), "page {} is wrong", page.0);
    }
}

/// Reads a page on a thread of its own.
pub(super) fn reader(ram: &GuestRam, index: u64) -> Receiver<Vec<u8>> {
    let (sender, receiver) = channel();
    let ram = ram.clone();
    // The test may have ended by then.
    thread::spawn(move || drop(sender.send(content(&ram, index))));
    receiver
}

/// Writes a byte to a page on a thread of its own; gives the page as it is afterwards.
pub(super) fn writer(ram: &GuestRam, index: u64, value: u8) -> Receiver<Vec<u8>> {
    let (sender, receiver) = channel();
    let ram = ram.clone();
    thread::spawn(move || {
        write(&ram, index, value);
        // As above.
        drop(sender.send(content(&ram, index)));
    });
    receiver
}

/// Writes the first byte of a page.
pub(super) fn write(ram: &GuestRam, index: u64, value: u8) {
    vm_memory::Bytes::write_obj(ram, value, GuestAddress(PageIndex(index).offset())).unwrap();
}

/// What the budget is on this machine: an emulated one, which says so by a variable, takes ten times as long for
/// everything.
pub(super) fn patience() -> Duration {
    if std::env::var_os("FAULTLESS_LAB").is_some() { 10 * BUDGET } else { BUDGET }
}

/// Waits until `is_so`, within the budget.
pub(super) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let patience = patience();
    let deadline = Instant::now() + patience;
    while !is_so() {
        assert!(Instant::now() < deadline, "not within {patience:?}: {what}");
        thread::sleep(Duration::from_micros(100));
    }
}

pub(super) fn assert_serving(engine: &FaultEngine) {
    assert_eq!(engine.status(), Status::Serving);
}

/// A script whose pages are those of [`FULL`].
pub(super) fn well_behaved() -> Script {
    Script { pattern: FULL, ..Script::default() }
}

/// Memory served by a script.
pub(super) fn scripted(ram: &GuestRam, script: Script, options: &Options) -> (FaultEngine, ScriptedHandle) {
    let (source, handle) = ScriptedSource::new(script, ram.pages().count).unwrap();
    (FaultEngine::start(ram.clone(), Box::new(source), None, options).unwrap(), handle)
}

pub(super) fn good_source(ram: &GuestRam) -> Box<dyn PageSource> {
    Box::new(Reading::new(PatternReader { pattern: FULL, pages: ram.pages().count }))
}

/// Waits until the engine has read so many faults.
pub(super) fn until_faults(engine: &FaultEngine, faults: u64) {
    until("the faults are read", || engine.report().counts.faults >= faults);
}

pub(super) fn assert_waiting<T>(receiver: &Receiver<T>) {
    assert!(receiver.recv_timeout(SILENCE).is_err(), "whoever waits goes on waiting");
}

pub(super) fn assert_asked(handle: &ScriptedHandle, index: u64) {
    assert!(handle.wait_until_asked(PageIndex(index), 1, patience()), "page {index} is not asked for");
}

/// Those of `backings` that this kernel can protect. The others are refused at the start, with what they need.
pub(super) fn protected(backings: &[Backing]) -> Vec<Backing> {
    let is_protected = |backing: &Backing| match ServedMemory::new(ram(*backing, 4), true) {
        Ok(_) => true,
        Err(error) => {
            assert!(!probe().unwrap().has(Feature::WRITE_PROTECT_UNPOPULATED), "{error}");
            assert!(
                *backing == Backing::MemfdPrivate && error.to_string().contains("(Linux 6.4)"),
                "{error}"
            );
            println!("{backing:?} is refused: {error}");
            false
        }
    };
    backings.iter().copied().filter(is_protected).collect()
}
