//! Which pages were written since a guest was last saved: what a diff holds.
//!
//! ```text
//!   Tracker ── take ──▶ the means gives what was written ──▶ unsaved ── changed ──▶ a diff
//!                                                               └────── saved: forgotten
//! ```
//!
//! | means | what gives a page | of which pages | needs |
//! |---|---|---|---|
//! | [`WriteTracker`] | a write takes the protection off that the last take has put on | 4 KiB | `WP_ASYNC`, `PAGEMAP_SCAN`: Linux 6.7 |
//! | the same, of memory whose userfaultfd is another's | the same, and being placed without protection | 4 KiB | the same, of that userfaultfd |
//! | [`SoftDirty`] | a write, or being placed | 4 KiB; of transparent huge pages 2 MiB | `CONFIG_MEM_SOFT_DIRTY` |
//! | none | being there | 4 KiB | – |
//!
//! All of them see every writer of the mapping: vCPUs, devices, and the VMM itself, which KVM's dirty log does not. They
//! do not see writes that go around the mapping: into a memfd by its descriptor, or by another process that has it.
//!
//! The first take of each gives all that the mapping has of its own, which is what has been written to it since it was
//! made: of fresh memory what is not zero any more, over a saved file what is not the file's. So following writes costs
//! nothing until a guest is saved for the first time.
//!
//! Invariants:
//!
//! - A page that was written since it was last given is given. It may be given without having been written.
//! - Pages that were thrown away are given: their content has changed, and the page tables do not say so.
//! - What was taken for a snapshot that failed is given for the next: it is forgotten when one has been saved.
//! - hugetlb pages are given whole. A page may be given twice.

mod discarded;
mod error;
mod soft_dirty;
mod tracker;
mod write_tracker;
mod writes;

pub use error::TrackError;
pub use soft_dirty::SoftDirty;
pub use tracker::Tracker;
pub use write_tracker::WriteTracker;

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tracker_tests;
