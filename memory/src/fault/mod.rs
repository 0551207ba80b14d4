//! From a fault to a page: wanted, found, placed.
//!
//! ```text
//!   a thread touches a page ──▶ kernel ──▶ [handler] wanted ──▶ [scheduler] ──▶ source: found
//!                                 ▲           fault thread                          │
//!                                 └────────── [install] placed, woken ◀─────────────┘
//!                                                    ▲
//!                         [fill] reads ahead ────────┘  filler thread
//! ```
//!
//! | room | what it is for |
//! |---|---|
//! | `engine` | [`FaultEngine`]: starting, asking, stopping |
//! | `served` | [`ServedMemory`]: what one engine leaves to the next |
//! | `serve` | the fault thread's loop, and what it sleeps on |
//! | `handler`, `answer`, `protect` | what is done about a fault, an answer, a write to a protected page |
//! | [`scheduler`] | what to ask a source for next: pure |
//! | [`around`] | which pages to prefetch around one that is demanded: pure |
//! | `install` | puts pages into a guest: the one place that knows the kernel's answers |
//! | `fill` | the filler thread: whole chunks, what is expected to be wanted, and the rest |
//! | `assemble` | granules of huge pages that are answered in pieces |
//! | `protection` | protecting pages on other threads than the one that serves |
//! | `pre_image` | what a protected page holds, read without a fault |
//! | `gate` | keeps background placements and discards apart |
//! | `locality` | where the fault thread runs |
//! | `record` | which pages were wanted, in order |
//! | `statistics` | counts and latencies |
//! | `order`, `shared`, `heartbeat`, `waits`, `write` | what the rooms say to each other |
//!
//! Invariants:
//!
//! - The fault thread waits for nobody who touches guest memory, and takes no lock that such a one holds.
//! - A page is placed by who has claimed it in the page map, and by nobody else.
//! - A source never sees a userfaultfd; what places pages never sees a file or a socket.
//! - A page that cannot be had is tried again for a bounded time, and then poisoned and told: who waits for it never
//!   waits without end while the engine says that all is well, and never reads zeros that were not there.
//! - The userfaultfd stays open as long as pages are missing: closed, it gives zero pages to those who wait.

mod answer;
pub mod around;
mod assemble;
mod engine;
mod fill;
mod gate;
mod handler;
mod heartbeat;
mod install;
mod locality;
mod order;
mod pre_image;
mod protect;
mod protection;
mod record;
pub mod scheduler;
mod serve;
mod served;
mod shared;
mod statistics;
mod waits;
mod write;

pub use around::AroundPolicy;
pub(crate) use engine::ask::ObserveError;
pub use engine::{FaultEngine, Options, Stopped};
pub use fill::FillOptions;
pub use locality::Locality;
pub(crate) use protection::Protection;
pub use record::RecordLimits;
pub use scheduler::Limits;
pub use served::{ServedMemory, StartError};
pub use shared::{Failure, Status};
pub use statistics::{Counts, Latency, Report, Verb};
pub use write::{Verdict, WriteObserver};

#[cfg(test)]
mod tests;
