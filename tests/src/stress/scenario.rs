//! One round's setting, as it follows from a seed.

use std::num::NonZeroU32;
use std::time::Duration;

use memory::fault::{AroundPolicy, FillOptions, Limits, Locality, Options};
use memory::source::pattern::{Pattern, Sequence};

/// What memory is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Anonymous,
    HugePages,
    Memfd,
    Clone,
    Hugetlb,
    HugetlbMemfd,
}

impl Kind {
    pub(super) const fn is_hugetlb(self) -> bool {
        matches!(self, Self::Hugetlb | Self::HugetlbMemfd)
    }
}

/// Where pages come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    Pattern,
    Image,
    Direct,
    InPlace,
    /// A whole huge page at a time.
    Whole,
    Rough(u64),
    /// Gone after so many answers.
    Dying(u64),
}

/// What is done beside reading and writing, and how much.
#[derive(Debug, Clone, Copy)]
pub(super) struct Habits {
    pub(super) discarders: u64,
    pub(super) protects: bool,
    /// How many in a hundred writes to protected pages have to wait.
    pub(super) wait_percent: u8,
    pub(super) stops: bool,
    pub(super) prefetches: bool,
    pub(super) pages_out: bool,
    /// How many in a hundred accesses are followed by a sleep.
    pub(super) idle_percent: u8,
}

/// One round's setting.
#[derive(Debug, Clone)]
pub(super) struct Scenario {
    pub(super) seed: u64,
    pub(super) kind: Kind,
    pub(super) pages: u64,
    pub(super) is_split: bool,
    pub(super) pattern_number: usize,
    pub(super) origin: Origin,
    pub(super) fills: bool,
    pub(super) options: Options,
    pub(super) threads: u64,
    pub(super) habits: Habits,
    /// One group of pages in so many is wild.
    pub(super) wild_every: u64,
    pub(super) length: Duration,
}

const PATTERNS: [Pattern; 4] = [
    |_| Some(7),
    |page| (!page.0.is_multiple_of(3)).then_some(7),
    |page| (page.0 / 64 % 3 == 1).then_some(7),
    |page| (page.0 % 512 == 5 || page.0 / 512 % 4 == 3).then_some(7),
];

/// What the machine gives beyond memory.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Machine {
    pub(super) huge_pages: u64,
    pub(super) has_swap: bool,
    pub(super) is_quick: bool,
}

impl Scenario {
    pub(super) fn of(seed: u64, machine: Machine) -> Self {
        let mut chance = Sequence::new(seed);
        let kind = kind(&mut chance, machine);
        let (mib, odd) = (size_mib(&mut chance, machine), chance.below(64));
        let pages = match kind {
            Kind::Hugetlb | Kind::HugetlbMemfd => (1 + chance.below(machine.huge_pages.min(8))) * 512,
            _ if chance.happens(30) => mib * 256 + odd,
            _ => mib * 256,
        };
        let origin = origin(&mut chance, kind);
        let fills = chance.happens(60);
        Self {
            seed,
            kind,
            pages,
            is_split: pages > 512 && chance.happens(30),
            pattern_number: index_below(&mut chance, PATTERNS.len()),
            origin,
            fills,
            options: options(&mut chance),
            threads: 1 + chance.below(8),
            habits: habits(&mut chance, machine),
            wild_every: 2 + chance.below(12),
            length: Duration::from_millis(if machine.is_quick { 100 } else { 100 + chance.below(500) }),
        }
    }

    pub(super) fn pattern(&self) -> Pattern {
        PATTERNS[self.pattern_number]
    }

    /// How many pages are thrown away together at least.
    pub(super) fn granule(&self) -> u64 {
        if self.kind.is_hugetlb() { 512 } else { 1 }
    }

    /// Whether anybody may do anything to a page at any time, so that little can be said of its content.
    pub(super) fn is_wild(&self, page: u64) -> bool {
        let group = page / self.granule().max(8);
        Sequence::new(self.seed ^ group).next_u64().is_multiple_of(self.wild_every)
    }
}

pub(super) fn index_below(chance: &mut Sequence, bound: usize) -> usize {
    usize::try_from(chance.below(bound as u64)).expect("it is below an index")
}

fn pick<T: Copy>(chance: &mut Sequence, choices: &[T]) -> T {
    choices[index_below(chance, choices.len())]
}

fn kind(chance: &mut Sequence, machine: Machine) -> Kind {
    if machine.huge_pages > 0 && chance.happens(25) {
        return pick(chance, &[Kind::Hugetlb, Kind::HugetlbMemfd]);
    }
    pick(chance, &[Kind::Anonymous, Kind::HugePages, Kind::Memfd, Kind::Clone])
}

fn size_mib(chance: &mut Sequence, machine: Machine) -> u64 {
    let mib = pick(chance, &[2, 2, 4, 4, 6, 8, 16, 16, 32, 64]);
    if machine.is_quick { mib.min(6) } else { mib }
}

pub(super) fn origin(chance: &mut Sequence, kind: Kind) -> Origin {
    if kind == Kind::Clone && chance.happens(60) {
        return Origin::InPlace;
    }
    if kind.is_hugetlb() {
        // The engine places a huge page only where its answer comes whole.
        return Origin::Whole;
    }
    let seed = chance.next_u64();
    let dying = Origin::Dying(chance.below(400));
    pick(
        chance,
        &[Origin::Pattern, Origin::Image, Origin::Direct, Origin::Rough(seed), Origin::Rough(seed), dying],
    )
}

fn options(chance: &mut Sequence) -> Options {
    let default = Limits::default();
    let limits = Limits {
        in_flight_pages_max: pick(chance, &[1, 16, 300, default.in_flight_pages_max]),
        demand_pages_max: pick(chance, &[1, 2, 7, default.demand_pages_max]),
        prefetch_ranges_max: pick(chance, &[1, 3, default.prefetch_ranges_max]),
        attempts_max: 12,
        answer_ticks_max: pick(chance, &[20, 200, 5_000]),
    };
    let pages_min = 1 << chance.below(6);
    let adaptive = AroundPolicy::Adaptive { pages_min, pages_max: pages_min << chance.below(6) };
    let spin = Duration::from_micros(chance.below(200));
    let rate = u32::try_from(1 + chance.below(200)).ok().and_then(NonZeroU32::new);
    Options {
        limits,
        around: pick(chance, &[AroundPolicy::Off, adaptive, AroundPolicy::default()]),
        fill: FillOptions {
            everything: chance.happens(50),
            rate_mib_s: pick(chance, &[None, rate]),
            waits: false,
        },
        locality: pick(chance, &[Locality::default(), Locality::Anywhere, Locality::Follow { spin }]),
        write_protect: true,
        track_writes: false,
        record: None,
    }
}

fn habits(chance: &mut Sequence, machine: Machine) -> Habits {
    Habits {
        discarders: pick(chance, &[0, 1, 1, 2, 3]),
        protects: chance.happens(60),
        wait_percent: pick(chance, &[0, 0, 10, 60]),
        stops: chance.happens(60),
        prefetches: chance.happens(50),
        pages_out: machine.has_swap && chance.happens(50),
        idle_percent: pick(chance, &[0, 2, 20]),
    }
}
