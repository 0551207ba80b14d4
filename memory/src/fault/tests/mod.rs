//! The engine on the kernel's own userfaultfd, without a VM.
//!
//! | room | what is tried |
//! |---|---|
//! | `harness` | memory, threads that touch it, and a budget of time for everything that must happen |
//! | `serving` | every backing, from every kind of source, byte by byte |

mod harness;
mod serving;
