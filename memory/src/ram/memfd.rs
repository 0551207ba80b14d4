//! Memfds that hold guest RAM: made here, or made by somebody else and looked at before they are trusted.
//!
//! `unsafe` is here for system calls on descriptors that std has no function for.
#![expect(unsafe_code, reason = "memfd_create, seals and the kind of a file system")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::{Backing, MemfdError, RamError, Sharing};
use crate::page::PageSize;

/// `HUGETLBFS_MAGIC` of `include/uapi/linux/magic.h`.
const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;

/// A memfd of `size_bytes`, of the pages that `backing` names, whose size stays what it is.
pub(super) fn create(size_bytes: u64, backing: Backing) -> Result<File, RamError> {
    let size = match backing.page_size() {
        PageSize::Base4K => 0,
        PageSize::Huge2M => libc::MFD_HUGETLB | libc::MFD_HUGE_2MB,
    };
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING | size;
    // SAFETY: the name is a NUL-terminated literal.
    let fd = unsafe { libc::memfd_create(c"guest-ram".as_ptr(), flags) };
    if fd < 0 {
        return Err(RamError::host("create a memfd", io::Error::last_os_error()));
    }
    // SAFETY: the kernel just returned this descriptor, and nobody else owns it.
    let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    file.set_len(size_bytes).map_err(|error| RamError::host("size a memfd", error))?;
    // Sealed, so that whoever is handed the memfd cannot shrink it under the guest, which would be a SIGBUS here.
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: a plain system call on a descriptor we own.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } < 0 {
        return Err(RamError::host("seal a memfd", io::Error::last_os_error()));
    }
    Ok(file)
}

/// What RAM over a memfd of somebody else's is backed by, once it is known to be one that cannot harm.
pub(super) fn examine(memfd: &File, wanted_bytes: u64, sharing: Sharing) -> Result<Backing, RamError> {
    // Seals are asked for first: only memfds and their relatives have any, so nothing else passes.
    let seals = seals(memfd)?;
    let backing = backing(memfd, sharing)?;
    let found_bytes = memfd.metadata().map_err(|error| RamError::host("size up a memfd", error))?.len();
    if found_bytes != wanted_bytes {
        return Err(MemfdError::Size { wanted_bytes, found_bytes }.into());
    }
    if seals & libc::F_SEAL_SHRINK == 0 {
        return Err(MemfdError::CanShrink.into());
    }
    let written = libc::F_SEAL_WRITE | libc::F_SEAL_FUTURE_WRITE;
    if sharing == Sharing::Shared && (seals & written != 0 || !is_writable(memfd)?) {
        return Err(MemfdError::ReadOnly.into());
    }
    Ok(backing)
}

fn seals(memfd: &File) -> Result<libc::c_int, RamError> {
    // SAFETY: a plain system call on a descriptor that is borrowed.
    let seals = unsafe { libc::fcntl(memfd.as_raw_fd(), libc::F_GET_SEALS) };
    if seals >= 0 {
        return Ok(seals);
    }
    match io::Error::last_os_error() {
        error if error.raw_os_error() == Some(libc::EINVAL) => Err(MemfdError::NotMemfd.into()),
        error => Err(RamError::host("read the seals of a memfd", error)),
    }
}

fn is_writable(memfd: &File) -> Result<bool, RamError> {
    // SAFETY: a plain system call on a descriptor that is borrowed.
    let flags = unsafe { libc::fcntl(memfd.as_raw_fd(), libc::F_GETFL) };
    if flags < 0 {
        return Err(RamError::host("read the flags of a memfd", io::Error::last_os_error()));
    }
    Ok(flags & libc::O_ACCMODE == libc::O_RDWR)
}

/// The block size that `fstat` gives is no help: shmem tells of its huge pages there, which are not compulsory.
fn backing(memfd: &File, sharing: Sharing) -> Result<Backing, RamError> {
    let mut stat = std::mem::MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: the kernel writes one `struct statfs`.
    if unsafe { libc::fstatfs(memfd.as_raw_fd(), stat.as_mut_ptr()) } < 0 {
        return Err(RamError::host("look at the file system of a memfd", io::Error::last_os_error()));
    }
    // SAFETY: the call succeeded, so it is written.
    let stat = unsafe { stat.assume_init() };
    let (kind, page_bytes) = (stat.f_type.cast_unsigned(), stat.f_bsize.cast_unsigned());
    if kind == HUGETLBFS_MAGIC {
        let fits = page_bytes == PageSize::Huge2M.bytes();
        return if fits {
            Ok(Backing::HugetlbMemfd { sharing })
        } else {
            Err(MemfdError::PageSize { page_bytes }.into())
        };
    }
    Ok(match sharing {
        Sharing::Shared => Backing::Memfd { transparent_huge_pages: false },
        Sharing::Private => Backing::MemfdPrivate,
    })
}
