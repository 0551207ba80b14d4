//! What the page tables of this process say of a page: `/proc/self/pagemap`.
//!
//! Source: Documentation/admin-guide/mm/pagemap.rst of Linux 6.18.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::page::{PageIndex, PageRange, PageSize};
use crate::ram::GuestRam;

/// "pte is soft-dirty", "page is file-page or shared-anon", "page swapped", "page present".
const IS_SOFT_DIRTY: u64 = 1 << 55;
const IS_FILE: u64 = 1 << 61;
const IS_SWAPPED: u64 = 1 << 62;
const IS_PRESENT: u64 = 1 << 63;
/// One 64-bit number for each page.
const ENTRY_BYTES: u64 = 8;
/// How many of them are read at once.
const ENTRIES_MAX: usize = 512;

/// What is known of one page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageEntry {
    /// It is mapped.
    Mapped {
        /// Whether what is mapped is the memfd's page, and not one of the mapping's own.
        is_file: bool,
    },
    /// It is not: it was swapped out, unmapped, or was never there.
    Absent,
}

/// The page map of this process.
#[derive(Debug)]
pub struct Pagemap(File);

impl Pagemap {
    /// Opens it.
    ///
    /// # Errors
    ///
    /// The host's refusal.
    pub fn open() -> io::Result<Self> {
        File::open("/proc/self/pagemap").map(Self)
    }

    /// Looks `page` up.
    ///
    /// # Errors
    ///
    /// What the host answers.
    pub fn entry(&self, ram: &GuestRam, page: PageIndex) -> io::Result<PageEntry> {
        let mut bits = [0; 8];
        let number = (ram.base_address() + page.offset()) / PageSize::Base4K.bytes();
        self.0.read_exact_at(&mut bits, number * ENTRY_BYTES)?;
        let bits = u64::from_ne_bytes(bits);
        let is_file = bits & IS_FILE != 0;
        Ok(if bits & IS_PRESENT != 0 { PageEntry::Mapped { is_file } } else { PageEntry::Absent })
    }

    /// Gives the pages of `range` that the page tables know anything of: they are mapped, swapped out, or marked. Of
    /// the others private memory has nothing, and no page is touched to find that out. Of a page cache it says nothing.
    ///
    /// # Errors
    ///
    /// What the host answers.
    pub fn known(&self, ram: &GuestRam, range: PageRange, sink: &mut dyn FnMut(PageRange)) -> io::Result<()> {
        self.runs(ram, range, |bits| bits & (IS_PRESENT | IS_SWAPPED) != 0, sink)
    }

    /// The same but for what shows through from a file below: what a private mapping has of its own.
    ///
    /// # Errors
    ///
    /// What the host answers.
    pub fn own(&self, ram: &GuestRam, range: PageRange, sink: &mut dyn FnMut(PageRange)) -> io::Result<()> {
        self.runs(ram, range, is_own, sink)
    }

    /// Those of its own whose soft-dirty bit is set, on a kernel that has one: written, or placed, since it was cleared.
    ///
    /// # Errors
    ///
    /// What the host answers.
    pub fn soft_dirty(
        &self,
        ram: &GuestRam,
        range: PageRange,
        sink: &mut dyn FnMut(PageRange),
    ) -> io::Result<()> {
        self.runs(ram, range, |bits| is_own(bits) && bits & IS_SOFT_DIRTY != 0, sink)
    }

    /// Whether the page of this process that `address` is in has its soft-dirty bit set.
    pub(crate) fn is_soft_dirty(&self, address: u64) -> io::Result<bool> {
        let mut bits = [0; 8];
        self.0.read_exact_at(&mut bits, address / PageSize::Base4K.bytes() * ENTRY_BYTES)?;
        Ok(u64::from_ne_bytes(bits) & IS_SOFT_DIRTY != 0)
    }

    /// Gives the runs of pages of `range` whose bits are as asked for.
    fn runs(
        &self,
        ram: &GuestRam,
        range: PageRange,
        is_one: impl Fn(u64) -> bool,
        sink: &mut dyn FnMut(PageRange),
    ) -> io::Result<()> {
        ram.assert_has(range);
        let mut entries = [0; ENTRIES_MAX * 8];
        let mut rest = range;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(ENTRIES_MAX as u64);
            let count = usize::try_from(now.count).expect("no more than fit the buffer");
            let number = (ram.base_address() + now.start.offset()) / PageSize::Base4K.bytes();
            self.0.read_exact_at(&mut entries[..count * 8], number * ENTRY_BYTES)?;
            let mut run = PageRange { start: now.start, count: 0 };
            for (page, entry) in now.pages().zip(entries.as_chunks::<8>().0) {
                if is_one(u64::from_ne_bytes(*entry)) {
                    run.count += 1;
                    continue;
                }
                if !run.is_empty() {
                    sink(run);
                }
                run = PageRange { start: PageIndex(page.0 + 1), count: 0 };
            }
            if !run.is_empty() {
                sink(run);
            }
            rest = later;
        }
        Ok(())
    }
}

fn is_own(bits: u64) -> bool {
    bits & (IS_PRESENT | IS_SWAPPED) != 0 && bits & IS_FILE == 0
}
