//! Memory to read into, at a page's boundary: what reading past the page cache asks for, and what copies best.

use std::fmt;

use crate::page::{PageIndex, PageRange, PageSize};

/// How long `pages` pages are.
pub(super) fn bytes_of(pages: u64) -> usize {
    let bytes = PageRange { start: PageIndex(0), count: pages }.bytes();
    usize::try_from(bytes).expect("what a buffer is asked to hold fits the addresses of this process")
}

/// Pages of memory, zero at first. They do not move for as long as it lives.
pub(super) struct PageBuffer {
    /// One page more than is lent, for the boundary to be in it.
    bytes: Vec<u8>,
    /// Where the boundary is.
    start: usize,
}

impl fmt::Debug for PageBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PageBuffer").finish_non_exhaustive()
    }
}

impl PageBuffer {
    pub(super) fn new(pages: u64) -> Self {
        let bytes = vec![0; bytes_of(pages + 1)];
        let page = bytes_of(PageSize::Base4K.base_pages());
        let address = bytes.as_ptr().addr();
        Self { start: address.next_multiple_of(page) - address, bytes }
    }

    /// The first `pages` of them.
    pub(super) fn first(&self, pages: u64) -> &[u8] {
        &self.bytes[self.start..][..bytes_of(pages)]
    }

    /// The first `pages` of them.
    pub(super) fn first_mut(&mut self, pages: u64) -> &mut [u8] {
        &mut self.bytes[self.start..][..bytes_of(pages)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_starts_at_a_page_and_is_as_long_as_was_asked() {
        for pages in [1, 3, 64] {
            let mut buffer = PageBuffer::new(pages);
            assert!(buffer.first(pages).as_ptr().addr().is_multiple_of(4096));
            buffer.first_mut(pages).fill(7);
            assert_eq!(buffer.first(1), [7; 4096]);
            assert_eq!(buffer.first(pages).len(), bytes_of(pages));
        }
    }
}
