//! What drives the `faultless` binary from outside, and its memory without it: end-to-end tests, benches, the demo and
//! the stress run all stand on this crate.
//!
//! ```text
//!   tests/*.rs ─▶ host      where may this body run? here, or on a KVM host in software
//!                  └─▶ lab      boots that host in QEMU and runs one command on it
//!   tests/*.rs ─▶ vmm       the process under test: its socket, console and end
//!   tests/*.rs ─▶ guest     what it boots: the bare-metal guest, stock Debian kernels, a busybox root
//!                  └─▶ kernel, initramfs, cache    how those are made, once per machine
//!   tests/*.rs ─▶ stress    random work on lazily served memory, without the binary
//!   bin/served ─▶ served    a VMM whose guest's memory comes from a source that is told to misbehave
//!   tests/*.rs, bin/uffd-handler ─▶ page_handler    a page-fault handler like those that are written for Firecracker
//! ```
//!
//! Everything fetched or built is kept in the cache folder, so a second run needs no network.

pub mod cache;
pub mod cargo;
mod child;
pub mod guest;
pub mod host;
mod initramfs;
pub mod kernel;
pub mod lab;
pub mod page_handler;
pub mod served;
pub mod stress;
pub mod vmm;
