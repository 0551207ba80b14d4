//! Huge pages that are filled here and moved into a guest whole.
//!
//! `UFFDIO_COPY` allocates pages of 4 KiB only. A huge page gets into registered memory by `UFFDIO_MOVE`: it is
//! filled in a buffer of this process's own, and then its mapping, not its content, changes place.
//!
//! `unsafe` is here because such a buffer is a mapping, whose pages come and go.
#![expect(unsafe_code, reason = "a mapping at an alignment, lent as a slice")]

use std::io;
use std::ptr::{self, NonNull};

use crate::page::PageSize;

/// A buffer of private anonymous memory, aligned to 2 MiB and advised to be huge pages.
#[derive(Debug)]
pub struct Staging {
    reservation: NonNull<u8>,
    reserved_bytes: usize,
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the memory belongs to the value, whichever thread has it.
unsafe impl Send for Staging {}

impl Staging {
    /// A buffer of `huge_pages` times 2 MiB.
    ///
    /// # Errors
    ///
    /// When the host gives no memory.
    pub fn new(huge_pages: usize) -> io::Result<Self> {
        let huge = usize::try_from(PageSize::Huge2M.bytes()).expect("2 MiB fits any usize this runs on");
        let too_large = || io::Error::from(io::ErrorKind::OutOfMemory);
        let bytes = huge_pages.checked_mul(huge).filter(|bytes| *bytes > 0).ok_or_else(too_large)?;
        let reserved_bytes = bytes.checked_add(huge).ok_or_else(too_large)?;
        let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing.
        let mapped =
            unsafe { libc::mmap(ptr::null_mut(), reserved_bytes, prot, flags | libc::MAP_NORESERVE, -1, 0) };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let mapped: *mut u8 = mapped.cast();
        let head = mapped.addr().next_multiple_of(huge) - mapped.addr();
        // SAFETY: `head` is less than 2 MiB, and the mapping is `bytes` and 2 MiB long.
        let start = unsafe { mapped.add(head) };
        let not_null = "a mapping is not at address 0";
        let staging = Self {
            reservation: NonNull::new(mapped).expect(not_null),
            reserved_bytes,
            start: NonNull::new(start).expect(not_null),
            bytes,
        };
        // SAFETY: the range is this mapping's. An error means a kernel without huge pages: the buffer works with
        // small ones.
        let _ = unsafe { libc::madvise(start.cast(), bytes, libc::MADV_HUGEPAGE) };
        Ok(staging)
    }

    /// Its length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether it has no bytes, which it never does.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// What is in it. Pages that were moved away read as zero.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: the mapping is that long, initialized (anonymous memory is zero), and borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes) }
    }

    /// What is in it.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping is that long, initialized (anonymous memory is zero), and borrowed.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.bytes) }
    }

    /// Has the kernel put pages under all of it, and clear those that are new: `MADV_POPULATE_WRITE`, of Linux 5.14. On
    /// an older kernel, or where memory is short, they come when they are written.
    pub(crate) fn populate(&mut self) {
        // SAFETY: the range is this mapping's, and its content stays as it is.
        let _ = unsafe { libc::madvise(self.start.as_ptr().cast(), self.bytes, libc::MADV_POPULATE_WRITE) };
    }

    /// Gives its pages back to the kernel: it reads as zero afterwards.
    pub(crate) fn forget(&mut self) {
        // SAFETY: the range is this mapping's, is private and anonymous, and is borrowed exclusively.
        let result = unsafe { libc::madvise(self.start.as_ptr().cast(), self.bytes, libc::MADV_DONTNEED) };
        debug_assert_eq!(result, 0, "pages that are not locked can be given back");
    }

    /// The address of its first byte, for a move of `bytes`.
    pub(crate) fn address_of(&self, bytes: u64) -> u64 {
        assert!(bytes <= self.bytes as u64, "more bytes than the staging buffer has");
        self.start.as_ptr().addr() as u64
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // SAFETY: the mapping belongs to this value, and nothing borrowed from it is left.
        let result = unsafe { libc::munmap(self.reservation.as_ptr().cast(), self.reserved_bytes) };
        debug_assert_eq!(result, 0, "munmap of an owned mapping fails only on a wrong range");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_keeps_its_content_when_it_is_populated_and_loses_it_when_it_is_forgotten() {
        let mut staging = Staging::new(1).unwrap();
        assert_eq!(staging.len(), 2 << 20);
        staging.bytes_mut()[4096] = 7;
        staging.populate();
        assert_eq!(staging.bytes()[4096], 7);
        staging.forget();
        assert!(staging.bytes().iter().all(|byte| *byte == 0));
    }
}
