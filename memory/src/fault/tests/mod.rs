//! The engine on the kernel's own userfaultfd, without a VM.
//!
//! | room | what is tried |
//! |---|---|
//! | `harness` | memory, threads that touch it, and a budget of time for everything that must happen |
//! | `serving` | every backing, from every kind of source, byte by byte |
//! | `races` | two things at once, each parked at the point where it hurts |
//! | `filling` | the background against faults, discards and bad readers |
//! | `protecting` | writes to protected pages, missing and swapped out ones among them |
//! | `tracking` | writes that the kernel notes, while pages come |
//! | `reduced` | what was found under stress, made small |
//! | `review` | what was found by reading, made small |
//! | `told` | the same, of what observers of writes are told |
//! | `losing` | sources that fail, lie, hang and die; kernels that lack something |

mod filling;
mod harness;
mod losing;
mod protecting;
mod races;
mod recording;
mod reduced;
mod review;
mod serving;
mod told;
mod tracking;
