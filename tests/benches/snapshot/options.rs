//! What there is to measure, and how much work that is.

use crate::shared::options::{Choice, Menu};

/// What there is to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Offline,
    Restore,
    Live,
    Clones,
}

/// How often each thing is measured.
pub(crate) struct Effort {
    /// Rounds, in each of which everything that is compared has its turn.
    pub(crate) rounds: usize,
    /// Rounds of clones.
    pub(crate) broods: usize,
    /// Clones in each of them.
    pub(crate) clones: usize,
}

/// What the user asked for.
pub(crate) type Options = Choice<Part, Effort>;

pub(crate) const MENU: Menu<Part, Effort> = Menu {
    bench: "snapshot",
    parts: &[
        ("offline", Part::Offline),
        ("restore", Part::Restore),
        ("live", Part::Live),
        ("clones", Part::Clones),
    ],
    full: Effort { rounds: 15, broods: 3, clones: 50 },
    quick: Effort { rounds: 3, broods: 1, clones: 50 },
};
