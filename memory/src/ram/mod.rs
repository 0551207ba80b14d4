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
//! - The mapping lives as long as any clone of [`GuestRam`]: a region cannot be had without it.

mod mapping;

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use vm_memory::bitmap::BS;
use vm_memory::volatile_memory::VolatileSlice;
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestMemoryRegionBytes, GuestUsize,
    MemoryRegionAddress, guest_memory,
};

use crate::page::{PageIndex, PageRange, PageSize};
use mapping::Mapping;

/// What backs guest RAM on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backing {
    /// Private anonymous memory. `transparent_huge_pages` asks the kernel for them with `MADV_HUGEPAGE`; without it
    /// the host's policy stands.
    Anonymous {
        /// Whether to advise huge pages.
        transparent_huge_pages: bool,
    },
    /// A memfd, mapped shared: another process can be given the memory by its descriptor.
    Memfd {
        /// Whether to advise huge pages (honoured where the host allows them for shmem).
        transparent_huge_pages: bool,
    },
    /// Private huge pages of 2 MiB from the host's hugetlb pool.
    Hugetlb2M,
}

impl Backing {
    /// The size of page that RAM of this kind comes in, and that its size must be a multiple of.
    #[must_use]
    pub const fn page_size(self) -> PageSize {
        match self {
            Self::Anonymous { .. } | Self::Memfd { .. } => PageSize::Base4K,
            Self::Hugetlb2M => PageSize::Huge2M,
        }
    }
}

/// One piece of a guest's physical address space that is RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RamRange {
    /// The guest physical address of its first byte, a multiple of 2 MiB.
    pub gpa: GuestAddress,
    /// Its length in bytes, a multiple of the backing's page size.
    pub size_bytes: u64,
}

/// Why guest RAM could not be made.
#[derive(Debug, thiserror::Error)]
pub enum RamError {
    /// There is no RAM at all.
    #[error("guest memory cannot be empty: ask for at least 1 MiB")]
    Empty,
    /// A range does not start on a 2 MiB boundary, or its size is no whole number of pages.
    #[error("guest memory at {gpa:#x} of {size_bytes:#x} bytes does not fit pages of {page_bytes:#x} bytes")]
    Unaligned {
        /// The guest physical address of the range.
        gpa: u64,
        /// The length of the range in bytes.
        size_bytes: u64,
        /// The size of the backing's pages in bytes.
        page_bytes: u64,
    },
    /// Ranges overlap, are out of order, or run past the end of the address space.
    #[error(
        "guest memory at {gpa:#x} of {size_bytes:#x} bytes overlaps another range or does not fit the address space"
    )]
    Layout {
        /// The guest physical address of the range.
        gpa: u64,
        /// The length of the range in bytes.
        size_bytes: u64,
    },
    /// The host has less memory than the guest is to have.
    #[error("guest memory of {wanted_mib} MiB is more than the {host_mib} MiB this host has: ask for less")]
    MoreThanHost {
        /// The size asked for, in MiB.
        wanted_mib: u64,
        /// The host's RAM, in MiB.
        host_mib: u64,
    },
    /// The host's hugetlb pool has too few free pages.
    #[error(
        "the host has too few free huge pages of 2 MiB for {wanted} of them: \
         reserve more with `sysctl vm.nr_hugepages=N`, or choose another `huge_pages`"
    )]
    NoHugePages {
        /// How many pages the guest needs.
        wanted: u64,
    },
    /// The host refused one step of making it.
    #[error("cannot {step} for guest memory")]
    Host {
        /// What was being done.
        step: &'static str,
        /// The host's answer.
        source: std::io::Error,
    },
}

/// One region of guest RAM. It is reached through [`GuestRam`], and through vm-memory's traits.
#[derive(Debug)]
pub struct RamRegion {
    mapping: Arc<Mapping>,
    range: RamRange,
    /// Where the region starts in the mapping and in every file that holds this RAM, in bytes.
    file_offset: u64,
}

