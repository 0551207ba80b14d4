//! The barest handler of faults that can be written by hand: what the engine is held against.
//!
//! ```text
//!   blocking:  read ─▶ COPY, which wakes ─▶ read …            two system calls a fault
//!   polling:   poll ─▶ read ─▶ COPY, which wakes ─▶ poll …    three, as any loop that can be told something else
//! ```
//!
//! It knows one page, which stays in the cache, and nothing of what can go wrong: it is no handler for a guest.
//!
//! `unsafe` is here for the system calls, which are made without anything in between.
#![expect(unsafe_code, reason = "the barest system calls")]

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileExt;

use memory::GuestRam;
use memory::uffd::{self, Feature, Features, Modes, Registered};

use crate::ram::{PAGE_BYTES, Page};

const UFFDIO_COPY: libc::c_ulong = 0xc028_aa03;
const UFFDIO_WRITEPROTECT: libc::c_ulong = 0xc018_aa06;
/// `UFFD_EVENT_PAGEFAULT`.
const FAULT: u64 = 0x12;

/// How it waits for a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// In `read`.
    Blocking,
    /// In `poll`.
    Polling,
}

/// Memory that a bare loop serves.
pub(crate) struct Bare {
    registered: Registered,
    wait: Wait,
}

/// An event as the kernel writes it: what it is, flags, address, thread.
type Message = [u64; 4];

impl Bare {
    /// Registers `ram`, of which all is missing.
    pub(crate) fn missing(ram: GuestRam, wait: Wait) -> Self {
        let modes = Modes { missing: true, ..Modes::default() };
        Self::new(ram, wait, modes, Features::NONE)
    }

    /// Registers `ram`, which is there, and protects all of it against writes.
    pub(crate) fn protected(ram: GuestRam) -> Self {
        let bare = Self::protectable(ram);
        bare.protect_all();
        bare
    }

    /// Registers `ram` so that all of it can be protected against writes, whether it is there or not.
    pub(crate) fn protectable(ram: GuestRam) -> Self {
        let modes = Modes { write_protect: true, ..Modes::default() };
        let features = [Feature::WRITE_PROTECT, Feature::WRITE_PROTECT_UNPOPULATED];
        Self::new(ram, Wait::Blocking, modes, features.into_iter().fold(Features::NONE, Features::with))
    }

    pub(crate) fn new(ram: GuestRam, wait: Wait, modes: Modes, features: Features) -> Self {
        let fd = uffd::open(features).expect("this kernel has userfaultfd");
        let registered = Registered::new(fd, ram, modes).expect("memory of this kind can be registered");
        if wait == Wait::Blocking {
            let flags = rustix::fs::fcntl_getfl(registered.fd()).expect("an open descriptor has flags");
            rustix::fs::fcntl_setfl(registered.fd(), flags - rustix::fs::OFlags::NONBLOCK)
                .expect("a userfaultfd can block");
        }
        Self { registered, wait }
    }

    /// The memory.
    pub(crate) fn ram(&self) -> &GuestRam {
        self.registered.ram()
    }

    /// Protects all memory against writes, by one request.
    pub(crate) fn protect_all(&self) {
        let ram = self.ram();
        let mut request = [ram.base_address(), ram.size_bytes(), 1];
        // SAFETY: the request is as long as the kernel reads, and changes no content.
        let result = unsafe { libc::ioctl(self.raw(), UFFDIO_WRITEPROTECT, request.as_mut_ptr()) };
        assert_eq!(result, 0, "WRITEPROTECT: {}", std::io::Error::last_os_error());
    }

    /// Gives `page` to whoever misses one, `count` times.
    pub(crate) fn serve_missing(&self, page: &Page, count: usize) {
        for _ in 0..count {
            let offset = self.next_fault() - self.ram().base_address();
            self.copy_from(offset, page.as_ptr().addr() as u64, PAGE_BYTES);
        }
    }

    /// Gives what `file` has there to whoever misses a page, `count` times.
    pub(crate) fn serve_missing_from(&self, file: &File, count: usize) {
        let mut page: Page = [0; 4096];
        for _ in 0..count {
            let offset = self.next_fault() - self.ram().base_address();
            file.read_exact_at(&mut page, offset).expect("the file is as long as the memory");
            self.copy_from(offset, page.as_ptr().addr() as u64, PAGE_BYTES);
        }
    }

