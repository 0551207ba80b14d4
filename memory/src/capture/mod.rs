//! Guest memory to a memory file while the guest runs, as it was at one moment.
//!
//! ```text
//!   prepare   guest runs         protect chunk after chunk ── a write: the chunk is opened again, and noted
//!   begin     guest stands still protect those again that were opened: from here on nothing changes unseen
//!   save      guest runs         wanted chunks ──▶ read ──▶ unprotect ──▶ buffer ──▶ file
//!                                   ▲                │          └─▶ whoever waits to write goes on
//!                                   │                └── a write to a chunk that was not read: the guest waits
//!                                else the next chunk, piece by piece: read ──▶ file, and unprotect at its end
//! ```
//!
//! A chunk is 2 MiB: a transparent huge page is protected and let go as one, and so never split.
//!
//! | page, when its chunk was protected | its content | read from |
//! |---|---|---|
//! | with its source, or on its way | what the source has, placed meanwhile or not | the RAM if it is there by now, else the source |
//! | thrown away, and nothing there | zero | nowhere |
//! | any other | what is in the RAM | the RAM |
//!
//! That stays so until the chunk is read: pages are placed protected, and writes and discards wait. So what is known of
//! a chunk is looked up once, when it is protected, and no later change can be taken for the guest's content.
//!
//! | room | what it is for |
//! |---|---|
//! | `desk` | which chunk is read next, who waits for one, and the buffers: pure but for its locks |
//! | `watch` | who is told of writes and of discards |
//! | `session` | protecting, and letting go whatever becomes of it |
//! | `begin` | [`Armed`] and [`Capture`]: before, and from the moment on |
//! | `read` | the content of one chunk |
//! | `save` | the threads that read and write |
//! | `present` | RAM that no engine serves |
//!
//! Invariants:
//!
//! - A write to a chunk lands before the capture's moment, or after the chunk was read.
//! - However it ends, nothing stays protected by it and nobody waits for it: it ends by being dropped.
//! - The observer holds no lock that anyone holds who may touch guest memory. The same is true of discards.
//! - What is read and not written yet is bounded: [`BUFFERS_MAX`] chunks, and one more for each thread that writes.

mod begin;
mod desk;
mod error;
mod present;
mod read;
mod save;
mod session;
mod watch;

pub use begin::{Armed, Capture};
pub use desk::BUFFERS_MAX;
pub use error::{BeginError, CaptureError, PresentError, ReleaseError};
pub use present::{Present, Untouched, serve_present};

#[cfg(test)]
mod tests;
