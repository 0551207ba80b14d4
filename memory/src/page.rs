//! Page sizes, and the arithmetic on them.

/// A size of page that can back guest RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PageSize {
    /// 4 KiB, the base page of x86_64 and the one arm64 hosts are expected to use.
    Base4K,
    /// 2 MiB: a transparent huge page or one of hugetlb.
    Huge2M,
}

impl PageSize {
    /// The size in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Base4K => 4 << 10,
            Self::Huge2M => 2 << 20,
        }
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

#[cfg(test)]
mod tests {
    use super::PageSize;

    #[test]
    fn rounding_keeps_whole_pages_and_refuses_to_wrap() {
        assert_eq!(PageSize::Base4K.round_up(0), Some(0));
        assert_eq!(PageSize::Base4K.round_up(1), Some(4096));
        assert_eq!(PageSize::Huge2M.round_up(2 << 20), Some(2 << 20));
        assert_eq!(PageSize::Huge2M.round_up(u64::MAX), None);
        assert!(PageSize::Huge2M.divides(4 << 20));
        assert!(!PageSize::Huge2M.divides(4096));
    }
}
