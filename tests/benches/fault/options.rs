//! What there is to measure, and how much work that is.

use crate::shared::options::{Choice, Menu};

/// What there is to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Demand,
    Fill,
    Clones,
    Hugetlb,
    Walk,
    Threads,
    Memory,
    Around,
    Protect,
}

/// How often each thing is measured, and on how much memory.
pub(crate) struct Effort {
    /// Rounds, in each of which every contender has its turn.
    pub(crate) rounds: usize,
    /// Idle seconds.
    pub(crate) idles: usize,
    /// A power of two, as all these.
    pub(crate) demand_mib: u64,
    pub(crate) fill_mib: u64,
    pub(crate) walk_mib: u64,
    pub(crate) arm_mib: u64,
}

/// What the user asked for.
pub(crate) type Options = Choice<Part, Effort>;

pub(crate) const MENU: Menu<Part, Effort> = Menu {
    bench: "fault",
    parts: &[
        ("demand", Part::Demand),
        ("fill", Part::Fill),
        ("clones", Part::Clones),
        ("hugetlb", Part::Hugetlb),
        ("walk", Part::Walk),
        ("threads", Part::Threads),
        ("memory", Part::Memory),
        ("around", Part::Around),
        ("protect", Part::Protect),
    ],
    full: Effort { rounds: 15, idles: 4, demand_mib: 64, fill_mib: 256, walk_mib: 64, arm_mib: 1024 },
    quick: Effort { rounds: 3, idles: 1, demand_mib: 8, fill_mib: 32, walk_mib: 64, arm_mib: 128 },
};
