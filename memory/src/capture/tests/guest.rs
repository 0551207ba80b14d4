//! A guest: memory, threads that write to it, and a model of what is in it.

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, RwLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};

use crate::capture::Capture;
use crate::fault::{FaultEngine, FillOptions, Options};
use crate::image::{Contents, MemoryFile, WriteOptions, verify};
use crate::page::{PageIndex, PageRange, PageSize};
use crate::ram::{Backing, GuestRam, RamRange};
use crate::source::pattern::{Pattern, PatternReader, Sequence, fill_range};
use crate::source::{PageReader, Reading};

pub(super) const ANONYMOUS: Backing = Backing::Anonymous { transparent_huge_pages: false };
pub(super) const THP: Backing = Backing::Anonymous { transparent_huge_pages: true };
pub(super) const MEMFD: Backing = Backing::Memfd { transparent_huge_pages: false };
pub(super) const SIZE_MIB: u64 = 16;
/// Every third page is zero.
pub(super) const MIXED: Pattern = |page| (!page.0.is_multiple_of(3)).then_some(7);

pub(super) fn pages(start: u64, count: u64) -> PageRange {
    PageRange { start: PageIndex(start), count }
}

pub(super) fn ram(backing: Backing) -> GuestRam {
    GuestRam::new(&[RamRange { gpa: GuestAddress(0), size_bytes: SIZE_MIB << 20 }], backing).unwrap()
}

pub(super) fn reader_of(ram: &GuestRam) -> PatternReader {
    PatternReader { pattern: MIXED, pages: ram.pages().count }
}

/// Served from [`MIXED`], and filled if that is wanted.
pub(super) fn served(ram: &GuestRam, fills: bool) -> Arc<FaultEngine> {
    let reader = reader_of(ram);
    let filler: Option<Box<dyn PageReader>> = if fills { Some(Box::new(reader)) } else { None };
    let fill = FillOptions { everything: true, ..FillOptions::default() };
    let options = Options { write_protect: true, fill, ..Options::default() };
    let source = Box::new(Reading::new(reader));
    Arc::new(FaultEngine::start(ram.clone(), source, filler, &options).unwrap())
}

pub(super) fn touch(ram: &GuestRam, range: PageRange) {
    let mut bytes = vec![0; 4096];
    range.pages().for_each(|page| ram.read_pages(page.alone(), &mut bytes).unwrap());
}

/// A number that can be named to have a run again.
pub(super) fn seed() -> u64 {
    let seed = std::env::var("CAPTURE_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| u64::from(std::process::id()));
    println!("CAPTURE_SEED={seed}");
    seed
}

/// How many pages in a row belong to each writer, and one part more to who discards.
const STRIPE_PAGES: u64 = 4;

/// What the threads share.
struct Shared {
    ram: GuestRam,
    /// Every byte.
    model: Vec<AtomicU8>,
    /// Held shared for each step, and alone by who stops the guest.
    runs: RwLock<()>,
    is_over: AtomicBool,
    steps: Vec<AtomicU64>,
}

pub(super) struct Guest {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Guest {
    /// `writers` threads write at random to memory that is as `pattern` says, and one discards if `discards`.
    pub(super) fn run(ram: &GuestRam, pattern: Pattern, writers: u64, discards: bool, seed: u64) -> Self {
        let mut bytes = vec![0; usize::try_from(ram.size_bytes()).unwrap()];
        fill_range(pattern, ram.pages(), &mut bytes);
        let shared = Arc::new(Shared {
            ram: ram.clone(),
            model: bytes.into_iter().map(AtomicU8::new).collect(),
            runs: RwLock::new(()),
            is_over: AtomicBool::new(false),
            steps: (0..=writers).map(|_| AtomicU64::new(0)).collect(),
        });
        let lanes = writers + 1;
        let threads = (0..writers + u64::from(discards)).map(|lane| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.work(lane, lanes, lane == writers, seed))
        });
        let threads = threads.collect();
        Self { shared, threads }
    }

    /// Does something while no thread runs, and gives what the memory was then.
    pub(super) fn standing<T>(&self, act: impl FnOnce() -> T) -> (T, Vec<u8>) {
        let _alone = self.shared.runs.write().unwrap();
        let done = act();
        (done, self.shared.model.iter().map(|byte| byte.load(Ordering::Relaxed)).collect())
    }

    pub(super) fn steps(&self) -> Vec<u64> {
        self.shared.steps.iter().map(|steps| steps.load(Ordering::Relaxed)).collect()
    }

    /// Waits until every thread has come further.
    pub(super) fn goes_on(&self) {
        let before = self.steps();
        until("the guest goes on", || {
            let now = self.steps();
            (0..self.threads.len()).all(|lane| now[lane] > before[lane] + 2)
        });
    }

    /// Stops it, and compares all its memory with the model.
    pub(super) fn end(mut self) {
        self.stop();
        let model = self.standing(|| ()).1;
        let mut memory = vec![0; model.len()];
        self.shared.ram.read_pages(self.shared.ram.pages(), &mut memory).unwrap();
        assert!(memory == model, "the guest's memory is what it wrote");
    }

    fn stop(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| thread.join().unwrap());
    }
}

