//! How memory is placed, tracked and given up on a kernel: decided once, so that what `faultless doctor` says is what
//! is done.

use std::fmt;

use super::{Feature, Features, Probe};
use crate::ram::Backing;

/// What [`TrackWrites::PageTables`] asks of a userfaultfd. Without `WP_UNPOPULATED` the kernel scans no private memory
/// for writes (`userfaultfd_wp_use_markers`); and every backing is to do.
pub const WRITE_TRACKING: Features = Features::NONE
    .with(Feature::WRITE_PROTECT)
    .with(Feature::WRITE_PROTECT_UNPOPULATED)
    .with(Feature::WRITE_PROTECT_SHARED)
    .with(Feature::WRITE_PROTECT_ASYNC);

/// How whole chunks of 2 MiB get into a guest's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlaceChunk {
    /// A huge page that was filled elsewhere is moved in.
    Move,
    /// Pages of the memory's own size are copied in.
    Copy,
    /// There is no userfaultfd: all is there before the guest runs.
    BeforeStart,
}

/// How it is known which pages were written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrackWrites {
    /// The kernel notes it in the page tables, for who has registered the memory: [`crate::dirty::WriteTracker`].
    PageTables,
    /// The kernel notes it in the page tables, for the whole process: [`crate::dirty::SoftDirty`].
    SoftDirty,
    /// It is not.
    Nothing,
}

/// What becomes of a page that no source can give.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LosePage {
    /// Whoever touches it gets a memory error.
    Poison,
    /// The VM is stopped when the page is wanted.
    StopVm,
}

/// What is done on one kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// For private anonymous memory; [`place_chunk_of`](Self::place_chunk_of) says it for any.
    pub place_chunk: PlaceChunk,
    /// How written pages are found.
    pub track_writes: TrackWrites,
    /// What a lost page is.
    pub lose_page: LosePage,
}

impl Choice {
    /// The best that a kernel has; `None` is one on which no userfaultfd can be had. `soft_dirty` is whether it has
    /// [soft-dirty bits](crate::dirty::SoftDirty::is_supported).
    #[must_use]
    pub fn of(probe: Option<&Probe>, soft_dirty: bool) -> Self {
        let has = |feature| probe.is_some_and(|probe| probe.has(feature));
        let tracks = |probe: &Probe| probe.pagemap_scan && WRITE_TRACKING.without(probe.features).is_empty();
        Self {
            place_chunk: match probe {
                None => PlaceChunk::BeforeStart,
                Some(_) if has(Feature::MOVE) => PlaceChunk::Move,
                Some(_) => PlaceChunk::Copy,
            },
            track_writes: match probe {
                Some(probe) if tracks(probe) => TrackWrites::PageTables,
                _ if soft_dirty => TrackWrites::SoftDirty,
                _ => TrackWrites::Nothing,
            },
            lose_page: if has(Feature::POISON) { LosePage::Poison } else { LosePage::StopVm },
        }
    }

    /// How chunks get into memory of that backing: pages move between private anonymous memory only.
    #[must_use]
    pub const fn place_chunk_of(self, backing: Backing) -> PlaceChunk {
        match self.place_chunk {
            PlaceChunk::Move if !backing.supports_move() => PlaceChunk::Copy,
            other => other,
        }
    }
}

impl fmt::Display for PlaceChunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Move => "huge pages by MOVE (2 MiB), COPY else",
            Self::Copy => "base pages by COPY (4 KiB)",
            Self::BeforeStart => "all of it before the guest starts",
        })
    }
}

impl fmt::Display for TrackWrites {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PageTables => "WP_ASYNC with PAGEMAP_SCAN",
            Self::SoftDirty => "soft-dirty bits",
            Self::Nothing => "none: every page that the host has of a guest is in a diff",
        })
    }
}

impl fmt::Display for LosePage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Poison => "POISON",
            Self::StopVm => "the VM is stopped",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::uffd::Opened;

    /// A kernel that has what is there since `version` or before.
    fn kernel(version: (u32, u32)) -> Probe {
        let number = |text: &str| {
            let (major, minor) = text.split_once('.').unwrap();
            (major.parse::<u32>().unwrap(), minor.parse::<u32>().unwrap())
        };
        let there = Feature::ALL.into_iter().filter(|feature| number(feature.since) <= version);
        Probe {
            opened: Opened::Device,
            device_error: None,
            pagemap_scan: version >= (6, 7),
            features: there.fold(Features::NONE, Features::with),
        }
    }

    fn texts(choice: Choice) -> [String; 3] {
        [choice.place_chunk.to_string(), choice.track_writes.to_string(), choice.lose_page.to_string()]
    }

    #[test]
    fn each_kernel_does_the_best_it_has() {
        assert_eq!(
            texts(Choice::of(Some(&kernel((6, 12))), true)),
            ["huge pages by MOVE (2 MiB), COPY else", "WP_ASYNC with PAGEMAP_SCAN", "POISON"]
        );
        assert_eq!(
            texts(Choice::of(Some(&kernel((6, 7))), false)),
            ["base pages by COPY (4 KiB)", "WP_ASYNC with PAGEMAP_SCAN", "POISON"]
        );
        assert_eq!(
            texts(Choice::of(Some(&kernel((6, 1))), true)),
            ["base pages by COPY (4 KiB)", "soft-dirty bits", "the VM is stopped"]
        );
        let nothing = "none: every page that the host has of a guest is in a diff";
        assert_eq!(
            texts(Choice::of(None, false)),
            ["all of it before the guest starts", nothing, "the VM is stopped"]
        );
        assert_eq!(Choice::of(None, true).track_writes, TrackWrites::SoftDirty);
    }

    #[test]
    fn every_part_of_write_tracking_is_needed() {
        let whole = kernel((6, 12));
        let lacking = |feature: Feature| Probe {
            features: whole.features.without(Features::NONE.with(feature)),
            ..kernel((6, 12))
        };
        let mut probes = vec![Probe { pagemap_scan: false, ..kernel((6, 12)) }];
        let needed = Feature::ALL.into_iter().filter(|feature| WRITE_TRACKING.has(*feature));
        probes.extend(needed.map(lacking));
        assert_eq!(probes.len(), 5);
        for probe in probes {
            assert_eq!(Choice::of(Some(&probe), false).track_writes, TrackWrites::Nothing, "{probe:?}");
        }
    }

    #[test]
    fn only_anonymous_memory_is_moved_into() {
        let anonymous = Backing::Anonymous { transparent_huge_pages: true };
        let moves = Choice::of(Some(&kernel((6, 8))), false);
        assert_eq!(moves.place_chunk_of(anonymous), PlaceChunk::Move);
        for backing in [Backing::MemfdPrivate, Backing::Hugetlb2M] {
            assert_eq!(moves.place_chunk_of(backing), PlaceChunk::Copy);
            assert_eq!(Choice::of(None, false).place_chunk_of(backing), PlaceChunk::BeforeStart);
        }
    }
}
