//! Guest RAM whose faults come to a userfaultfd, and the verbs that resolve them.
//!
//! `unsafe` is here for the two verbs that take a source address. Registering is safe: the memory is a
//! [`GuestRam`]'s, which is only ever read and written as volatile memory, and it stays for as long as this does.
#![expect(unsafe_code, reason = "COPY and MOVE take addresses")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

use userfaultfd::{RegisterMode, Uffd};

use super::events::{self, Event, EventBuffer};
use super::ioctl::{self, mode};
use super::placed::{Placed, Wake};
use crate::page::PageRange;
use crate::ram::GuestRam;

/// How many pages are let go at once. The kernel looks at each, and has the mappings to itself meanwhile: 32 MiB of base
/// pages take it 0.4 ms.
const UNREGISTERED_AT_ONCE: u64 = 8192;

/// What is told of memory. At least one has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Modes {
    /// Pages that are not there.
    pub missing: bool,
    /// Writes to pages that are protected.
    pub write_protect: bool,
    /// Pages that are in the page cache and not mapped.
    pub minor: bool,
}

/// Why memory could not be registered.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// There was nothing to be told of.
    #[error("memory cannot be registered for nothing: name at least one kind of fault")]
    NoModes,
    /// It is registered with another userfaultfd.
    #[error("guest memory is registered with another userfaultfd: end the other registration first")]
    Busy,
    /// This kernel cannot do it for this kind of memory.
    #[error(
        "this kernel cannot do that for this kind of memory: `faultless doctor` says which features are missing"
    )]
    Unsupported,
    /// The kernel refused.
    #[error("the kernel refused to register guest memory")]
    Kernel(#[source] io::Error),
}

/// Guest RAM and the userfaultfd that serves it.
///
/// Dropping it closes the descriptor, and whoever waits for a page then is given a zero page by the kernel, silently.
/// So it is kept as long as a guest can fault; [`unregister`](Self::unregister) ends it in good order.
#[derive(Debug)]
pub struct Registered {
    uffd: Uffd,
    ram: GuestRam,
}

impl Registered {
    /// Registers all of `ram` with `uffd`, which [`super::open`] gave.
    ///
    /// # Errors
    ///
    /// [`RegisterError`], with what is in the way.
    pub fn new(uffd: OwnedFd, ram: GuestRam, modes: Modes) -> Result<Self, RegisterError> {
        // SAFETY: the descriptor is a userfaultfd, and is given up by its owner.
        let uffd = unsafe { Uffd::from_raw_fd(uffd.into_raw_fd()) };
        let flags = [
            (modes.missing, RegisterMode::MISSING),
            (modes.write_protect, RegisterMode::WRITE_PROTECT),
            (modes.minor, RegisterMode::MINOR),
        ];
        let flags: RegisterMode =
            flags.into_iter().filter(|(wanted, _)| *wanted).map(|(_, flag)| flag).collect();
        if flags.is_empty() {
            return Err(RegisterError::NoModes);
        }
        let registered = Self { uffd, ram };
        let (start, len) = registered.whole();
        registered.uffd.register_with_mode(start, len, flags).map_err(refused)?;
        Ok(registered)
    }

