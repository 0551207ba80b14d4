//! Paging memory out on purpose.
//!
//! `unsafe` is here for `madvise`, which keeps the content.
#![expect(unsafe_code, reason = "madvise on guest memory")]

use memory::{GuestRam, PageRange};

/// Asks the kernel to page `range` out; it may decline.
pub(super) fn page_out(ram: &GuestRam, range: PageRange) {
    let address = ram.base_address() + range.start.offset();
    let fits = "addresses of this process fit its pointers";
    let start = std::ptr::without_provenance_mut(usize::try_from(address).expect(fits));
    // SAFETY: the range is the RAM's, which is volatile memory, and its content stays what it is.
    unsafe { libc::madvise(start, usize::try_from(range.bytes()).expect(fits), libc::MADV_PAGEOUT) };
}
