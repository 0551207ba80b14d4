//! Soft-dirty bits: what kernels before 6.7 note in the page tables of a process that asks for it.
//!
//! Source: Documentation/admin-guide/mm/soft-dirty.rst of Linux 6.1. They are cleared for the whole process at once, and
//! not in one step with being read.
//!
//! `unsafe` is here for a page that is mapped to find out whether the kernel has them.
#![expect(unsafe_code, reason = "a scratch page is mapped and written")]

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::sync::Arc;

use super::discarded::Discarded;
use super::error::TrackError;
use crate::page::{PageRange, PageSize};
use crate::ram::GuestRam;
use crate::uffd::Pagemap;

/// What `/proc/self/clear_refs` takes for "clear soft-dirty bits".
const CLEAR_SOFT_DIRTY: &[u8] = b"4";

/// Follows who writes where, whoever serves the RAM. One for each process, which nobody else asks to clear them.
#[derive(Debug)]
pub struct SoftDirty {
    ram: GuestRam,
    pagemap: Pagemap,
    clear_refs: File,
    discarded: Arc<Discarded>,
}

impl SoftDirty {
    /// Whether this kernel has the bits, by a page that was just written. Nothing is cleared.
    #[must_use]
    pub fn is_supported() -> bool {
        let page = usize::try_from(PageSize::Base4K.bytes()).expect("a page's length fits");
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping of one page, at an address of the kernel's choice.
        let scratch = unsafe { libc::mmap(std::ptr::null_mut(), page, protection, flags, -1, 0) };
        if scratch == libc::MAP_FAILED {
            return false;
        }
        // SAFETY: the page was just mapped, to be written, and nobody else knows of it.
        unsafe { scratch.cast::<u8>().write_volatile(1) };
        let is_set = Pagemap::open().and_then(|pagemap| pagemap.is_soft_dirty(scratch.addr() as u64));
        // SAFETY: it is the mapping from above, and nothing points into it any more.
        let unmapped = unsafe { libc::munmap(scratch, page) };
        debug_assert_eq!(unmapped, 0, "what was mapped can be unmapped");
        is_set.unwrap_or(false)
    }

    /// Begins. The first take gives all that the mapping has of its own.
    ///
    /// # Errors
    ///
    /// [`TrackError`]: for a shared memfd, of which the page tables do not tell all, and what the host refuses.
    pub fn start(ram: &GuestRam) -> Result<Self, TrackError> {
        if ram.backing().shares_writes() {
            return Err(TrackError::Shared);
        }
        let pagemap = Pagemap::open().map_err(TrackError::Pagemap)?;
        let clear_refs = OpenOptions::new().write(true).open("/proc/self/clear_refs");
        let clear_refs = clear_refs.map_err(TrackError::Pagemap)?;
        Ok(Self { ram: ram.clone(), pagemap, clear_refs, discarded: Discarded::watch(ram)? })
    }

    /// Gives to `sink` the pages that were written, placed or thrown away since they were last given. Nobody is to write
    /// meanwhile: what is written between the look and the clearing is lost.
    ///
    /// # Errors
    ///
    /// When the host refuses. The same pages are given again then.
    pub fn take(&mut self, sink: &mut dyn FnMut(PageRange)) -> Result<(), TrackError> {
        self.discarded.take(self.ram.pages(), sink);
        self.look(sink).map_err(TrackError::Pagemap)
    }

    fn look(&mut self, sink: &mut dyn FnMut(PageRange)) -> io::Result<()> {
        self.pagemap.soft_dirty(&self.ram, self.ram.pages(), sink)?;
        self.clear_refs.write_all(CLEAR_SOFT_DIRTY)
    }
}
