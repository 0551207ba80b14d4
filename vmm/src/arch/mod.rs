//! What differs between processor architectures. The rest of the crate names [`host`] and nothing below it.
//!
//! A new architecture adds a folder that offers the same items: `layout`, `Platform`, `Processor`, `Payload`.

#[cfg(target_arch = "x86_64")]
pub mod x86_64;

#[cfg(target_arch = "x86_64")]
pub use x86_64 as host;
