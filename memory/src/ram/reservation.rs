//! Host addresses for guest RAM, aligned so that a huge page of the guest can be one of the host.
//!
//! `unsafe` is here because a reservation is a mapping from which the ends are cut.
#![expect(unsafe_code, reason = "mmap has no form that reserves at an alignment")]

use std::io;
use std::ptr::{self, NonNull};

use super::RamError;
use crate::page::PageSize;

/// Reserves `size` bytes of addresses, aligned to 2 MiB, by cutting them out of a larger reservation.
pub(super) fn reserve_aligned(size: usize) -> Result<NonNull<u8>, RamError> {
    let step = "reserve addresses";
    let huge = usize::try_from(PageSize::Huge2M.bytes()).expect("2 MiB fits any usize this runs on");
    let mapped_size = size.checked_next_multiple_of(huge).and_then(|whole| whole.checked_add(huge));
    let mapped_size = mapped_size.ok_or_else(|| RamError::host(step, io::ErrorKind::OutOfMemory.into()))?;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing.
    let start = unsafe { libc::mmap(ptr::null_mut(), mapped_size, libc::PROT_NONE, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        return Err(RamError::host(step, io::Error::last_os_error()));
    }
    let start: *mut u8 = start.cast();
    let head = start.addr().next_multiple_of(huge) - start.addr();
    let tail = mapped_size - head - size.next_multiple_of(4096);
    // SAFETY: `head` is less than 2 MiB, and the reservation is `size` plus at least 2 MiB long.
    let base = unsafe { start.add(head) };
    // SAFETY: the end of the aligned part, rounded up to a page, lies within the reservation.
    let end = unsafe { base.add(size.next_multiple_of(4096)) };
    for (unused, unused_size) in [(start, head), (end, tail)] {
        if unused_size > 0 {
            // SAFETY: the range is part of the reservation made above, and nothing points into it.
            let result = unsafe { libc::munmap(unused.cast(), unused_size) };
            debug_assert_eq!(result, 0, "munmap of a part of a fresh reservation");
        }
    }
    NonNull::new(base).ok_or_else(|| RamError::host(step, io::ErrorKind::AddrNotAvailable.into()))
}