    /// Gives what is mapped there to whoever misses a page, `count` times.
    pub(crate) fn serve_missing_mapped(&self, mapped: &Mapped, count: usize) {
        for _ in 0..count {
            let offset = self.next_fault() - self.ram().base_address();
            self.copy_mapped(offset, mapped, PAGE_BYTES);
        }
    }

    /// Keeps what is in a page that somebody wants to write, and lets it be written, `count` times.
    pub(crate) fn serve_writes(&self, count: usize) {
        let mut kept: Page = [0; 4096];
        for _ in 0..count {
            let address = self.next_fault();
            let place: *const Page = std::ptr::with_exposed_provenance(
                usize::try_from(address).expect("an address of this process fits its own pointers"),
            );
            // SAFETY: the page is in memory that `self` keeps mapped, is there, and is protected against writes.
            kept = std::hint::black_box(unsafe { std::ptr::read_volatile(place) });
            let mut request = [address, PAGE_BYTES, 0];
            // SAFETY: the request is as long as the kernel reads, and changes no content.
            let result = unsafe { libc::ioctl(self.raw(), UFFDIO_WRITEPROTECT, request.as_mut_ptr()) };
            assert_eq!(result, 0, "WRITEPROTECT: {}", std::io::Error::last_os_error());
        }
        std::hint::black_box(kept);
    }

    /// Places `bytes` at `offset`, by one request.
    pub(crate) fn copy_at(&self, offset: u64, bytes: &[u8]) {
        self.copy_from(offset, bytes.as_ptr().addr() as u64, bytes.len() as u64);
    }

    /// Places as much of a mapped file where it is in the guest, by one request.
    pub(crate) fn copy_mapped(&self, offset: u64, mapped: &Mapped, bytes: u64) {
        assert!(offset + bytes <= mapped.bytes, "a part of the file");
        self.copy_from(offset, mapped.start.addr() as u64 + offset, bytes);
    }

    fn copy_from(&self, offset: u64, source: u64, bytes: u64) {
        let mut request = [self.ram().base_address() + offset, source, bytes, 0, 0];
        // SAFETY: the source is mapped, and as long as the request says, for as long as the callers borrow it; the
        // kernel refuses a target that is not registered memory.
        let result = unsafe { libc::ioctl(self.raw(), UFFDIO_COPY, request.as_mut_ptr()) };
        assert_eq!(result, 0, "COPY: {}", std::io::Error::last_os_error());
    }

    /// Waits for a fault; gives the address of its page.
    pub(crate) fn next_fault(&self) -> u64 {
        let mut message: Message = [0; 4];
        loop {
            if self.wait == Wait::Polling {
                let mut poll = libc::pollfd { fd: self.raw(), events: libc::POLLIN, revents: 0 };
                // SAFETY: one descriptor, which is there.
                unsafe { libc::poll(&raw mut poll, 1, -1) };
            }
            // SAFETY: the buffer is borrowed and that long.
            let count = unsafe { libc::read(self.raw(), message.as_mut_ptr().cast(), size_of::<Message>()) };
            if count == size_of::<Message>().cast_signed() && message[0] & 0xff == FAULT {
                return message[2] & !(PAGE_BYTES - 1);
            }
        }
    }

    pub(crate) fn raw(&self) -> RawFd {
        self.registered.fd().as_raw_fd()
    }
}

/// A file, mapped to be read by the kernel.
pub(crate) struct Mapped {
    start: *mut libc::c_void,
    bytes: u64,
}

// SAFETY: nothing in this process reads or writes through the address.
unsafe impl Sync for Mapped {}

impl Mapped {
    /// Maps the first `bytes` of `file`, and fills the page tables, too, if the mapping is to be read without faults.
    pub(crate) fn new(file: &File, bytes: u64, populates: bool) -> Self {
        let populate = if populates { libc::MAP_POPULATE } else { 0 };
        let length = usize::try_from(bytes).expect("the file fits an address space");
        let (prot, flags) = (libc::PROT_READ, libc::MAP_SHARED | populate);
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), length, prot, flags, file.as_raw_fd(), 0) };
        assert_ne!(start, libc::MAP_FAILED, "mmap: {}", std::io::Error::last_os_error());
        Self { start, bytes }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        let length = usize::try_from(self.bytes).expect("it was mapped");
        // SAFETY: the mapping is this value's, and only the kernel was told of it.
        unsafe { libc::munmap(self.start, length) };
    }
}