impl Shared {
    fn work(&self, lane: u64, lanes: u64, discards: bool, seed: u64) {
        let mut sequence = Sequence::new(seed.wrapping_add(lane));
        let stripes = self.ram.pages().count / (STRIPE_PAGES * lanes);
        while !self.is_over.load(Ordering::Relaxed) {
            let start = (sequence.below(stripes) * lanes + lane) * STRIPE_PAGES;
            {
                let _runs = self.runs.read().unwrap();
                if discards { self.discard(pages(start, 2)) } else { self.write(start, &mut sequence) }
            }
            self.steps[usize::try_from(lane).unwrap()].fetch_add(1, Ordering::Relaxed);
            if discards {
                thread::sleep(Duration::from_millis(1));
            }
        }
    }

    fn write(&self, start: u64, sequence: &mut Sequence) {
        let offset = PageIndex(start).offset() + sequence.below(STRIPE_PAGES * 4096);
        let value = u8::try_from(sequence.below(256)).unwrap();
        self.ram.write_slice(&[value], GuestAddress(offset)).unwrap();
        self.model[usize::try_from(offset).unwrap()].store(value, Ordering::Relaxed);
    }

    fn discard(&self, range: PageRange) {
        self.ram.discard(range).unwrap();
        let start = usize::try_from(range.start.offset()).unwrap();
        let bytes = &self.model[start..start + usize::try_from(range.bytes()).unwrap()];
        bytes.iter().for_each(|byte| byte.store(0, Ordering::Relaxed));
    }
}

pub(super) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let patience = Duration::from_secs(if std::env::var_os("FAULTLESS_LAB").is_some() { 60 } else { 10 });
    let deadline = Instant::now() + patience;
    while !is_so() {
        assert!(Instant::now() < deadline, "not within {patience:?}: {what}");
        thread::sleep(Duration::from_micros(100));
    }
}

/// The first page in which two memories differ.
pub(super) fn first_difference(left: &[u8], right: &[u8]) -> Option<usize> {
    left.chunks(4096).zip(right.chunks(4096)).position(|(left, right)| left != right)
}

/// Saves to a new file, and compares each byte with `memory`, and with the contents.
pub(super) fn check_saved(capture: Capture, missing: Option<&mut dyn PageReader>, memory: &[u8]) -> Contents {
    let file = tempfile::tempfile().unwrap();
    // On few processors it would be one.
    let options = WriteOptions { threads: NonZeroUsize::new(3), ..WriteOptions::default() };
    let contents = capture.save(&file, missing, &options).unwrap();
    check_file(&file, &contents, memory);
    contents
}

pub(super) fn check_file(file: &File, contents: &Contents, memory: &[u8]) {
    verify(file, contents, None).unwrap();
    let mut saved = vec![0xee; memory.len()];
    file.read_exact_at(&mut saved, 0).unwrap();
    assert_eq!(
        first_difference(&saved, memory),
        None,
        "the first page that is not what it was at the moment"
    );
}

/// The pages that are write-protected: "pte is uffd-wp write-protected" of the kernel's page map.
pub(super) fn protected(ram: &GuestRam) -> usize {
    let pagemap = File::open("/proc/self/pagemap").unwrap();
    let mut entries = vec![0; usize::try_from(ram.pages().count * 8).unwrap()];
    let first = ram.base_address() / PageSize::Base4K.bytes();
    pagemap.read_exact_at(&mut entries, first * 8).unwrap();
    entries.chunks(8).filter(|entry| entry[7] & 1 << 1 != 0).count()
}

/// A file that tests let fail or wait.
pub(super) struct Scripted<F> {
    pub(super) file: File,
    pub(super) writes: AtomicU64,
    /// What is done before the write with this number, from 1.
    pub(super) before: F,
}

impl<F: Fn(u64) -> io::Result<()> + Sync> Scripted<F> {
    pub(super) fn new(before: F) -> Self {
        Self { file: tempfile::tempfile().unwrap(), writes: AtomicU64::new(0), before }
    }
}

impl<F: Fn(u64) -> io::Result<()> + Sync> MemoryFile for Scripted<F> {
    fn reset(&self, bytes: u64) -> io::Result<()> {
        self.file.set_len(bytes)
    }

    fn write_some(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        (self.before)(self.writes.fetch_add(1, Ordering::Relaxed) + 1)?;
        self.file.write_at(bytes, offset)
    }
}
