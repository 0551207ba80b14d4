//! What backs guest RAM, and what follows from it for whoever places its pages.

use crate::page::PageSize;

/// What backs guest RAM on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backing {
    /// Private anonymous memory. `transparent_huge_pages` asks the kernel for them with `MADV_HUGEPAGE`; without it
    /// the host's policy stands.
    Anonymous {
        /// Whether to advise huge pages.
        transparent_huge_pages: bool,
    },
    /// A memfd, mapped shared: another process can be given the memory by its descriptor.
    Memfd {
        /// Whether to advise huge pages (honoured where the host allows them for shmem).
        transparent_huge_pages: bool,
    },
    /// A memfd, mapped privately: guests over one memfd share the pages that they do not write. A page is copied when
    /// it is written, and the memfd never changes by it.
    MemfdPrivate,
    /// A saved memory file, mapped privately: the kernel reads its pages as they are touched, and guests over one file
    /// share those that they do not write. No userfaultfd can place pages there.
    FilePrivate,
    /// Private huge pages of 2 MiB from the host's hugetlb pool.
    Hugetlb2M,
    /// A memfd of huge pages of 2 MiB from that pool.
    HugetlbMemfd {
        /// How it is mapped.
        sharing: Sharing,
    },
}

/// How a memfd is mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// What the guest writes is in the memfd, for everyone who has it.
    Shared,
    /// What the guest writes is its own.
    Private,
}

/// The kinds of memory that userfaultfd tells apart.
///
/// | kind | a page comes by | a removed page comes by |
/// |---|---|---|
/// | anonymous | MOVE, COPY, ZEROPAGE | COPY, ZEROPAGE |
/// | shared cache | CONTINUE of what is in the memfd, else COPY, ZEROPAGE | COPY, ZEROPAGE: it has left the memfd |
/// | private cache | CONTINUE of what is in the memfd, else COPY, ZEROPAGE | COPY, ZEROPAGE, *never* CONTINUE: the memfd still has what was there before the guest's first write |
/// | file | the kernel alone | the kernel alone |
/// | hugetlb | COPY of whole huge pages; CONTINUE where it is a memfd | COPY |
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackingKind {
    /// Private anonymous memory of base pages, the only kind that pages can be moved into.
    Anonymous,
    /// The page cache of a memfd, shared.
    SharedCache,
    /// The page cache of a memfd, under pages of the guest's own.
    PrivateCache,
    /// A file on any file system, under pages of the guest's own.
    File,
    /// Pages of a hugetlb pool, which only come whole.
    Hugetlb,
}

impl Backing {
    /// The size of page that RAM of this kind comes in, and that its size must be a multiple of.
    #[must_use]
    pub const fn page_size(self) -> PageSize {
        match self.kind() {
            BackingKind::Anonymous
            | BackingKind::SharedCache
            | BackingKind::PrivateCache
            | BackingKind::File => PageSize::Base4K,
            BackingKind::Hugetlb => PageSize::Huge2M,
        }
    }

    /// Which kind of memory it is to userfaultfd.
    #[must_use]
    pub const fn kind(self) -> BackingKind {
        match self {
            Self::Anonymous { .. } => BackingKind::Anonymous,
            Self::Memfd { .. } => BackingKind::SharedCache,
            Self::MemfdPrivate => BackingKind::PrivateCache,
            Self::FilePrivate => BackingKind::File,
            Self::Hugetlb2M | Self::HugetlbMemfd { .. } => BackingKind::Hugetlb,
        }
    }

    /// Whether `UFFDIO_MOVE` can place pages: not into a page cache, nor into hugetlb.
    #[must_use]
    pub const fn supports_move(self) -> bool {
        matches!(self.kind(), BackingKind::Anonymous)
    }

    /// Whether `UFFDIO_ZEROPAGE` can: not into hugetlb, where zeros are copied.
    #[must_use]
    pub const fn supports_zeropage(self) -> bool {
        !matches!(self.kind(), BackingKind::Hugetlb)
    }

    /// Whether there is a memfd, whose page cache `UFFDIO_CONTINUE` maps from.
    #[must_use]
    pub const fn has_page_cache(self) -> bool {
        match self {
            Self::Memfd { .. } | Self::MemfdPrivate | Self::HugetlbMemfd { .. } => true,
            Self::Anonymous { .. } | Self::FilePrivate | Self::Hugetlb2M => false,
        }
    }

    /// Whether what the guest writes is in the memfd.
    #[must_use]
    pub const fn shares_writes(self) -> bool {
        matches!(self, Self::Memfd { .. } | Self::HugetlbMemfd { sharing: Sharing::Shared })
    }

    pub(super) const fn advises_huge_pages(self) -> bool {
        matches!(
            self,
            Self::Anonymous { transparent_huge_pages: true } | Self::Memfd { transparent_huge_pages: true }
        )
    }
}
