//! What there is to measure, and how much work that is.

use crate::shared::options::{Choice, Menu};

/// What there is to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Start,
    Footprint,
    Kick,
    Disk,
}

/// How often each thing is measured.
pub(crate) struct Effort {
    /// Processes that are started, for what each does once.
    pub(crate) processes: usize,
    /// Processes whose memory is looked at.
    pub(crate) footprints: usize,
    /// Requests to one process.
    pub(crate) requests: usize,
    /// Transfers of each kind, on either side.
    pub(crate) transfers: usize,
    /// By this, a transfer's size is divided.
    pub(crate) transfer_divisor: u64,
}

/// What the user asked for.
pub(crate) type Options = Choice<Part, Effort>;

pub(crate) const MENU: Menu<Part, Effort> = Menu {
    bench: "vmm",
    parts: &[
        ("start", Part::Start),
        ("footprint", Part::Footprint),
        ("kick", Part::Kick),
        ("disk", Part::Disk),
    ],
    full: Effort { processes: 50, footprints: 10, requests: 1000, transfers: 11, transfer_divisor: 1 },
    quick: Effort { processes: 5, footprints: 2, requests: 50, transfers: 3, transfer_divisor: 8 },
};
