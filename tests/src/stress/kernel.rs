//! What is asked of the kernel directly.
//!
//! `unsafe` is here for `madvise`, which keeps the content, and for a signal handler.
#![expect(unsafe_code, reason = "madvise on guest memory, and a signal handler")]

use memory::{GuestRam, PageRange};

/// Asks the kernel to page `range` out; it may decline.
pub(super) fn page_out(ram: &GuestRam, range: PageRange) {
    let address = ram.base_address() + range.start.offset();
    let fits = "addresses of this process fit its pointers";
    let start = std::ptr::without_provenance_mut(usize::try_from(address).expect(fits));
    // SAFETY: the range is the RAM's, which is volatile memory, and its content stays what it is.
    unsafe { libc::madvise(start, usize::try_from(range.bytes()).expect(fits), libc::MADV_PAGEOUT) };
}

/// Has a thread that touches a lost page stand still, so that the watchdog tells why the page was lost.
pub(super) fn stand_still_at_lost_pages() {
    extern "C" fn stand_still(_: libc::c_int) {
        loop {
            // SAFETY: the call has no preconditions, and may be made in a signal handler.
            unsafe { libc::pause() };
        }
    }
    let handler: extern "C" fn(libc::c_int) = stand_still;
    // SAFETY: the handler calls nothing but `pause`.
    unsafe { libc::signal(libc::SIGBUS, handler as *const () as libc::sighandler_t) };
}
