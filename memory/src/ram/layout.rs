//! Where in a guest its RAM is, and which layouts can be.

use vm_memory::GuestAddress;

use super::RamError;
use crate::page::PageSize;

/// One piece of a guest's physical address space that is RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RamRange {
    /// The guest physical address of its first byte, a multiple of 2 MiB.
    pub gpa: GuestAddress,
    /// Its length in bytes, a multiple of the backing's page size.
    pub size_bytes: u64,
}

/// Checks order and alignment, and gives the sum of the sizes.
pub(super) fn check_layout(ranges: &[RamRange], page_size: PageSize) -> Result<u64, RamError> {
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
