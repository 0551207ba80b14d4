//! Reading guest memory through the kernel: a page that cannot be had is an error, where touching it is a SIGBUS.
//!
//! `unsafe` is here for one system call on addresses of guest memory.
#![expect(unsafe_code, reason = "process_vm_readv")]

use std::io;

use super::GuestRam;
use crate::page::{PageIndex, PageRange};

/// `UIO_MAXIOV` of `include/uapi/linux/uio.h`.
const IOVECS_MAX: usize = 1024;

/// A page could not be read.
#[derive(Debug, thiserror::Error)]
#[error("page {} of guest memory cannot be read: it was lost (see what the host logged)", page.0)]
pub struct CopyError {
    /// Which.
    pub page: PageIndex,
    /// What the host answered: `EFAULT` of a page that is poisoned, or gone.
    pub source: io::Error,
}

impl GuestRam {
    /// Reads `ranges`, one after the other, into `bytes`, which is as long as all of them. A page that is missing is
    /// waited for, as by any access. One that is poisoned ends the reading with an error, and raises no signal.
    ///
    /// It is `process_vm_readv(2)` on this process, and half as fast as [`read_pages`](Self::read_pages) on base pages.
    ///
    /// # Errors
    ///
    /// [`CopyError`] with the first page that could not be read.
    ///
    /// # Panics
    ///
    /// For pages outside of the RAM, or as many bytes as they have not.
    pub fn copy_out(&self, ranges: &[PageRange], bytes: &mut [u8]) -> Result<(), CopyError> {
        ranges.iter().for_each(|range| self.assert_has(*range));
        let total: u64 = ranges.iter().map(|range| range.bytes()).sum();
        assert_eq!(total, bytes.len() as u64, "as many bytes as pages");
        let mut done = 0;
        while done < bytes.len() {
            match self.copy_some(ranges, done as u64, &mut bytes[done..]) {
                // A page that fails after others were read is told by the next call.
                Ok(more) => done += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(CopyError { page: page_at(ranges, done as u64), source }),
            }
        }
        Ok(())
    }

    /// Reads what is past the first `skipped` bytes of `ranges`, as much as one call does.
    fn copy_some(&self, ranges: &[PageRange], skipped: u64, into: &mut [u8]) -> io::Result<usize> {
        let remote = self.iovecs(ranges, skipped);
        let local = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
        let process = std::process::id().cast_signed();
        // SAFETY: the kernel writes to `into` only, which is borrowed for that, and at most its length. What it reads
        // lies in the mapping, and it checks every address itself. Writing by the guest meanwhile is what it expects.
        let copied = unsafe {
            libc::process_vm_readv(
                process,
                &raw const local,
                1,
                remote.as_ptr(),
                remote.len() as libc::c_ulong,
                0,
            )
        };
        match usize::try_from(copied) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(copied) => Ok(copied),
            Err(_) => Err(io::Error::last_os_error()),
        }
    }

    fn iovecs(&self, ranges: &[PageRange], mut skipped: u64) -> Vec<libc::iovec> {
        let mut iovecs = Vec::with_capacity(ranges.len().min(IOVECS_MAX));
        for range in ranges {
            let now = skipped.min(range.bytes());
            skipped -= now;
            let length = usize::try_from(range.bytes() - now).expect("it is no longer than the mapping");
            if length > 0 && iovecs.len() < IOVECS_MAX {
                let address = self.base_address() + range.start.offset() + now;
                let address = usize::try_from(address).expect("an address of this process");
                iovecs.push(libc::iovec {
                    iov_base: std::ptr::without_provenance_mut(address),
                    iov_len: length,
                });
            }
        }
        iovecs
    }
}

/// The page that is `offset` bytes into `ranges`.
fn page_at(ranges: &[PageRange], mut offset: u64) -> PageIndex {
    for range in ranges {
        if offset < range.bytes() {
            return PageIndex(range.start.0 + PageRange::count_of(offset));
        }
        offset -= range.bytes();
    }
    unreachable!("the offset is of a byte that was to be read")
}
