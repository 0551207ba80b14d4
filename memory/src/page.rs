//! Pages: their sizes, their numbers, and the arithmetic on them. Nothing else multiplies by a page size.
//!
//! A guest's RAM is one mapping, so its pages are numbered through, from 0, whatever holes there are between its regions
//! in the guest's address space. Page `n` is at `n` times 4 KiB in the mapping, in a memfd and in a saved memory file.

use std::fmt;

/// A size of page that can back guest RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PageSize {
    /// 4 KiB, the base page of x86_64 and the one arm64 hosts are expected to use.
    Base4K,
    /// 2 MiB: a transparent huge page or one of hugetlb.
    Huge2M,
}

/// How many base pages make a huge one.
pub const BASE_PAGES_PER_HUGE: u64 = PageSize::Huge2M.bytes() / PageSize::Base4K.bytes();

impl PageSize {
    /// The size in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Base4K => 4 << 10,
            Self::Huge2M => 2 << 20,
        }
    }

    /// How many base pages it is.
    #[must_use]
    pub const fn base_pages(self) -> u64 {
        self.bytes() / Self::Base4K.bytes()
    }

    /// Whether `value`, an address or a length in bytes, is a whole number of these pages.
    #[must_use]
    pub const fn divides(self, value: u64) -> bool {
        value.is_multiple_of(self.bytes())
    }

    /// `value` rounded up to a whole number of these pages; `None` where that does not fit in 64 bits.
    #[must_use]
    pub const fn round_up(self, value: u64) -> Option<u64> {
        value.checked_next_multiple_of(self.bytes())
    }
}

/// The number of a base page in a guest's RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageIndex(pub u64);

impl PageIndex {
    /// The page that holds the byte at `offset` of the RAM.
    #[must_use]
    pub const fn at_offset(offset: u64) -> Self {
        Self(offset / PageSize::Base4K.bytes())
    }

    /// Where it starts in the RAM, in bytes.
    #[must_use]
    pub const fn offset(self) -> u64 {
        self.0 * PageSize::Base4K.bytes()
    }

    /// The page of `size` that it is in: the range of base pages which that page is.
    #[must_use]
    pub const fn containing(self, size: PageSize) -> PageRange {
        let pages = size.base_pages();
        PageRange { start: Self(self.0 - self.0 % pages), count: pages }
    }

    /// It alone.
    #[must_use]
    pub const fn alone(self) -> PageRange {
        PageRange { start: self, count: 1 }
    }
}

/// Consecutive base pages.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PageRange {
    /// The first.
    pub start: PageIndex,
    /// How many.
    pub count: u64,
}

impl PageRange {
    /// The pages from `start` up to, and without, `end`; none where `end` is not past `start`.
    #[must_use]
    pub const fn between(start: PageIndex, end: PageIndex) -> Self {
        Self { start, count: end.0.saturating_sub(start.0) }
    }

    /// The number after that of the last page. Ranges that others name may be nonsense: it does not wrap.
    #[must_use]
    pub const fn end(self) -> PageIndex {
        PageIndex(self.start.0.saturating_add(self.count))
    }

    /// How many pages are `bytes` long, those begun left out.
    #[must_use]
    pub const fn count_of(bytes: u64) -> u64 {
        bytes / PageSize::Base4K.bytes()
    }

    /// Their length in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.count * PageSize::Base4K.bytes()
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.count == 0
    }

    /// Whether `page` is one of them.
    #[must_use]
    pub const fn contains(self, page: PageIndex) -> bool {
        self.start.0 <= page.0 && page.0 < self.end().0
    }

    /// The pages that are in both.
    #[must_use]
    pub fn intersection(self, other: Self) -> Self {
        Self::between(self.start.max(other.start), self.end().min(other.end()))
    }

    /// Whether they are whole pages of `size`.
    #[must_use]
    pub const fn is_whole(self, size: PageSize) -> bool {
        self.start.0.is_multiple_of(size.base_pages()) && self.count.is_multiple_of(size.base_pages())
    }

    /// The pages of `size` that it touches, whole.
    #[must_use]
    pub const fn widened(self, size: PageSize) -> Self {
        let pages = size.base_pages();
        if self.count == 0 {
            return self;
        }
        let last = PageIndex(self.end().0 - 1).containing(size);
        Self::between(PageIndex(self.start.0 - self.start.0 % pages), last.end())
    }

    /// The pages of `size` that are in it whole.
    #[must_use]
    pub const fn narrowed(self, size: PageSize) -> Self {
        let pages = size.base_pages();
        let end = PageIndex(self.end().0 - self.end().0 % pages);
        match self.start.0.checked_next_multiple_of(pages) {
            Some(start) => Self::between(PageIndex(start), end),
            None => Self { start: end, count: 0 },
        }
    }

    /// The first `count` of them, and the rest.
    #[must_use]
    pub const fn split_at(self, count: u64) -> (Self, Self) {
        let count = if count < self.count { count } else { self.count };
        let rest = Self { start: PageIndex(self.start.0 + count), count: self.count - count };
        (Self { start: self.start, count }, rest)
    }

    /// Each page of `size` in it. It is to be [whole](Self::is_whole) pages of that size.
    pub fn wholes(self, size: PageSize) -> impl Iterator<Item = Self> {
        debug_assert!(self.is_whole(size), "{self} are not whole pages");
        let pages = size.base_pages();
        (0..self.count / pages)
            .map(move |nth| Self { start: PageIndex(self.start.0 + nth * pages), count: pages })
    }

    /// Each of them.
    pub fn pages(self) -> impl DoubleEndedIterator<Item = PageIndex> {
        (self.start.0..self.end().0).map(PageIndex)
    }
}

