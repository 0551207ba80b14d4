//! One reservation of host addresses with RAM behind it.
//!
//! `unsafe` is here because memory that a guest shares is a raw mapping by nature: it is made with `mmap`, and it is
//! read and written while the guest does the same. Everything that leaves this file is a `VolatileSlice`, bounded by
//! the mapping it borrows from.
#![expect(
    unsafe_code,
    reason = "mmap, madvise and memfd_create have no safe form that reserves at an alignment"
)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::{self, NonNull};

use vm_memory::volatile_memory::VolatileSlice;

use super::{Backing, RamError};
use crate::page::{PageRange, PageSize};

/// A mapping of `size` bytes whose first byte is aligned to 2 MiB.
#[derive(Debug)]
pub(super) struct Mapping {
    base: NonNull<u8>,
    size: usize,
    memfd: Option<OwnedFd>,
}

// SAFETY: the mapping is plain memory that belongs to no thread. All access goes through `VolatileSlice`.
unsafe impl Send for Mapping {}
// SAFETY: as above; concurrent access is what guest memory is for, and it is volatile.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Reserves addresses and maps RAM there.
    pub(super) fn new(size_bytes: u64, backing: Backing) -> Result<Self, RamError> {
        let too_large = |_| host_error("address memory of that size", io::ErrorKind::OutOfMemory.into());
        let size = usize::try_from(size_bytes).map_err(too_large)?;
        let memfd = match backing {
            Backing::Memfd { .. } => Some(create_memfd(size_bytes)?),
            Backing::Anonymous { .. } | Backing::Hugetlb2M => None,
        };
        let base = reserve_aligned(size)?;
        let mapping = Self { base, size, memfd };
        mapping.map_over_reservation(backing)?;
        mapping.advise(backing)?;
        Ok(mapping)
    }

    /// The host virtual address of the first byte.
    pub(super) fn base_address(&self) -> u64 {
        self.base.as_ptr().addr() as u64
    }

    pub(super) fn memfd(&self) -> Option<BorrowedFd<'_>> {
        self.memfd.as_ref().map(AsFd::as_fd)
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

    /// `MADV_DONTNEED` for private memory, `MADV_REMOVE` for a memfd, whose page cache would keep the content.
    pub(super) fn discard(&self, range: PageRange) -> io::Result<()> {
        let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
        let offset = usize::try_from(range.start.offset()).map_err(|_| invalid())?;
        let len = usize::try_from(range.bytes()).map_err(|_| invalid())?;
        if offset.checked_add(len).is_none_or(|end| end > self.size) {
            return Err(invalid());
        }
        let advice = if self.memfd.is_some() { libc::MADV_REMOVE } else { libc::MADV_DONTNEED };
        // SAFETY: the offset is inside the mapping, as just checked.
        let start = unsafe { self.base.as_ptr().add(offset) };
        // SAFETY: the range is part of this mapping, whose content is volatile to all who read it.
        let result = unsafe { libc::madvise(start.cast(), len, advice) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    fn map_over_reservation(&self, backing: Backing) -> Result<(), RamError> {
        let (flags, fd) = match backing {
            Backing::Anonymous { .. } => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE, -1),
            Backing::Memfd { .. } => (libc::MAP_SHARED | libc::MAP_NORESERVE, self.memfd_raw()),
            // Reserved on purpose: a page missing from the pool would be a SIGBUS in the running guest.
            Backing::Hugetlb2M => {
                (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB | libc::MAP_HUGE_2MB, -1)
            }
        };
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: MAP_FIXED replaces exactly the reservation `self` owns; nothing else lives there.
        let mapped =
            unsafe { libc::mmap(self.base.as_ptr().cast(), self.size, prot, flags | libc::MAP_FIXED, fd, 0) };
        if mapped != libc::MAP_FAILED {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if backing == Backing::Hugetlb2M && error.raw_os_error() == Some(libc::ENOMEM) {
            return Err(RamError::NoHugePages { wanted: self.size as u64 / PageSize::Huge2M.bytes() });
        }
        Err(host_error("map memory", error))
    }

    fn memfd_raw(&self) -> RawFd {
        self.memfd.as_ref().map_or(-1, AsRawFd::as_raw_fd)
    }

    fn advise(&self, backing: Backing) -> Result<(), RamError> {
        // A core dump of the VMM is for its own state; the guest's memory is neither useful there nor ours to leak.
        self.madvise(libc::MADV_DONTDUMP).map_err(|error| host_error("exclude core dumps", error))?;
        match backing {
            Backing::Anonymous { transparent_huge_pages: true }
            | Backing::Memfd { transparent_huge_pages: true } => self.advise_huge_pages(),
            Backing::Anonymous { .. } | Backing::Memfd { .. } | Backing::Hugetlb2M => Ok(()),
        }
    }

    fn advise_huge_pages(&self) -> Result<(), RamError> {
        match self.madvise(libc::MADV_HUGEPAGE) {
            // EINVAL: a kernel built without transparent huge pages. The guest runs on 4 KiB pages there.
            Err(error) if error.raw_os_error() != Some(libc::EINVAL) => {
                Err(host_error("advise huge pages", error))
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

/// Reserves `size` bytes of addresses, aligned to 2 MiB, by cutting them out of a larger reservation.
fn reserve_aligned(size: usize) -> Result<NonNull<u8>, RamError> {
    let step = "reserve addresses";
    let huge = usize::try_from(PageSize::Huge2M.bytes()).expect("2 MiB fits any usize this runs on");
    let mapped_size = size.checked_next_multiple_of(huge).and_then(|whole| whole.checked_add(huge));
    let mapped_size = mapped_size.ok_or_else(|| host_error(step, io::ErrorKind::OutOfMemory.into()))?;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing.
    let start = unsafe { libc::mmap(ptr::null_mut(), mapped_size, libc::PROT_NONE, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        return Err(host_error(step, io::Error::last_os_error()));
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
    NonNull::new(base).ok_or_else(|| host_error(step, io::ErrorKind::AddrNotAvailable.into()))
}

fn create_memfd(size_bytes: u64) -> Result<OwnedFd, RamError> {
    // SAFETY: the name is a NUL-terminated literal.
    let fd =
        unsafe { libc::memfd_create(c"guest-ram".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
    if fd < 0 {
        return Err(host_error("create a memfd", io::Error::last_os_error()));
    }
    // SAFETY: the kernel just returned this descriptor, and nobody else owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let size_error = |error| host_error("size a memfd", error);
    let length =
        libc::off_t::try_from(size_bytes).map_err(|_| size_error(io::ErrorKind::OutOfMemory.into()))?;
    // SAFETY: plain system calls on a descriptor we own.
    if unsafe { libc::ftruncate(fd.as_raw_fd(), length) } < 0 {
        return Err(size_error(io::Error::last_os_error()));
    }
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // Sealed, so that whoever is handed the memfd cannot shrink it under the guest, which would be a SIGBUS here.
    // SAFETY: as above.
    if unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, seals) } < 0 {
        return Err(host_error("seal a memfd", io::Error::last_os_error()));
    }
    Ok(fd)
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

fn host_error(step: &'static str, source: io::Error) -> RamError {
    RamError::Host { step, source }
}
