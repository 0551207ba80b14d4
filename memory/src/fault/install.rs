//! Puts pages into a guest: the one place that knows the kernel's answers.
//!
//! | RAM | bytes | zero | in the page cache |
//! |---|---|---|---|
//! | anonymous | COPY; MOVE of a staged 2 MiB | ZEROPAGE | – |
//! | memfd, shared | COPY; where a page is cached, into the cache, CONTINUE | ZEROPAGE | CONTINUE |
//! | memfd, private | COPY | ZEROPAGE | CONTINUE |
//! | hugetlb | COPY of 2 MiB | COPY of zeros | – |
//!
//! While pages are to be placed write-protected, zeros are copied, since ZEROPAGE cannot protect, and nothing is moved,
//! since MOVE cannot either. Where that is only for the kernel to note who writes, zeros need no protection: who writes
//! to the zero page is given another one, which has none.
//!
//! Invariants:
//!
//! - Who places a page has claimed it in the page map.
//! - Whoever waits for a page that is found to be there is woken: `EEXIST` wakes nobody.
//! - What could not be placed is given back to the caller with the kernel's answer; nothing is dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::statistics::{Statistics, Verb, add};
use crate::map::PageMap;
use crate::page::{PageRange, PageSize};
use crate::ram::BackingKind;
use crate::staging::Staging;
use crate::uffd::{Placed, Registered, Stop, Wake};

/// How many bytes of zeros are copied at once, of base pages.
const ZEROS_BYTES: usize = 64 << 10;

/// What is to be in a page.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Content<'a> {
    /// These bytes.
    Bytes(&'a [u8]),
    /// Zeros.
    Zero,
    /// What the page cache has.
    InPlace,
}

/// Pages and what is to be in them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Placement<'a> {
    pub(crate) range: PageRange,
    pub(crate) content: Content<'a>,
}

impl<'a> Placement<'a> {
    /// That part of it which is `range`.
    pub(crate) fn part(self, range: PageRange) -> Self {
        debug_assert_eq!(self.range.intersection(range), range, "a part of it");
        let content = match self.content {
            Content::Bytes(bytes) => {
                let skipped = PageRange::between(self.range.start, range.start).bytes();
                let fits = "a slice's length fits";
                let start = usize::try_from(skipped).expect(fits);
                Content::Bytes(&bytes[start..start + usize::try_from(range.bytes()).expect(fits)])
            }
            other => other,
        };
        Self { range, content }
    }
}

/// Why pages were not placed, and which.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Halt {
    /// What is left to be placed.
    pub(crate) rest: PageRange,
    /// The kernel's answer.
    pub(crate) stop: Stop,
}

/// How pages of this RAM are placed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Copy,
    Cache,
}

/// Places pages. Any thread may.
#[derive(Debug)]
pub(crate) struct Installer {
    registered: Arc<Registered>,
    map: Arc<PageMap>,
    statistics: Arc<Statistics>,
    way: Way,
    granule: PageSize,
    /// Whether pages are placed write-protected.
    protects: AtomicBool,
    /// Whether that is only for the kernel to note who writes.
    tracks: AtomicBool,
    zeros: Box<[u8]>,
}

impl Installer {
    /// `shares_cache`: whether the memory is registered for minor faults, so that pages can be placed through a
    /// memfd's page cache.
    pub(crate) fn new(
        registered: Arc<Registered>,
        map: Arc<PageMap>,
        statistics: Arc<Statistics>,
        shares_cache: bool,
    ) -> Self {
        let backing = registered.ram().backing();
        let granule = backing.page_size();
        let is_cache = shares_cache && backing.kind() == BackingKind::SharedCache;
        let way = if is_cache { Way::Cache } else { Way::Copy };
        let zeros_bytes =
            usize::try_from(granule.bytes()).map_or(ZEROS_BYTES, |bytes| bytes.max(ZEROS_BYTES));
        let zeros = vec![0; zeros_bytes].into_boxed_slice();
        let (protects, tracks) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { registered, map, statistics, way, granule, protects, tracks, zeros }
    }

