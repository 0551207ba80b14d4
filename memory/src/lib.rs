//! Guest memory: what a microVM's RAM is made of, and how the host backs it.
//!
//! This crate knows pages, mappings and the kernel's memory interfaces. It knows no KVM, no device and no API, so
//! that all of it can be tested without a virtual machine.
//!
//! | room | what it is for |
//! |---|---|
//! | [`page`] | page sizes: the only place that multiplies or divides by one |
//! | [`ram`] | [`GuestRam`]: the regions a guest sees, over one mapping of the host |
//! | [`uffd`] | what this host's userfaultfd can do, found by asking it |

pub mod page;
pub mod ram;
pub mod uffd;

pub use page::PageSize;
pub use ram::{Backing, GuestRam, RamError, RamRange};