impl fmt::Debug for PageRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pages {}..{}", self.start.0, self.end().0)
    }
}

impl fmt::Display for PageRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_keeps_whole_pages_and_refuses_to_wrap() {
        assert_eq!(PageSize::Base4K.round_up(0), Some(0));
        assert_eq!(PageSize::Base4K.round_up(1), Some(4096));
        assert_eq!(PageSize::Huge2M.round_up(2 << 20), Some(2 << 20));
        assert_eq!(PageSize::Huge2M.round_up(u64::MAX), None);
        assert!(PageSize::Huge2M.divides(4 << 20));
        assert!(!PageSize::Huge2M.divides(4096));
        assert_eq!(BASE_PAGES_PER_HUGE, 512);
    }

    #[test]
    fn a_page_knows_its_place() {
        let page = PageIndex::at_offset(3 * 4096 + 17);
        assert_eq!((page, page.offset()), (PageIndex(3), 3 * 4096));
        let huge = PageIndex(1000).containing(PageSize::Huge2M);
        assert_eq!((huge.start, huge.count, huge.bytes()), (PageIndex(512), 512, 2 << 20));
        assert!(huge.is_whole(PageSize::Huge2M) && huge.contains(PageIndex(1023)));
        assert!(!huge.contains(PageIndex(1024)));
    }

    #[test]
    fn ranges_are_cut_and_joined_without_losing_a_page() {
        let range = PageRange { start: PageIndex(10), count: 5 };
        let (head, tail) = range.split_at(2);
        assert_eq!((head.end(), tail.start, tail.end()), (PageIndex(12), PageIndex(12), PageIndex(15)));
        assert!(range.split_at(9).1.is_empty());
        let other = PageRange { start: PageIndex(13), count: 9 };
        assert_eq!(range.intersection(other), PageRange::between(PageIndex(13), PageIndex(15)));
        assert!(range.intersection(PageRange::between(PageIndex(15), PageIndex(20))).is_empty());
        assert_eq!(range.pages().count(), 5);
        assert_eq!(PageRange { start: PageIndex(7), count: u64::MAX }.end(), PageIndex(u64::MAX));
        assert_eq!(format!("{range}"), "pages 10..15");
    }

    #[test]
    fn ranges_are_widened_and_narrowed_to_whole_huge_pages() {
        let range = PageRange::between(PageIndex(500), PageIndex(1030));
        assert_eq!(range.widened(PageSize::Huge2M), PageRange::between(PageIndex(0), PageIndex(1536)));
        assert_eq!(range.narrowed(PageSize::Huge2M), PageRange::between(PageIndex(512), PageIndex(1024)));
        let wholes: Vec<_> = range.widened(PageSize::Huge2M).wholes(PageSize::Huge2M).collect();
        assert_eq!(wholes, [0, 512, 1024].map(|page| PageIndex(page).containing(PageSize::Huge2M)));
        assert_eq!(range.widened(PageSize::Base4K), range);
        assert_eq!(range.narrowed(PageSize::Base4K), range);
        assert!(PageRange::between(PageIndex(1), PageIndex(511)).narrowed(PageSize::Huge2M).is_empty());
        assert!(PageRange { start: PageIndex(5), count: 0 }.widened(PageSize::Huge2M).is_empty());
        assert!(PageRange { start: PageIndex(u64::MAX), count: 9 }.narrowed(PageSize::Huge2M).is_empty());
    }
}
