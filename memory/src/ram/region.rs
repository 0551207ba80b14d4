//! One region of guest RAM, and vm-memory's traits on it.

use std::sync::Arc;

use vm_memory::bitmap::BS;
use vm_memory::volatile_memory::VolatileSlice;
use vm_memory::{
    GuestAddress, GuestMemoryRegion, GuestMemoryRegionBytes, GuestUsize, MemoryRegionAddress, guest_memory,
};

use super::RamRange;
use super::mapping::Mapping;

/// One region of guest RAM. It is reached through [`GuestRam`](super::GuestRam), and through vm-memory's traits.
#[derive(Debug)]
pub struct RamRegion {
    pub(super) mapping: Arc<Mapping>,
    pub(super) range: RamRange,
    /// Where the region starts in the mapping and in every file that holds this RAM, in bytes.
    pub(super) file_offset: u64,
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