    /// From now on pages are placed write-protected, or not. Who is placing meanwhile may have seen the old value.
    pub(crate) fn set_protects(&self, protects: bool) {
        self.protects.store(protects, Ordering::SeqCst);
    }

    /// Pages are placed protected, for good, so that the kernel notes who writes them. Nobody has placed any yet.
    pub(crate) fn track_writes(&self) {
        self.tracks.store(true, Ordering::SeqCst);
        self.set_protects(true);
    }

    pub(crate) fn protects(&self) -> bool {
        self.protects.load(Ordering::SeqCst)
    }

    /// Places claimed pages and wakes whoever waits for them; says by which verb.
    pub(crate) fn place(&self, placement: Placement<'_>) -> Result<Verb, Halt> {
        let Placement { range, content } = placement;
        match content {
            Content::Bytes(_) if self.way == Way::Cache => self.copy_or_cache(placement),
            Content::Bytes(_) => self.copy(placement),
            Content::Zero => self.zero(range),
            Content::InPlace => self.continue_cached(range),
        }
    }

    /// Makes every access to claimed pages a memory error, and wakes whoever waits for them.
    pub(crate) fn poison(&self, range: PageRange) -> Result<Verb, Halt> {
        self.drive(range, |rest| self.registered.poison(rest, Wake::Now))?;
        Ok(Verb::Poison)
    }

    /// Places the pages of a filled staging buffer, 2 MiB that are claimed, by moving them.
    pub(crate) fn move_in(&self, chunk: PageRange, staging: &mut Staging) -> Result<Verb, Halt> {
        let placed = self.registered.move_in(chunk, staging, Wake::Now);
        let (done, rest) = chunk.split_at(placed.pages);
        self.map.settle(done);
        match placed.stop {
            None => Ok(Verb::Move),
            Some(stop) => Err(Halt { rest, stop }),
        }
    }

    fn copy(&self, placement: Placement<'_>) -> Result<Verb, Halt> {
        let protects = self.protects();
        self.drive(placement.range, |rest| {
            let Content::Bytes(bytes) = placement.part(rest).content else {
                unreachable!("bytes are copied")
            };
            self.registered.copy(rest, bytes, protects, Wake::Now)
        })?;
        Ok(Verb::Copy)
    }

    /// A page that the cache has not is copied in, which is one request less. Where it has one, with huge pages for
    /// example, COPY says so.
    fn copy_or_cache(&self, placement: Placement<'_>) -> Result<Verb, Halt> {
        let protects = self.protects();
        let mut verb = Verb::Copy;
        self.drive(placement.range, |rest| {
            let Content::Bytes(bytes) = placement.part(rest).content else {
                unreachable!("bytes are copied")
            };
            let placed = self.registered.copy(rest, bytes, protects, Wake::Now);
            if placed != (Placed { pages: 0, stop: Some(Stop::Exists) }) {
                return placed;
            }
            verb = Verb::Continue;
            let page = rest.split_at(self.granule.base_pages()).0;
            match self.through_cache(placement.part(page)) {
                Ok(_) => Placed { pages: page.count, stop: None },
                Err(halt) => Placed { pages: 0, stop: Some(halt.stop) },
            }
        })?;
        Ok(verb)
    }

    /// What is in the page cache is replaced: with huge pages there may be zeros that nobody has put there.
    fn through_cache(&self, placement: Placement<'_>) -> Result<Verb, Halt> {
        let Content::Bytes(bytes) = placement.content else { unreachable!("bytes are written") };
        match self.registered.ram().write_cached(placement.range, bytes) {
            Ok(()) => self.continue_cached(placement.range),
            Err(error) => {
                let stop = Stop::of_errno(error.raw_os_error().unwrap_or(libc::EIO));
                Err(Halt { rest: placement.range, stop })
            }
        }
    }