impl RamRegion {
    /// The region's place in the guest.
    #[must_use]
    pub fn range(&self) -> RamRange {
        self.range
    }

    /// Where the region starts in a file that holds this RAM: the sum of the sizes of the regions before it.
    #[must_use]
    pub fn offset_in_file(&self) -> u64 {
        self.file_offset
    }

    /// The host virtual address of the region's first byte, as KVM and userfaultfd want it.
    #[must_use]
    pub fn hva(&self) -> u64 {
        self.mapping.base_address() + self.file_offset
    }
}

impl GuestMemoryRegion for RamRegion {
    type B = ();

    fn len(&self) -> GuestUsize {
        self.range.size_bytes
    }

    fn start_addr(&self) -> GuestAddress {
        self.range.gpa
    }

    fn bitmap(&self) -> BS<'_, Self::B> {}

    fn get_host_address(&self, addr: MemoryRegionAddress) -> guest_memory::Result<*mut u8> {
        self.get_slice(addr, 1).map(|slice| slice.ptr_guard_mut().as_ptr())
    }

    fn get_slice(
        &self,
        offset: MemoryRegionAddress,
        count: usize,
    ) -> guest_memory::Result<VolatileSlice<'_, BS<'_, Self::B>>> {
        let out_of_range = || guest_memory::Error::InvalidBackendAddress;
        let end = offset.0.checked_add(count as u64).ok_or_else(out_of_range)?;
        if end > self.range.size_bytes {
            return Err(out_of_range());
        }
        self.mapping.slice(self.file_offset + offset.0, count).ok_or_else(out_of_range)
    }
}

impl GuestMemoryRegionBytes for RamRegion {}

/// The RAM of one guest. Clones share it; the last one to go unmaps it.
#[derive(Debug, Clone)]
pub struct GuestRam {
    regions: Arc<[RamRegion]>,
    mapping: Arc<Mapping>,
    backing: Backing,
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
        let mapping = Arc::new(Mapping::new(size_bytes, backing)?);
        let mut file_offset = 0;
        let regions = ranges
            .iter()
            .map(|&range| {
                let region = RamRegion { mapping: Arc::clone(&mapping), range, file_offset };
                file_offset += range.size_bytes;
                region
            })
            .collect();
        Ok(Self { regions, mapping, backing })
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

    /// Throws the content of pages away: they are zero when they are touched again, and their memory is the host's.
    ///
    /// # Errors
    ///
    /// The host's refusal.
    pub fn discard(&self, range: PageRange) -> std::io::Result<()> {
        self.mapping.discard(range)
    }

    /// What backs this RAM.
    #[must_use]
    pub fn backing(&self) -> Backing {
        self.backing
    }

    /// The size of all regions together, in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.regions.iter().map(|region| region.range.size_bytes).sum()
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

/// Checks order and alignment, and gives the sum of the sizes.
fn check_layout(ranges: &[RamRange], page_size: PageSize) -> Result<u64, RamError> {
    let (mut end_of_last, mut size_bytes) = (0_u64, 0_u64);
    for range in ranges {
        let (gpa, size) = (range.gpa.0, range.size_bytes);
        let layout = || RamError::Layout { gpa, size_bytes: size };
        if !PageSize::Huge2M.divides(gpa) || !page_size.divides(size) {
            return Err(RamError::Unaligned { gpa, size_bytes: size, page_bytes: page_size.bytes() });
        }
        if gpa < end_of_last {
            return Err(layout());
        }
        // Only the last region may end off a 2 MiB boundary, or the next one's host address would not match.
        if !PageSize::Huge2M.divides(size_bytes) {
            return Err(layout());
        }
        end_of_last = gpa.checked_add(size).ok_or_else(layout)?;
        size_bytes = size_bytes.checked_add(size).ok_or_else(layout)?;
    }
    if size_bytes == 0 { Err(RamError::Empty) } else { Ok(size_bytes) }
}

#[cfg(test)]
mod tests;
