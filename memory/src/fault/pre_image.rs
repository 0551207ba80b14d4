//! Reading what a protected page holds, on the thread that serves faults: so without a fault that it would have to serve.
//!
//! | memory | how it is read | why that does not fault |
//! |---|---|---|
//! | anonymous, hugetlb | through the mapping | a page that is there stays, or is swapped in, until a removal of it was read |
//! | memfd, shared | through the descriptor | no mapping is touched: a page of the cache may be unmapped at any time |
//! | memfd, private | the guest's own pages through the mapping, the memfd's through the descriptor | as above, each |
//!
//! A page of a private mapping that is not mapped is either the guest's own and swapped out, or the memfd's and only to
//! be mapped again: the kernel tells by what it answers to mapping it. The guest cannot make it its own meanwhile, as
//! it is protected.

use std::io;

use crate::page::PageRange;
use crate::ram::Backing;
use crate::ram::{BackingKind, Sharing};
use crate::uffd::{PageEntry, Pagemap, Registered, Stop, Wake};

/// Reads pages that are there and protected.
#[derive(Debug)]
pub(super) struct PreImage {
    bytes: Vec<u8>,
    /// Looked at for private mappings only.
    pagemap: Option<Pagemap>,
}

impl PreImage {
    pub(super) fn new(backing: Backing) -> io::Result<Self> {
        let pagemap = if is_private_cache(backing) { Some(Pagemap::open()?) } else { None };
        Ok(Self { bytes: Vec::new(), pagemap })
    }

    /// What `granule` holds.
    pub(super) fn read(&mut self, registered: &Registered, granule: PageRange) -> io::Result<&[u8]> {
        let ram = registered.ram();
        self.bytes.resize(usize::try_from(granule.bytes()).unwrap_or(0), 0);
        if self.is_cached(registered, granule)? {
            ram.read_cached(granule, &mut self.bytes)?;
        } else {
            ram.read_pages(granule, &mut self.bytes)?;
        }
        Ok(&self.bytes)
    }

    /// Whether the content is what the memfd has.
    fn is_cached(&self, registered: &Registered, granule: PageRange) -> io::Result<bool> {
        let Some(pagemap) = &self.pagemap else { return Ok(registered.ram().backing().has_page_cache()) };
        match pagemap.entry(registered.ram(), granule.start)? {
            PageEntry::Mapped { is_file } => Ok(is_file),
            PageEntry::Absent => match registered.map_cached(granule, true, Wake::Later).stop {
                None => Ok(true),
                // There is an entry, or nothing cached that it could be: it is the guest's own, swapped out.
                Some(Stop::Exists | Stop::NoSource) => Ok(false),
                Some(stop) => Err(io::Error::other(stop)),
            },
        }
    }
}

fn is_private_cache(backing: Backing) -> bool {
    backing.kind() == BackingKind::PrivateCache
        || matches!(backing, Backing::HugetlbMemfd { sharing: Sharing::Private })
}