    /// The RAM.
    #[must_use]
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// What becomes readable when there are events.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open for as long as `self` is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.raw()) }
    }

    /// A second descriptor of the same userfaultfd: while it is open, a guest that faults waits.
    ///
    /// # Errors
    ///
    /// When the host gives no descriptor.
    pub fn duplicate_fd(&self) -> io::Result<OwnedFd> {
        self.fd().as_fd().try_clone_to_owned()
    }

    /// Reads the events there are, up to a batch, without waiting, and hands them to `sink` in their order; gives how
    /// many there were.
    ///
    /// # Errors
    ///
    /// What the kernel answers.
    pub fn read_events(&self, buffer: &mut EventBuffer, sink: &mut dyn FnMut(Event)) -> io::Result<usize> {
        events::read(&self.uffd, self.ram.base_address(), buffer, sink)
    }

    /// Places `bytes`, which are whole pages, at `range`, which is as long: `UFFDIO_COPY`.
    pub fn copy(&self, range: PageRange, bytes: &[u8], protected: bool, wake: Wake) -> Placed {
        assert_eq!(range.bytes(), bytes.len() as u64, "as many bytes as pages");
        let bits = wake.bit() | if protected { mode::WRITE_PROTECTED } else { 0 };
        let source = bytes.as_ptr().addr() as u64;
        // SAFETY: the source is a borrowed slice of that length.
        Placed::of(range, unsafe {
            ioctl::copy(self.raw(), self.address(range), source, range.bytes(), bits)
        })
    }

    /// Places zero pages: `UFFDIO_ZEROPAGE`. Not on hugetlb.
    pub fn zero(&self, range: PageRange, wake: Wake) -> Placed {
        Placed::of(range, ioctl::zeropage(self.raw(), self.address(range), range.bytes(), wake.bit()))
    }

    /// Maps what the page cache has: `UFFDIO_CONTINUE`.
    pub fn map_cached(&self, range: PageRange, protected: bool, wake: Wake) -> Placed {
        let bits = wake.bit() | if protected { mode::WRITE_PROTECTED } else { 0 };
        Placed::of(range, ioctl::continue_pages(self.raw(), self.address(range), range.bytes(), bits))
    }

    /// Moves the pages of `staging` in, whole: `UFFDIO_MOVE`. They are gone from there where it succeeds; what could
    /// not be moved stays.
    pub fn move_in(&self, range: PageRange, staging: &mut crate::staging::Staging, wake: Wake) -> Placed {
        let source = staging.address_of(range.bytes());
        let bits = wake.bit() | mode::ALLOW_SOURCE_HOLES;
        // SAFETY: the staging buffer is borrowed exclusively, is that long, and expects to lose its pages.
        Placed::of(range, unsafe {
            ioctl::move_pages(self.raw(), self.address(range), source, range.bytes(), bits)
        })
    }

    /// Makes every access to the pages a memory error: `UFFDIO_POISON`. Pages that are there stay. A later
    /// [`copy`](Self::copy) mends a page, and a discard makes it missing again.
    ///
    /// Whoever touches one gets SIGBUS, as `BUS_MCEERR_AR`; a kernel without `CONFIG_MEMORY_FAILURE` says
    /// `BUS_ADRERR` to threads of this process.
    pub fn poison(&self, range: PageRange, wake: Wake) -> Placed {
        Placed::of(range, ioctl::poison(self.raw(), self.address(range), range.bytes(), wake.bit()))
    }

    /// Protects pages against writes: `UFFDIO_WRITEPROTECT`.
    pub fn protect(&self, range: PageRange) -> Placed {
        Placed::of(range, ioctl::write_protect(self.raw(), self.address(range), range.bytes(), mode::PROTECT))
    }

    /// Lets pages be written again, and whoever waits to do so go on.
    pub fn unprotect(&self, range: PageRange) -> Placed {
        Placed::of(range, ioctl::write_protect(self.raw(), self.address(range), range.bytes(), 0))
    }

    /// Lets whoever waits for one of the pages try again: `UFFDIO_WAKE`.
    ///
    /// # Errors
    ///
    /// What the kernel answers.
    pub fn wake(&self, range: PageRange) -> io::Result<()> {
        self.ram.assert_has(range);
        let (start, len) = self.pointer(range);
        self.uffd.wake(start, len).map_err(events::into_io)
    }

    /// Ends the registration, and lets everyone who waits go on. Pages that are missing are zero from then on: only
    /// for when all are there. A part at a time, so that nobody is kept from memory for long.
    ///
    /// # Errors
    ///
    /// What the kernel answers. A part of the memory may not be registered any more; asking again goes on with the rest.
    pub fn unregister(&self) -> io::Result<()> {
        let mut rest = self.ram.pages();
        while !rest.is_empty() {
            let (part, later) = rest.split_at(UNREGISTERED_AT_ONCE);
            let (start, len) = self.pointer(part);
            self.uffd.unregister(start, len).map_err(events::into_io)?;
            // Unregistering wakes those who miss a page, and not those who wait to write one.
            self.uffd.wake(start, len).map_err(events::into_io)?;
            rest = later;
        }
        Ok(())
    }

    fn raw(&self) -> RawFd {
        self.uffd.as_raw_fd()
    }

    fn address(&self, range: PageRange) -> u64 {
        self.ram.assert_has(range);
        self.ram.base_address() + range.start.offset()
    }

    fn pointer(&self, range: PageRange) -> (*mut libc::c_void, usize) {
        let address = usize::try_from(self.ram.base_address() + range.start.offset());
        let len = usize::try_from(range.bytes());
        let fits = "addresses of this process fit its own pointers";
        (std::ptr::without_provenance_mut(address.expect(fits)), len.expect(fits))
    }

    fn whole(&self) -> (*mut libc::c_void, usize) {
        self.pointer(self.ram.pages())
    }
}

fn refused(error: userfaultfd::Error) -> RegisterError {
    let error = events::into_io(error);
    match error.raw_os_error() {
        Some(libc::EBUSY) => RegisterError::Busy,
        Some(libc::EINVAL) => RegisterError::Unsupported,
        _ => RegisterError::Kernel(error),
    }
}
