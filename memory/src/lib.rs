//! Guest memory: what a microVM's RAM is made of, and how the host backs it.
//!
//! This crate knows pages, mappings and the kernel's memory interfaces. It knows no KVM, no device and no API, so
//! that all of it can be tested without a virtual machine.
//!
//! | room | what it is for |
//! |---|---|
//! | [`capture`] | a memory file of a guest that runs, as it was at one moment |
//! | [`dirty`] | which pages were written since last asked |
//! | [`fault`] | from a fault to a page: what to ask for next |
//! | [`image`] | the memory file of a snapshot: written, verified, stacked |
//! | [`source`] | where pages come from |
//! | [`map`] | what is known of each page, in two bits |
//! | [`page`] | page sizes: the only place that multiplies or divides by one |
//! | [`ram`] | [`GuestRam`]: the regions a guest sees, over one mapping of the host |
//! | [`uffd`] | userfaultfd: what the kernel has, registered RAM, the verbs that place pages |
//! | [`staging`] | huge pages that are filled here and moved into a guest whole |
//! | [`threads`] | threads that the host may refuse, and how urgent they are |
//! | [`working_set`] | which pages are wanted first after a restore |

pub mod capture;
pub mod dirty;
pub mod fault;
pub mod image;
pub mod map;
pub mod page;
pub mod ram;
pub mod source;
pub mod staging;
pub mod threads;
pub mod uffd;
pub mod working_set;

pub use page::{PageIndex, PageRange, PageSize};
pub use ram::{Backing, BackingKind, GuestRam, MemfdError, RamError, RamRange, Sharing};
