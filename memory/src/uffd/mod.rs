//! Userfaultfd: the crate of that name, and what it lacks.
//!
//! ```text
//!   probe ──▶ what this kernel has          open ──▶ a descriptor with the features asked for
//!                                             │
//!   Registered = descriptor + GuestRam ◀──────┘
//!      │  events: faults, removals                              (read in batches)
//!      └─ ioctls: COPY ZEROPAGE CONTINUE MOVE POISON WRITEPROTECT WAKE, each answered by a [`Placed`]
//! ```
//!
//! What a kernel can do is looked at by [`probe()`], and what is done with it is decided in [`Choice`].
//!
//! The crate `userfaultfd` registers ranges, reads events and wakes. The ioctls that place pages are made here: it
//! turns their partial results into errors, and knows neither the modes and verbs since Linux 5.14 nor that a
//! negative result is an error number.
//!
//! Invariants:
//!
//! - A range that is registered belongs to a [`crate::GuestRam`], which [`Registered`] keeps: no ioctl here can write to memory
//!   that is something else.
//! - Every answer of the kernel is a value: how far it came, and what stopped it.

mod choice;
mod events;
mod features;
mod ioctl;
mod open;
mod page_entry;
mod pagemap;
mod placed;
mod probe;
mod registered;

pub use choice::{Choice, LosePage, PlaceChunk, TrackWrites, WRITE_TRACKING};
pub use events::{Access, Event, EventBuffer, Fault, FaultKind};
pub use features::{Feature, Features};
pub use open::{OpenError, Opened, open};
pub use page_entry::{PageEntry, Pagemap};
pub use pagemap::{PagemapScan, ScanError};
pub use placed::{Placed, Stop, Wake};
pub use probe::{Probe, probe};
pub use registered::{Modes, RegisterError, Registered};

#[cfg(test)]
pub(crate) mod tests;
