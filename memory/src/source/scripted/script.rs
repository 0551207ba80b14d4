//! What a scripted source does wrong.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use crate::page::PageIndex;
use crate::source::pattern::Pattern;

/// What is the matter with a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// It is lost this many times, and then there.
    LostTimes(u64),
    /// It is lost each time.
    Lost,
    /// No answer ever comes.
    Never,
    /// It is said to be zero, which it is not.
    FalseZero,
    /// A bit of it is flipped.
    Flipped,
}

/// What becomes of the rest of a request that is answered short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rest {
    /// It never comes.
    Never,
    /// It comes after another delay.
    Later,
}

/// How a source behaves. By default well: at once, in order, each page once.
#[derive(Debug, Clone)]
pub struct Script {
    /// What chance follows from: the same seed and the same requests give the same answers.
    pub seed: u64,
    /// The content.
    pub pattern: Pattern,
    /// How long a tick is.
    pub tick: Duration,
    /// How many ticks an answer takes.
    pub delay_ticks: RangeInclusive<u64>,
    /// Whether answers that are due come in any order.
    pub reorders: bool,
    /// How many requests in a hundred are answered in pieces.
    pub split_percent: u8,
    /// How many answers in a hundred come twice.
    pub twice_percent: u8,
    /// How many requests in a hundred are answered with fewer pages than they asked for.
    pub short_percent: u8,
    /// What becomes of the pages that are left out then.
    pub rest: Rest,
    /// With how many requests in a hundred a page comes that nobody asked for.
    pub uninvited_percent: u8,
    /// Pages with something the matter.
    pub troubles: BTreeMap<PageIndex, Trouble>,
    /// After how many answers the source is gone.
    pub dies_after: Option<u64>,
}

/// A seed for each page, and every eighth page zero.
fn some_zero(page: PageIndex) -> Option<u64> {
    (page.0 % 8 != 7).then_some(1)
}

impl Default for Script {
    fn default() -> Self {
        Self {
            seed: 1,
            pattern: some_zero,
            tick: Duration::from_micros(200),
            delay_ticks: 0..=0,
            reorders: false,
            split_percent: 0,
            twice_percent: 0,
            short_percent: 0,
            rest: Rest::Never,
            uninvited_percent: 0,
            troubles: BTreeMap::new(),
            dies_after: None,
        }
    }
}

impl Script {
    /// Answers take from none to `ticks` ticks.
    #[must_use]
    pub fn delayed(ticks: u64) -> Self {
        Self { delay_ticks: 0..=ticks, ..Self::default() }
    }

    /// Answers come in any order.
    #[must_use]
    pub fn reordered() -> Self {
        Self { reorders: true, ..Self::default() }
    }

    /// Every request is answered in pieces.
    #[must_use]
    pub fn split() -> Self {
        Self { split_percent: 100, ..Self::default() }
    }

    /// Every answer comes twice.
    #[must_use]
    pub fn twice() -> Self {
        Self { twice_percent: 100, ..Self::default() }
    }

    /// Every request for more than a page is answered with fewer.
    #[must_use]
    pub fn short(rest: Rest) -> Self {
        Self { short_percent: 100, rest, ..Self::default() }
    }

    /// With every request a page comes that nobody asked for.
    #[must_use]
    pub fn uninvited() -> Self {
        Self { uninvited_percent: 100, ..Self::default() }
    }

    /// Something is the matter with `page`.
    #[must_use]
    pub fn trouble(page: PageIndex, trouble: Trouble) -> Self {
        Self { troubles: BTreeMap::from([(page, trouble)]), ..Self::default() }
    }

    /// The source is gone after `answers` answers.
    #[must_use]
    pub fn dies_after(answers: u64) -> Self {
        Self { dies_after: Some(answers), ..Self::default() }
    }

    /// Everything that a caller has to live with, by chance, and nothing that loses a page for good.
    #[must_use]
    pub fn rough(seed: u64) -> Self {
        Self {
            seed,
            delay_ticks: 0..=5,
            reorders: true,
            split_percent: 30,
            twice_percent: 20,
            short_percent: 20,
            rest: Rest::Later,
            uninvited_percent: 10,
            ..Self::default()
        }
    }
}
