//! What the host has for guests' memory, and what is done with it.

use std::path::Path;

use memory::dirty::SoftDirty;
use memory::uffd::{self, Choice, Feature, LosePage, OpenError, Opened, PlaceChunk, Probe, TrackWrites};

use super::checks::read_trimmed;
use super::{Finding, Weight};

pub(super) fn all() -> Vec<Finding> {
    let probe = uffd::probe();
    let mut findings = uffd_findings(&probe);
    findings.extend(choices(Choice::of(probe.as_ref().ok(), SoftDirty::is_supported())));
    findings.push(transparent_huge_pages());
    findings.push(hugetlb());
    findings
}

fn uffd_findings(probe: &Result<Probe, OpenError>) -> Vec<Finding> {
    let name = "uffd";
    match probe {
        Ok(probe) => {
            let way = match probe.opened {
                Opened::Device => "/dev/userfaultfd".to_owned(),
                Opened::Syscall => {
                    let reason = probe.device_error.as_ref().map(ToString::to_string).unwrap_or_default();
                    format!("the system call (/dev/userfaultfd: {reason})")
                }
            };
            let mut findings = vec![Finding::good(name, Weight::Optional, format!("usable through {way}"))];
            findings.extend(Feature::ALL.into_iter().map(|feature| uffd_feature(probe, feature)));
            findings.push(pagemap_scan(probe));
            findings
        }
        Err(error) => {
            let fix = match error {
                OpenError::NotPermitted { .. } => {
                    "setfacl -m u:$USER:rw /dev/userfaultfd (Linux 6.1), or sysctl vm.unprivileged_userfaultfd=1"
                }
                OpenError::Lacks { .. } | OpenError::Handshake(_) => "use a newer kernel",
            };
            let lost = "lazy restore, post-copy migration, live snapshots and clones; VMs start and run";
            vec![Finding::bad(name, Weight::Optional, error.to_string(), lost, fix)]
        }
    }
}

/// What is done on this host: the best there is, or the next best by its name, and what that costs.
fn choices(choice: Choice) -> [Finding; 3] {
    let Choice { place_chunk, track_writes, lose_page } = choice;
    let placement = match place_chunk {
        PlaceChunk::Move => None,
        PlaceChunk::Copy => Some((
            "huge pages in guests that are restored: their TLB misses cost more",
            "use Linux 6.8 or newer",
        )),
        PlaceChunk::BeforeStart => {
            Some(("guests that run before their memory has arrived", "make `uffd` usable, as said above"))
        }
    };
    let tracking = match track_writes {
        TrackWrites::PageTables => None,
        TrackWrites::SoftDirty => Some((
            "diffs of written pages alone: all that were placed since, and whole huge pages, are in them too",
            "use Linux 6.7 or newer, and make `uffd` usable",
        )),
        TrackWrites::Nothing => Some((
            "`track_dirty_pages`, and so diffs of written pages alone",
            "use Linux 6.7 or newer, and make `uffd` usable; or a kernel with CONFIG_MEM_SOFT_DIRTY",
        )),
    };
    let lost = match lose_page {
        LosePage::Poison => None,
        LosePage::StopVm => {
            Some(("a guest that outlives a lost page", "use Linux 6.6 or newer, and make `uffd` usable"))
        }
    };
    [
        chosen("memory.placement", place_chunk.to_string(), placement),
        chosen("memory.write_tracking", track_writes.to_string(), tracking),
        chosen("memory.lost_pages", lose_page.to_string(), lost),
    ]
}

/// `next_best` is what is lost by it, and what mends that; the best has none.
fn chosen(name: &str, what: String, next_best: Option<(&str, &str)>) -> Finding {
    match next_best {
        None => Finding::good(name, Weight::Optional, what),
        Some((lost, fix)) => Finding::bad(name, Weight::Optional, what, lost, fix),
    }
}

fn uffd_feature(probe: &Probe, feature: Feature) -> Finding {
    let name = format!("uffd.{}", feature.name);
    if probe.has(feature) {
        Finding::good(name, Weight::Optional, "there")
    } else {
        let fix = format!("use Linux {} or newer", feature.since);
        Finding::bad(name, Weight::Optional, "this kernel lacks it", feature.lost_without, fix)
    }
}

fn pagemap_scan(probe: &Probe) -> Finding {
    let name = "uffd.pagemap_scan";
    if probe.pagemap_scan {
        return Finding::good(name, Weight::Optional, "there");
    }
    let lost = "finding written pages: diff snapshots use soft-dirty bits, where the kernel has them";
    Finding::bad(name, Weight::Optional, "this kernel lacks it", lost, "use Linux 6.7 or newer")
}

fn transparent_huge_pages() -> Finding {
    let name = "memory.transparent_huge_pages";
    let lost = "huge pages without a reserved pool: guests run on 4 KiB pages, with more TLB misses";
    match read_trimmed("/sys/kernel/mm/transparent_hugepage/enabled") {
        Some(setting) if setting.contains("[never]") => {
            let fix = "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled";
            Finding::bad(name, Weight::Optional, setting, lost, fix)
        }
        Some(setting) => Finding::good(name, Weight::Optional, setting),
        None => {
            Finding::bad(name, Weight::Optional, "not in this kernel", lost, "use a kernel built with them")
        }
    }
}

fn hugetlb() -> Finding {
    let name = "memory.hugetlb_2m";
    let pool = Path::new("/sys/kernel/mm/hugepages/hugepages-2048kB");
    let count = |file| read_trimmed(pool.join(file)).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    let (free, total) = (count("free_hugepages"), count("nr_hugepages"));
    let detail = format!("{free} of {total} reserved pages of 2 MiB are free");
    if free > 0 {
        return Finding::good(name, Weight::Optional, detail);
    }
    let lost = "guests with `huge_pages: 2M`; those with transparent huge pages are not concerned";
    Finding::bad(name, Weight::Optional, detail, lost, "sysctl vm.nr_hugepages=N")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_best_is_told_by_name_with_what_it_costs() {
        let [placement, tracking, lost] = choices(Choice::of(None, true));
        assert_eq!(placement.detail, "all of it before the guest starts");
        assert!(!placement.ok && placement.fix.is_some_and(|fix| fix.contains("`uffd`")));
        assert_eq!(
            (tracking.name.as_str(), tracking.detail.as_str()),
            ("memory.write_tracking", "soft-dirty bits")
        );
        assert_eq!((lost.ok, lost.detail.as_str()), (false, "the VM is stopped"));
    }

    #[test]
    fn the_best_is_told_by_name_and_costs_nothing() {
        let best = Choice {
            place_chunk: PlaceChunk::Move,
            track_writes: TrackWrites::PageTables,
            lose_page: LosePage::Poison,
        };
        let findings = choices(best);
        assert!(findings.iter().all(|finding| finding.ok && finding.lost.is_none()), "{findings:?}");
        assert_eq!(findings[0].detail, "huge pages by MOVE (2 MiB), COPY else");
        assert_eq!(findings[1].detail, "WP_ASYNC with PAGEMAP_SCAN");
    }
}
