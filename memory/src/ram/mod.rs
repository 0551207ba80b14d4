//! Guest RAM: the regions a guest sees, laid over one mapping of the host.
//!
//! ```text
//!   guest physical    [0 ..... 3 GiB)      hole       [4 GiB ........)
//!                      region 0                        region 1
//!                         │                               │
//!   host virtual      [base ............][base + 3 GiB ..........]      one reservation, aligned to 2 MiB
//!   file offset        0                  3 GiB                         the same running sum, in a memfd or a file
//! ```
//!
//! All of a guest's RAM is one reservation of host addresses, whatever backs it. So one userfaultfd registration,
//! one alias mapping and one memory file describe it, and a 2 MiB chunk of the guest is a 2 MiB chunk of the host:
//! huge pages can be moved in whole.
//!
//! Invariants:
//!
//! - A region's host address minus its guest address is a multiple of 2 MiB.
//! - `file_offset` of a region is the sum of the sizes of those before it, in a memfd as in a saved memory file.
//! - A memfd behind it cannot shrink, whoever made it.
//! - Whoever fills it is told of a discard before anything is thrown away.
//! - The mapping lives as long as any clone of [`GuestRam`]: a region cannot be had without it.

mod backing;
mod copy;
mod discard;
mod error;
mod layout;
mod mapping;
mod memfd;
mod region;
mod reservation;

use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Weak};

use vm_memory::GuestMemoryBackend;

use crate::page::{PageIndex, PageRange, PageSize};
use layout::check_layout;
use mapping::Mapping;

pub use backing::{Backing, BackingKind, Sharing};
pub use copy::CopyError;
pub use discard::{DiscardWatcher, TooManyWatchers};
pub use error::{MemfdError, RamError};
pub use layout::RamRange;
pub use region::RamRegion;

/// The RAM of one guest. Clones share it; the last one to go unmaps it.
#[derive(Debug, Clone)]
pub struct GuestRam {
    regions: Arc<[RamRegion]>,
    mapping: Arc<Mapping>,
}

impl GuestRam {
    /// Maps RAM for `ranges`, which are in ascending order, backed as `backing` says. No page is touched.
    ///
    /// # Errors
    ///
    /// [`RamError`]: for ranges that are empty, unaligned or overlap; for more memory than the host has; and for
    /// what the host itself refuses.
    pub fn new(ranges: &[RamRange], backing: Backing) -> Result<Self, RamError> {
        let size_bytes = check_layout(ranges, backing.page_size())?;
        Self::check_host(size_bytes >> 20)?;
        Ok(Self::over(ranges, Mapping::new(size_bytes, backing)?))
    }

    /// Maps RAM for `ranges` over a memfd that somebody else made, of shmem or of huge pages of 2 MiB. It is as large
    /// as all ranges together and cannot be shrunk.
    ///
    /// # Errors
    ///
    /// As of [`new`](Self::new), and [`MemfdError`] for a memfd that does not do.
    pub fn over_memfd(ranges: &[RamRange], memfd: OwnedFd, sharing: Sharing) -> Result<Self, RamError> {
        let size_bytes = check_layout(ranges, PageSize::Base4K)?;
        Self::check_host(size_bytes >> 20)?;
        let mapping = Mapping::over_memfd(size_bytes, File::from(memfd), sharing)?;
        // Only the memfd tells what its pages are.
        check_layout(ranges, mapping.backing().page_size())?;
        Ok(Self::over(ranges, mapping))
    }

    /// Maps RAM for `ranges` over a saved memory file, which is as large as all ranges together. What the guest writes is
    /// its own, and the file never changes by it. Who truncates the file takes pages from the guest: touching one is a
    /// SIGBUS then.
    ///
    /// # Errors
    ///
    /// As of [`new`](Self::new), and [`RamError::FileSize`].
    pub fn over_file(ranges: &[RamRange], file: File) -> Result<Self, RamError> {
        let size_bytes = check_layout(ranges, PageSize::Base4K)?;
        Self::check_host(size_bytes >> 20)?;
        Ok(Self::over(ranges, Mapping::over_file(size_bytes, file)?))
    }

    fn over(ranges: &[RamRange], mapping: Mapping) -> Self {
        let mapping = Arc::new(mapping);
        let mut file_offset = 0;
        let regions = ranges
            .iter()
            .map(|&range| {
                let region = RamRegion { mapping: Arc::clone(&mapping), range, file_offset };
                file_offset += range.size_bytes;
                region
            })
            .collect();
        Self { regions, mapping }
    }

