//! `PAGEMAP_SCAN`: finds the pages that were written (Linux 6.7).
//!
//! Source: `include/uapi/linux/fs.h` of Linux 6.18, and Documentation/admin-guide/mm/pagemap.rst.
//!
//! `unsafe` is here for one ioctl, whose structure names a buffer.
#![expect(unsafe_code, reason = "an ioctl that no crate wraps")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use crate::page::{PageIndex, PageRange};
use crate::ram::GuestRam;

/// `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: libc::c_ulong = 0xc060_6610;
/// `PM_SCAN_WP_MATCHING`, `PM_SCAN_CHECK_WPASYNC`.
const WP_MATCHING: u64 = 1 << 0;
const CHECK_WPASYNC: u64 = 1 << 1;
/// `PAGE_IS_WRITTEN` and others: what a page is.
const PAGE_IS_WRITTEN: u64 = 1 << 1;
const PAGE_IS_FILE: u64 = 1 << 2;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;
const PAGE_IS_PFNZERO: u64 = 1 << 5;
/// How many ranges one call may give.
const RANGES_MAX: usize = 512;

/// `struct pm_scan_arg`.
#[repr(C)]
#[derive(Debug, Default)]
struct ScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// `struct page_region`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

/// Why pages could not be looked for.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// The process may not look at its own page map.
    #[error("cannot open /proc/self/pagemap")]
    Open(#[source] io::Error),
    /// This kernel cannot scan.
    #[error("this kernel has no PAGEMAP_SCAN: it needs Linux 6.7")]
    Unsupported,
    /// It came no further.
    #[error("the kernel's scan does not go past page {}: name whole pages of hugetlb memory", .0.0)]
    Stuck(PageIndex),
    /// It refused.
    #[error("the kernel refused to scan guest memory (written pages need WP_ASYNC)")]
    Kernel(#[source] io::Error),
}

/// Looks at the page map of this process.
#[derive(Debug)]
pub struct PagemapScan(File);

impl PagemapScan {
    /// Opens the page map.
    ///
    /// # Errors
    ///
    /// [`ScanError`], where there is none or the kernel cannot scan it.
    pub fn open() -> Result<Self, ScanError> {
        let pagemap = File::open("/proc/self/pagemap").map_err(ScanError::Open)?;
        if is_scanned(&pagemap) { Ok(Self(pagemap)) } else { Err(ScanError::Unsupported) }
    }

    /// Gives every page of `range` that was written since it was last protected, and protects it again, in one step
    /// for each page: no write is lost. The memory is registered with `WP_ASYNC`.
    ///
    /// Of a private mapping these are pages of its own: what shows through from a file, and the zero page that a reader
    /// is given, are neither given nor protected, as a write there makes a page that is not protected. Nor is what no
    /// page table knows of. Of a shared mapping a page that the host has unmapped counts as written.
    ///
    /// # Errors
    ///
    /// [`ScanError::Kernel`].
    pub fn take_written(
        &self,
        ram: &GuestRam,
        range: PageRange,
        sink: &mut dyn FnMut(PageRange),
    ) -> Result<(), ScanError> {
        let mut request = ScanArg {
            flags: WP_MATCHING | CHECK_WPASYNC,
            category_mask: PAGE_IS_WRITTEN,
            return_mask: PAGE_IS_WRITTEN,
            ..ScanArg::default()
        };
        if !ram.backing().shares_writes() {
            request.category_inverted = PAGE_IS_FILE | PAGE_IS_PFNZERO;
            request.category_mask |= request.category_inverted;
            request.category_anyof_mask = PAGE_IS_PRESENT | PAGE_IS_SWAPPED;
        }
        self.scan(request, ram, range, sink)
    }

    fn scan(
        &self,
        mut request: ScanArg,
        ram: &GuestRam,
        range: PageRange,
        sink: &mut dyn FnMut(PageRange),
    ) -> Result<(), ScanError> {
        ram.assert_has(range);
        let base = ram.base_address();
        let mut regions = [Region::default(); RANGES_MAX];
        request.size = size_of::<ScanArg>() as u64;
        request.end = base + range.end().offset();
        request.walk_end = base + range.start.offset();
        while request.walk_end < request.end {
            request.start = request.walk_end;
            request.vec = regions.as_mut_ptr().addr() as u64;
            request.vec_len = regions.len() as u64;
            // SAFETY: the kernel reads and writes one `struct pm_scan_arg`, and at most as many regions as there are.
            let found = unsafe { libc::ioctl(self.0.as_raw_fd(), PAGEMAP_SCAN, &raw mut request) };
            let found = usize::try_from(found).map_err(|_| ScanError::Kernel(io::Error::last_os_error()))?;
            for region in &regions[..found.min(RANGES_MAX)] {
                let page = |address: u64| PageIndex::at_offset(address - base);
                sink(PageRange::between(page(region.start), page(region.end)));
            }
            // The kernel stops without a word at what it cannot do, a part of a hugetlb page for one.
            if request.walk_end <= request.start {
                return Err(ScanError::Stuck(PageIndex::at_offset(request.start - base)));
            }
        }
        Ok(())
    }
}

/// Whether this process can scan its page map.
pub(super) fn is_supported() -> bool {
    PagemapScan::open().is_ok()
}

/// A kernel that does not know the request answers `ENOTTY`; one that does scans an empty range.
fn is_scanned(pagemap: &File) -> bool {
    let mut request = ScanArg { size: size_of::<ScanArg>() as u64, ..ScanArg::default() };
    // SAFETY: the ranges are empty, so the kernel follows no pointer but the one to the structure.
    let result = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, &raw mut request) };
    result >= 0 || io::Error::last_os_error().raw_os_error() != Some(libc::ENOTTY)
}