    fn continue_cached(&self, range: PageRange) -> Result<Verb, Halt> {
        let protects = self.protects();
        self.drive(range, |rest| self.registered.map_cached(rest, protects, Wake::Now))?;
        Ok(Verb::Continue)
    }

    fn zero(&self, range: PageRange) -> Result<Verb, Halt> {
        let result = self.place_zeros(range);
        let left = result.err().map_or(0, |halt| halt.rest.count);
        add(&self.statistics.counters.zero, range.count - left);
        result
    }

    fn place_zeros(&self, range: PageRange) -> Result<Verb, Halt> {
        let is_protected = self.protects() && !self.tracks.load(Ordering::SeqCst);
        if self.granule == PageSize::Huge2M || is_protected {
            return self.copy_zeros(range);
        }
        let mut way = Verb::Zero;
        self.drive(range, |rest| {
            let placed = self.registered.zero(rest, Wake::Now);
            if placed == (Placed { pages: 0, stop: Some(Stop::Exists) }) {
                // A marker of write-protection, or a page of the cache that nobody has mapped, looks like a page.
                way = Verb::Copy;
                return self.replace_by_zeros(rest.split_at(1).0);
            }
            placed
        })?;
        Ok(way)
    }

    /// What the cache has of a page that is to be zero is zero, or what the guest has written since it was: it is mapped,
    /// and never written.
    fn replace_by_zeros(&self, page: PageRange) -> Placed {
        if self.way == Way::Cache {
            let placed = self.registered.map_cached(page, self.protects(), Wake::Now);
            if placed.stop != Some(Stop::NoSource) {
                return placed;
            }
        }
        let zeros = &self.zeros[..usize::try_from(page.bytes()).unwrap_or(0)];
        self.registered.copy(page, zeros, self.protects(), Wake::Now)
    }

    fn copy_zeros(&self, range: PageRange) -> Result<Verb, Halt> {
        let pages_max = PageRange::count_of(self.zeros.len() as u64);
        self.drive(range, |rest| {
            let (now, _) = rest.split_at(pages_max);
            let zeros = &self.zeros[..usize::try_from(now.bytes()).unwrap_or(0)];
            let placed = self.registered.copy(now, zeros, self.protects(), Wake::Now);
            if self.way == Way::Cache && placed == (Placed { pages: 0, stop: Some(Stop::Exists) }) {
                return self.registered.map_cached(now.split_at(1).0, self.protects(), Wake::Now);
            }
            placed
        })?;
        Ok(Verb::Copy)
    }

    /// Asks the kernel for one piece after the other until all of `range` is there, or something is in the way that
    /// only the caller can clear.
    fn drive(&self, range: PageRange, mut ask: impl FnMut(PageRange) -> Placed) -> Result<(), Halt> {
        let mut rest = range;
        while !rest.is_empty() {
            let placed = ask(rest);
            let (done, left) = rest.split_at(placed.pages);
            self.map.settle(done);
            rest = left;
            match placed.stop {
                Some(Stop::Exists) => rest = self.is_there(rest),
                // It ran into something; the answer to the next piece tells into what.
                Some(Stop::Again) if !done.is_empty() => {}
                Some(stop) => return Err(Halt { rest, stop }),
                None => {}
            }
        }
        Ok(())
    }

    /// The first page of `rest` is in the guest already; gives what follows it.
    fn is_there(&self, rest: PageRange) -> PageRange {
        let (there, left) = rest.split_at(self.granule.base_pages());
        self.map.settle(there);
        add(&self.statistics.counters.redundant, there.count);
        self.wake(there);
        left
    }

    /// Lets whoever waits for pages try again.
    pub(crate) fn wake(&self, range: PageRange) {
        // It fails only where the memory is no longer registered, and then nobody waits.
        let _ = self.registered.wake(range);
    }
}