    /// Refuses what the host could never hold. Memory that is merely busy now is not refused: guests share and swap.
    ///
    /// # Errors
    ///
    /// [`RamError::MoreThanHost`].
    pub fn check_host(size_mib: u64) -> Result<(), RamError> {
        let host_mib = mapping::host_ram_bytes() >> 20;
        if size_mib > host_mib {
            return Err(RamError::MoreThanHost { wanted_mib: size_mib, host_mib });
        }
        Ok(())
    }

    /// The regions, in ascending order of guest address.
    #[must_use]
    pub fn regions(&self) -> &[RamRegion] {
        &self.regions
    }

    /// The host virtual address of its first byte: page `n` is `n` pages after it.
    #[must_use]
    pub fn base_address(&self) -> u64 {
        self.mapping.base_address()
    }

    /// All its pages.
    #[must_use]
    pub fn pages(&self) -> PageRange {
        PageRange::between(PageIndex(0), self.page_count_end())
    }

    /// The number after that of its last page.
    #[must_use]
    pub fn page_count_end(&self) -> PageIndex {
        PageIndex::at_offset(self.size_bytes())
    }

    /// Panics where `range` is not all in this RAM: addresses are made from it next.
    pub(crate) fn assert_has(&self, range: PageRange) {
        let (PageRange { start, count }, end) = (range, self.page_count_end());
        // Not by the range's end, which may not fit 64 bits.
        let is_inside = start <= end && count <= PageRange::between(start, end).count;
        assert!(is_inside, "{count} pages at page {} are not all in guest memory", start.0);
    }

    /// Throws the content of pages away: their memory is the host's, and they are zero when they are touched again.
    /// [Watchers](Self::watch_discards) are told before and after.
    ///
    /// Not so of a memfd that is mapped privately: what the memfd holds shows again then. Whoever serves the faults of
    /// such RAM is told of the removal, and gives a removed page zeros by COPY or ZEROPAGE, never what is cached by
    /// CONTINUE; RAM whose faults nobody serves shows the old content.
    ///
    /// # Errors
    ///
    /// For pages outside of the RAM, or parts of huge ones; of RAM over a saved file; and the host's refusal.
    pub fn discard(&self, range: PageRange) -> io::Result<()> {
        self.mapping.discard(range)
    }

    /// Lets `watcher` know of discards from now on, through this and all clones, for as long as it lives.
    ///
    /// # Errors
    ///
    /// [`TooManyWatchers`].
    pub fn watch_discards(&self, watcher: Weak<dyn DiscardWatcher>) -> Result<(), TooManyWatchers> {
        self.mapping.watchers.add(watcher)
    }

    /// Writes whole pages into the page cache of the memfd, through its descriptor: no mapping is touched, so it
    /// neither faults nor waits for anyone. All who map the memfd see it, but for private pages written before.
    ///
    /// # Errors
    ///
    /// Where there is no memfd, for one of hugetlb, for other pages than the RAM's, and what the host answers.
    pub fn write_cached(&self, range: PageRange, bytes: &[u8]) -> io::Result<()> {
        self.mapping.write_cached(range, bytes)
    }

    /// Reads whole pages of the memfd's page cache, through its descriptor. Pages that are not there are zero.
    ///
    /// # Errors
    ///
    /// As of [`write_cached`](Self::write_cached), but that hugetlb can be read.
    pub fn read_cached(&self, range: PageRange, bytes: &mut [u8]) -> io::Result<()> {
        self.mapping.read_cached(range, bytes)
    }

    /// Reads whole pages as a guest would: who misses one of them waits for it.
    ///
    /// # Errors
    ///
    /// For pages outside of the RAM, or as many bytes as the pages have not.
    pub fn read_pages(&self, range: PageRange, bytes: &mut [u8]) -> io::Result<()> {
        let slice = self.mapping.slice(range.start.offset(), bytes.len());
        let slice = slice.filter(|slice| slice.len() as u64 == range.bytes());
        slice.ok_or(io::ErrorKind::InvalidInput)?.copy_to(bytes);
        Ok(())
    }

    /// What backs this RAM.
    #[must_use]
    pub fn backing(&self) -> Backing {
        self.mapping.backing()
    }

    /// The size of all regions together, in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.regions.iter().map(|region| region.range().size_bytes).sum()
    }

    /// What shows where the RAM has no page of its own: the memfd behind it, or the saved file.
    pub(crate) fn below(&self) -> Option<BorrowedFd<'_>> {
        self.mapping.file()
    }

    /// The memfd behind this RAM, where it is one.
    #[must_use]
    pub fn memfd(&self) -> Option<BorrowedFd<'_>> {
        self.mapping.memfd()
    }
}

impl GuestMemoryBackend for GuestRam {
    type R = RamRegion;

    fn iter(&self) -> impl Iterator<Item = &Self::R> {
        self.regions.iter()
    }
}

#[cfg(test)]
mod tests;
