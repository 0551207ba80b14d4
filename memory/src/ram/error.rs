//! Why guest RAM could not be made.

use std::io;

/// Why guest RAM could not be made.
#[derive(Debug, thiserror::Error)]
pub enum RamError {
    /// There is no RAM at all.
    #[error("guest memory cannot be empty: ask for at least 1 MiB")]
    Empty,
    /// A range does not start on a 2 MiB boundary, or its size is no whole number of pages.
    #[error(
        "guest memory at {gpa:#x} of {size_bytes:#x} bytes does not fit pages of {page_bytes:#x} bytes: \
         start it on 2 MiB and make it a whole number of pages"
    )]
    Unaligned {
        /// The guest physical address of the range.
        gpa: u64,
        /// The length of the range in bytes.
        size_bytes: u64,
        /// The size of the backing's pages in bytes.
        page_bytes: u64,
    },
    /// Ranges overlap, are out of order, or run past the end of the address space.
    #[error(
        "guest memory at {gpa:#x} of {size_bytes:#x} bytes overlaps another range or does not fit the address space: \
         name ranges in ascending order, all but the last of whole 2 MiB"
    )]
    Layout {
        /// The guest physical address of the range.
        gpa: u64,
        /// The length of the range in bytes.
        size_bytes: u64,
    },
    /// The host has less memory than the guest is to have.
    #[error("guest memory of {wanted_mib} MiB is more than the {host_mib} MiB this host has: ask for less")]
    MoreThanHost {
        /// The size asked for, in MiB.
        wanted_mib: u64,
        /// The host's RAM, in MiB.
        host_mib: u64,
    },
    /// The host's hugetlb pool has too few free pages.
    #[error(
        "the host has too few free huge pages of 2 MiB for {wanted} of them: \
         reserve more with `sysctl vm.nr_hugepages=N`, or choose another `huge_pages`"
    )]
    NoHugePages {
        /// How many pages the guest needs.
        wanted: u64,
    },
    /// A saved memory that is of another size than the guest's.
    #[error(
        "guest memory is {wanted_bytes} bytes, and the memory file {found_bytes}: it is truncated, or of another guest"
    )]
    FileSize {
        /// The sum of the guest's ranges.
        wanted_bytes: u64,
        /// The file's size.
        found_bytes: u64,
    },
    /// The memfd that was handed over does not do.
    #[error(transparent)]
    Memfd(#[from] MemfdError),
    /// The host refused one step of making it.
    #[error("cannot {step} for guest memory")]
    Host {
        /// What was being done.
        step: &'static str,
        /// The host's answer.
        source: io::Error,
    },
}

impl RamError {
    pub(super) fn host(step: &'static str, source: io::Error) -> Self {
        Self::Host { step, source }
    }
}

/// Why a memfd cannot be guest RAM.
#[derive(Debug, thiserror::Error)]
pub enum MemfdError {
    /// It is some other file.
    #[error("the descriptor for guest memory is no memfd: make it with `memfd_create`")]
    NotMemfd,
    /// It is not as large as the guest's RAM.
    #[error(
        "guest memory is {wanted_bytes} bytes, and its memfd {found_bytes}: give it that size before it is sealed"
    )]
    Size {
        /// The sum of the guest's ranges.
        wanted_bytes: u64,
        /// The memfd's size.
        found_bytes: u64,
    },
    /// Whoever has it can take pages away, each access to which would be a SIGBUS here.
    #[error(
        "the memfd for guest memory can be shrunk under the guest: make it with MFD_ALLOW_SEALING and add F_SEAL_SHRINK"
    )]
    CanShrink,
    /// Its pages are of a size that guest RAM does not come in.
    #[error("the memfd for guest memory has pages of {page_bytes} bytes: make it of 4 KiB or 2 MiB pages")]
    PageSize {
        /// The size of its pages.
        page_bytes: u64,
    },
    /// It is to be shared and cannot be written.
    #[error(
        "the memfd for guest memory cannot be written through this descriptor: open it for writing, \
         without F_SEAL_WRITE and F_SEAL_FUTURE_WRITE, or map it privately"
    )]
    ReadOnly,
}
