//! The system calls of userfaultfd, each as a function of numbers.
//!
//! Source of the numbers: `include/uapi/linux/userfaultfd.h` of Linux 6.18.
//!
//! `unsafe` is here because ioctls take addresses. What they may be used on is decided by the callers:
//! [`super::Registered`] for guest memory.
#![expect(unsafe_code, reason = "ioctls that no crate wraps in full")]

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// `UFFD_API`, the only version there is.
const UFFD_API: u64 = 0xaa;
/// `_IO(0xaa, 0x00)`, on `/dev/userfaultfd`.
const USERFAULTFD_IOC_NEW: libc::c_ulong = 0xaa00;
const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
const UFFDIO_COPY: libc::c_ulong = 0xc028_aa03;
const UFFDIO_ZEROPAGE: libc::c_ulong = 0xc020_aa04;
const UFFDIO_MOVE: libc::c_ulong = 0xc028_aa05;
const UFFDIO_WRITEPROTECT: libc::c_ulong = 0xc018_aa06;
const UFFDIO_CONTINUE: libc::c_ulong = 0xc020_aa07;
const UFFDIO_POISON: libc::c_ulong = 0xc020_aa08;

/// Bits of the ioctls' modes.
pub(super) mod mode {
    /// Of every verb that places: leave waiting threads asleep.
    pub(in super::super) const DONTWAKE: u64 = 1;
    /// Of COPY and CONTINUE: place the page write-protected.
    pub(in super::super) const WRITE_PROTECTED: u64 = 2;
    /// Of MOVE: leave out what the source does not have.
    pub(in super::super) const ALLOW_SOURCE_HOLES: u64 = 2;
    /// Of WRITEPROTECT: protect, rather than stop protecting.
    pub(in super::super) const PROTECT: u64 = 1;
}

/// What an ioctl answered: an error number, and how much it says it has done before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Answer {
    /// 0 for success.
    pub(super) errno: i32,
    /// The bytes done; negative repeats the error.
    pub(super) done: i64,
}

pub(super) fn new_from_device(device: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the ioctl takes its flags by value and returns a descriptor or -1.
    let fd = unsafe { libc::ioctl(device, USERFAULTFD_IOC_NEW, libc::O_CLOEXEC | libc::O_NONBLOCK) };
    owned(fd.into())
}

/// `UFFD_USER_MODE_ONLY` is left out: KVM's faults come from kernel mode.
pub(super) fn userfaultfd() -> io::Result<OwnedFd> {
    // SAFETY: the call takes its flags by value and returns a descriptor or -1.
    owned(unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK) })
}

fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    match i32::try_from(fd) {
        // SAFETY: the kernel just returned this descriptor, and nobody else owns it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Asks for `features` and is told of all there are.
pub(super) fn api(fd: RawFd, features: u64) -> io::Result<u64> {
    let mut api = [UFFD_API, features, 0];
    match request(fd, UFFDIO_API, &mut api) {
        0 => Ok(api[1]),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// # Safety
///
/// `src` is memory of `len` bytes that stays and is not written meanwhile.
pub(super) unsafe fn copy(fd: RawFd, dst: u64, src: u64, len: u64, mode: u64) -> Answer {
    answered_last(fd, UFFDIO_COPY, [dst, src, len, mode, 0])
}

/// # Safety
///
/// `src` is memory of `len` bytes that nobody else uses: its pages are gone afterwards.
pub(super) unsafe fn move_pages(fd: RawFd, dst: u64, src: u64, len: u64, mode: u64) -> Answer {
    answered_last(fd, UFFDIO_MOVE, [dst, src, len, mode, 0])
}

pub(super) fn zeropage(fd: RawFd, dst: u64, len: u64, mode: u64) -> Answer {
    answered_last(fd, UFFDIO_ZEROPAGE, [dst, len, mode, 0])
}

pub(super) fn continue_pages(fd: RawFd, dst: u64, len: u64, mode: u64) -> Answer {
    answered_last(fd, UFFDIO_CONTINUE, [dst, len, mode, 0])
}

pub(super) fn poison(fd: RawFd, dst: u64, len: u64, mode: u64) -> Answer {
    answered_last(fd, UFFDIO_POISON, [dst, len, mode, 0])
}

/// Gives no count: it is all or an error.
pub(super) fn write_protect(fd: RawFd, dst: u64, len: u64, mode: u64) -> Answer {
    let errno = request(fd, UFFDIO_WRITEPROTECT, &mut [dst, len, mode]);
    Answer { errno, done: if errno == 0 { len.cast_signed() } else { 0 } }
}

/// An ioctl whose structure is all 64-bit words, the last of which the kernel writes its count to.
fn answered_last<const WORDS: usize>(fd: RawFd, number: libc::c_ulong, mut words: [u64; WORDS]) -> Answer {
    let errno = request(fd, number, &mut words);
    Answer { errno, done: words[WORDS - 1].cast_signed() }
}

fn request<const WORDS: usize>(fd: RawFd, number: libc::c_ulong, words: &mut [u64; WORDS]) -> i32 {
    debug_assert_eq!(
        number >> 16 & 0x3fff,
        size_of_val(words) as u64,
        "the number tells the structure's size"
    );
    // SAFETY: the kernel reads and writes one structure of the size that `number` tells, which `words` is. Addresses
    // in it are the caller's business.
    let result = unsafe { libc::ioctl(fd, number, words.as_mut_ptr()) };
    if result >= 0 { 0 } else { io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO) }
}
