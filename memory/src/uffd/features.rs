//! The features of userfaultfd: bits of `UFFDIO_API`, by name.

use std::fmt;

/// One thing that userfaultfd can do on some kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Feature {
    /// The kernel's name without its prefix, in lower case.
    pub name: &'static str,
    /// The first Linux that has it on x86_64.
    pub since: &'static str,
    /// What a user goes without where it is missing.
    pub lost_without: &'static str,
    bit: u64,
}

impl Feature {
    const fn new(bit: u32, name: &'static str, since: &'static str, lost_without: &'static str) -> Self {
        Self { name, since, lost_without, bit: 1 << bit }
    }

    /// Write-protection, on anonymous memory.
    pub const WRITE_PROTECT: Self = Self::new(
        0,
        "pagefault_flag_wp",
        "5.7",
        "live snapshots: the guest is paused while its memory is written",
    );
    /// `MADV_DONTNEED` and the like are told.
    pub const EVENT_REMOVE: Self =
        Self::new(3, "event_remove", "4.11", "ballooning while memory is restored lazily");
    /// Missing faults on hugetlb.
    pub const MISSING_HUGETLB: Self =
        Self::new(4, "missing_hugetlbfs", "4.11", "lazy restore onto hugetlb pages");
    /// Missing faults on shared memory.
    pub const MISSING_SHMEM: Self = Self::new(5, "missing_shmem", "4.11", "lazy restore into shared memory");
    /// A fault names the thread that waits.
    pub const THREAD_ID: Self = Self::new(8, "thread_id", "4.14", "telling which vCPU waits for a page");
    /// Minor faults on hugetlb.
    pub const MINOR_HUGETLB: Self =
        Self::new(9, "minor_hugetlbfs", "5.13", "clones that share hugetlb pages");
    /// Minor faults on shared memory.
    pub const MINOR_SHMEM: Self =
        Self::new(10, "minor_shmem", "5.14", "clones that share the pages none of them wrote");
    /// Write-protection on shared and hugetlb memory.
    pub const WRITE_PROTECT_SHARED: Self =
        Self::new(12, "wp_hugetlbfs_shmem", "5.19", "live snapshots of shared or hugetlb memory");
    /// Write-protection of pages that are not there yet.
    pub const WRITE_PROTECT_UNPOPULATED: Self = Self::new(
        13,
        "wp_unpopulated",
        "6.4",
        "write-protecting memory that was never touched without filling it",
    );
    /// A page can be made to raise a memory error.
    pub const POISON: Self =
        Self::new(14, "poison", "6.6", "a memory error for a lost page: the VM is stopped instead");
    /// Writes to protected pages are noted by the kernel instead of being told.
    pub const WRITE_PROTECT_ASYNC: Self = Self::new(
        15,
        "wp_async",
        "6.7",
        "exact dirty tracking: diff snapshots use soft-dirty bits, where the kernel has them",
    );
    /// Pages can be moved in.
    pub const MOVE: Self =
        Self::new(16, "move", "6.8", "placing restored memory as huge pages without copying");

    /// Every feature this program has a use for.
    pub const ALL: [Self; 12] = [
        Self::WRITE_PROTECT,
        Self::EVENT_REMOVE,
        Self::MISSING_HUGETLB,
        Self::MISSING_SHMEM,
        Self::THREAD_ID,
        Self::MINOR_HUGETLB,
        Self::MINOR_SHMEM,
        Self::WRITE_PROTECT_SHARED,
        Self::WRITE_PROTECT_UNPOPULATED,
        Self::POISON,
        Self::WRITE_PROTECT_ASYNC,
        Self::MOVE,
    ];
}

/// A set of features.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Features(u64);

impl Features {
    /// None.
    pub const NONE: Self = Self(0);

    /// From the bits of `UFFDIO_API`. Those that this program has no use for are left out: some change what a fault
    /// does, `UFFD_FEATURE_SIGBUS` for one.
    pub(super) fn from_bits(bits: u64) -> Self {
        Self(Feature::ALL.iter().fold(0, |known, feature| known | feature.bit) & bits)
    }

    /// As bits of `UFFDIO_API`.
    pub(super) const fn bits(self) -> u64 {
        self.0
    }

    /// These and `feature`.
    #[must_use]
    pub const fn with(self, feature: Feature) -> Self {
        Self(self.0 | feature.bit)
    }

    /// Whether `feature` is one of them.
    #[must_use]
    pub const fn has(self, feature: Feature) -> bool {
        self.0 & feature.bit != 0
    }

    /// Those that are in both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Those that are not in `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Debug for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = Feature::ALL.iter().filter(|feature| self.has(**feature));
        f.debug_set().entries(known.map(|feature| feature.name)).finish()
    }
}

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = Feature::ALL.iter().filter(|feature| self.has(**feature));
        for (index, feature) in known.enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            write!(f, "{separator}{} (Linux {})", feature.name, feature.since)?;
        }
        Ok(())
    }
}
