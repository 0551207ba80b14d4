//! What the page tables of this process say of a page: `/proc/self/pagemap`.
//!
//! Source: Documentation/admin-guide/mm/pagemap.rst of Linux 6.18.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::page::{PageIndex, PageSize};
use crate::ram::GuestRam;

/// "page is file-page or shared-anon", "page present".
const IS_FILE: u64 = 1 << 61;
const IS_PRESENT: u64 = 1 << 63;
/// One 64-bit number for each page.
const ENTRY_BYTES: u64 = 8;

/// What is known of one page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageEntry {
    /// It is mapped.
    Mapped {
        /// Whether what is mapped is the memfd's page, and not one of the mapping's own.
        is_file: bool,
    },
    /// It is not: it was swapped out, unmapped, or was never there.
    Absent,
}

/// The page map of this process.
#[derive(Debug)]
pub struct Pagemap(File);

impl Pagemap {
    /// Opens it.
    ///
    /// # Errors
    ///
    /// The host's refusal.
    pub fn open() -> io::Result<Self> {
        File::open("/proc/self/pagemap").map(Self)
    }

    /// Looks `page` up.
    ///
    /// # Errors
    ///
    /// What the host answers.
    pub fn entry(&self, ram: &GuestRam, page: PageIndex) -> io::Result<PageEntry> {
        let mut bits = [0; 8];
        let number = (ram.base_address() + page.offset()) / PageSize::Base4K.bytes();
        self.0.read_exact_at(&mut bits, number * ENTRY_BYTES)?;
        let bits = u64::from_ne_bytes(bits);
        let is_file = bits & IS_FILE != 0;
        Ok(if bits & IS_PRESENT != 0 { PageEntry::Mapped { is_file } } else { PageEntry::Absent })
    }
}
