//! The bare loop of [`bare`](crate::bare) by other ways of placing: `UFFDIO_CONTINUE`, and `UFFDIO_COPY` of huge pages.
//!
//! `unsafe` is here for the system call.
#![expect(unsafe_code, reason = "the barest system calls")]

use memory::GuestRam;
use memory::uffd::{Feature, Features, Modes};

use crate::bare::{Bare, Mapped, Wait};
use crate::fill::CHUNK_BYTES;
use crate::ram::PAGE_BYTES;

const UFFDIO_CONTINUE: libc::c_ulong = 0xc020_aa07;

impl Bare {
    /// Registers `ram` over a memfd that has its content, of which nothing is mapped.
    pub(crate) fn cached(ram: GuestRam) -> Self {
        let modes = Modes { minor: true, ..Modes::default() };
        Self::new(ram, Wait::Blocking, modes, Features::NONE.with(Feature::MINOR_SHMEM))
    }

    /// Maps a page for whoever misses one, `count` times.
    pub(crate) fn serve_cached(&self, count: usize) {
        for _ in 0..count {
            let offset = self.next_fault() - self.ram().base_address();
            self.continue_at(offset, PAGE_BYTES);
        }
    }

    /// Maps what the page cache has, by one request.
    pub(crate) fn continue_at(&self, offset: u64, bytes: u64) {
        let mut request = [self.ram().base_address() + offset, bytes, 0, 0];
        // SAFETY: the request is as long as the kernel reads and writes, and it refuses what is not registered memory.
        let result = unsafe { libc::ioctl(self.raw(), UFFDIO_CONTINUE, request.as_mut_ptr()) };
        assert_eq!(result, 0, "CONTINUE: {}", std::io::Error::last_os_error());
    }

    /// Gives what is mapped there to whoever misses a huge page, `count` times.
    pub(crate) fn serve_huge_mapped(&self, mapped: &Mapped, count: u64) {
        for _ in 0..count {
            self.copy_mapped(self.next_huge_fault(), mapped, CHUNK_BYTES);
        }
    }

    /// The memory starts at a multiple of a huge page.
    fn next_huge_fault(&self) -> u64 {
        (self.next_fault() - self.ram().base_address()) & !(CHUNK_BYTES - 1)
    }
}
