//! One reservation of host addresses with RAM behind it.
//!
//! `unsafe` is here because memory that a guest shares is a raw mapping by nature: it is made with `mmap`, and it is
//! read and written while the guest does the same. Everything that leaves this file is a `VolatileSlice`, bounded by
//! the mapping it borrows from.
#![expect(unsafe_code, reason = "mmap and madvise, and slices of memory that a guest writes")]

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;

use vm_memory::volatile_memory::VolatileSlice;

use super::discard::Watchers;
use super::reservation::reserve_aligned;
use super::{Backing, BackingKind, RamError, Sharing, memfd};
use crate::page::{PageIndex, PageRange, PageSize};

/// A mapping of `size` bytes whose first byte is aligned to 2 MiB.
#[derive(Debug)]
pub(super) struct Mapping {
    base: NonNull<u8>,
    size: usize,
    backing: Backing,
    /// The memfd, or the saved file, that it maps.
    file: Option<File>,
    pub(super) watchers: Watchers,
}

// SAFETY: the mapping is plain memory that belongs to no thread. All access goes through `VolatileSlice`.
unsafe impl Send for Mapping {}
// SAFETY: as above; concurrent access is what guest memory is for, and it is volatile.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps RAM of `backing`, over a memfd of its own where that has one.
    pub(super) fn new(size_bytes: u64, backing: Backing) -> Result<Self, RamError> {
        let memfd = backing.has_page_cache().then(|| memfd::create(size_bytes, backing)).transpose()?;
        Self::over(size_bytes, backing, memfd)
    }

    /// Maps RAM over a memfd that somebody else made.
    pub(super) fn over_memfd(size_bytes: u64, memfd: File, sharing: Sharing) -> Result<Self, RamError> {
        let backing = memfd::examine(&memfd, size_bytes, sharing)?;
        Self::over(size_bytes, backing, Some(memfd))
    }

    /// Maps a saved memory file, of which the guest has a copy of each page that it writes.
    pub(super) fn over_file(size_bytes: u64, file: File) -> Result<Self, RamError> {
        // Of a block device, metadata tells no length.
        let found_bytes = (&file).seek(SeekFrom::End(0));
        let found_bytes = found_bytes.map_err(|error| RamError::host("size up the memory file", error))?;
        if found_bytes != size_bytes {
            return Err(RamError::FileSize { wanted_bytes: size_bytes, found_bytes });
        }
        Self::over(size_bytes, Backing::FilePrivate, Some(file))
    }

    fn over(size_bytes: u64, backing: Backing, file: Option<File>) -> Result<Self, RamError> {
        let too_large = |_| RamError::host("address memory of that size", io::ErrorKind::OutOfMemory.into());
        let size = usize::try_from(size_bytes).map_err(too_large)?;
        let base = reserve_aligned(size)?;
        let mapping = Self { base, size, backing, file, watchers: Watchers::default() };
        mapping.map_over_reservation()?;
        mapping.advise()?;
        Ok(mapping)
    }

    pub(super) fn backing(&self) -> Backing {
        self.backing
    }

    /// The host virtual address of the first byte.
    pub(super) fn base_address(&self) -> u64 {
        self.base.as_ptr().addr() as u64
    }

    pub(super) fn file(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_ref().map(AsFd::as_fd)
    }

    pub(super) fn memfd(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_ref().filter(|_| self.backing.has_page_cache()).map(AsFd::as_fd)
    }

    /// `count` bytes at `offset`; `None` where they do not lie in the mapping.
    pub(super) fn slice(&self, offset: u64, count: usize) -> Option<VolatileSlice<'_>> {
        let offset = usize::try_from(offset).ok()?;
        let end = offset.checked_add(count)?;
        if end > self.size {
            return None;
        }
        // SAFETY: `offset` is at most `size`, so the pointer stays inside or one past the mapping.
        let start = unsafe { self.base.as_ptr().add(offset) };
        // SAFETY: the bytes from `start` for `count` lie in the mapping, as just checked, and the slice borrows
        // `self`, so it cannot outlive it. Every other access to this memory is volatile too.
        Some(unsafe { VolatileSlice::new(start, count) })
    }

    /// `MADV_REMOVE` where what the guest wrote is in a memfd, whose page cache would keep the content; else
    /// `MADV_DONTNEED`. Of a saved file, which would show again, nothing can be thrown away.
    pub(super) fn discard(&self, range: PageRange) -> io::Result<()> {
        let (offset, len) = self.locate(range)?;
        if range.is_empty() {
            return Ok(());
        }
        if self.backing == Backing::FilePrivate {
            let what =
                "pages of a mapped memory file cannot be thrown away: restore with the backend type Lazy";
            return Err(io::Error::new(io::ErrorKind::Unsupported, what));
        }
        let advice = if self.backing.shares_writes() { libc::MADV_REMOVE } else { libc::MADV_DONTNEED };
        let watchers = self.watchers.current();
        watchers.iter().for_each(|watcher| watcher.before_discard(range));
        // SAFETY: the offset is inside the mapping, as just checked.
        let start = unsafe { self.base.as_ptr().add(offset) };
        // SAFETY: the range is part of this mapping, whose content is volatile to all who read it.
        let result = unsafe { libc::madvise(start.cast(), len, advice) };
        let answer = if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) };
        watchers.iter().for_each(|watcher| watcher.after_discard(range));
        answer
    }

    /// Writes pages of the memfd, not through the mapping.
    pub(super) fn write_cached(&self, range: PageRange, bytes: &[u8]) -> io::Result<()> {
        let memfd = self.cache(range, bytes.len())?;
        // hugetlbfs has no write; `Unsupported` tells it from a bad argument.
        if self.backing.kind() == BackingKind::Hugetlb {
            let what =
                "the page cache of hugetlb cannot be written through its descriptor: copy whole pages in";
            return Err(io::Error::new(io::ErrorKind::Unsupported, what));
        }
        memfd.write_all_at(bytes, range.start.offset())
    }

    /// Reads pages of the memfd, not through the mapping.
    pub(super) fn read_cached(&self, range: PageRange, bytes: &mut [u8]) -> io::Result<()> {
        self.cache(range, bytes.len())?.read_exact_at(bytes, range.start.offset())
    }

    fn cache(&self, range: PageRange, buffer_bytes: usize) -> io::Result<&File> {
        self.locate(range)?;
        if range.bytes() != buffer_bytes as u64 {
            let what = format!("{range} are not {buffer_bytes} bytes: give a buffer of their length");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        self.file.as_ref().filter(|_| self.backing.has_page_cache()).ok_or_else(|| {
            let what = "this guest memory has no page cache: back it with a memfd";
            io::Error::new(io::ErrorKind::Unsupported, what)
        })
    }

    /// Where `range` is in the mapping, and its length in bytes; an error where it is not in it, or not whole pages of
    /// the backing's, which the kernel would round.
    fn locate(&self, range: PageRange) -> io::Result<(usize, usize)> {
        let (start, count, size) = (range.start.0, range.count, self.backing.page_size());
        let invalid = |text| io::Error::new(io::ErrorKind::InvalidInput, text);
        let end = PageIndex::at_offset(self.size as u64);
        if start.checked_add(count).is_none_or(|range_end| range_end > end.0) {
            return Err(invalid(format!(
                "{count} pages at page {start} are not in guest memory: name pages below {}",
                end.0
            )));
        }
        if !range.is_whole(size) {
            let pages = size.base_pages();
            return Err(invalid(format!(
                "{range} are not whole huge pages: name multiples of {pages} pages"
            )));
        }
        let fits = "an offset into a mapping fits a usize, as its length does";
        Ok((usize::try_from(range.start.offset()).expect(fits), usize::try_from(range.bytes()).expect(fits)))
    }

    fn map_over_reservation(&self) -> Result<(), RamError> {
        let shared = self.backing.shares_writes();
        // hugetlb is reserved on purpose: a page missing from the pool would be a SIGBUS in the running guest.
        let kind = match self.backing {
            Backing::Anonymous { .. } => libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            Backing::Memfd { .. } | Backing::MemfdPrivate | Backing::FilePrivate => libc::MAP_NORESERVE,
            Backing::Hugetlb2M => libc::MAP_ANONYMOUS | libc::MAP_HUGETLB | libc::MAP_HUGE_2MB,
            Backing::HugetlbMemfd { .. } => 0,
        };
        let flags = libc::MAP_FIXED | kind | if shared { libc::MAP_SHARED } else { libc::MAP_PRIVATE };
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: MAP_FIXED replaces exactly the reservation `self` owns; nothing else lives there.
        let mapped =
            unsafe { libc::mmap(self.base.as_ptr().cast(), self.size, prot, flags, self.file_raw(), 0) };
        if mapped != libc::MAP_FAILED {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if self.backing.kind() == BackingKind::Hugetlb && error.raw_os_error() == Some(libc::ENOMEM) {
            return Err(RamError::NoHugePages { wanted: self.size as u64 / PageSize::Huge2M.bytes() });
        }
        Err(RamError::host("map memory", error))
    }

    fn file_raw(&self) -> RawFd {
        self.file.as_ref().map_or(-1, AsRawFd::as_raw_fd)
    }

    fn advise(&self) -> Result<(), RamError> {
        // A core dump of the VMM is for its own state; the guest's memory is neither useful there nor ours to leak.
        self.madvise(libc::MADV_DONTDUMP).map_err(|error| RamError::host("exclude core dumps", error))?;
        if !self.backing.advises_huge_pages() {
            return Ok(());
        }
        match self.madvise(libc::MADV_HUGEPAGE) {
            // EINVAL: a kernel built without transparent huge pages. The guest runs on 4 KiB pages there.
            Err(error) if error.raw_os_error() != Some(libc::EINVAL) => {
                Err(RamError::host("advise huge pages", error))
            }
            _ => Ok(()),
        }
    }

    fn madvise(&self, advice: libc::c_int) -> io::Result<()> {
        // SAFETY: the range is exactly this mapping, and neither advice used here changes its contents.
        let result = unsafe { libc::madvise(self.base.as_ptr().cast(), self.size, advice) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `self` owns the range, and no slice of it can outlive `self`.
        let result = unsafe { libc::munmap(self.base.as_ptr().cast(), self.size) };
        debug_assert_eq!(result, 0, "munmap of an owned mapping fails only on a wrong range");
    }
}

/// The host's physical memory in bytes.
pub(super) fn host_ram_bytes() -> u64 {
    // SAFETY: sysconf reads a value and has no preconditions.
    let pages = unsafe { libc::sysconf(libc::_SC_PHYS_PAGES) };
    // SAFETY: as above.
    let page_bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    // Negative is "unknown"; then nothing is refused for its size.
    u64::try_from(pages).ok().zip(u64::try_from(page_bytes).ok()).map_or(u64::MAX, |(n, size)| n * size)
}
