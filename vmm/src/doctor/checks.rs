//! What is looked at, one function for one part of the host.

use std::fs;
use std::path::Path;

use kvm_ioctls::Cap;
use memory::uffd::{self, Feature, OpenError, Opened, Probe};

use super::trial::{self, Outcome};
use super::{Finding, Weight};
use crate::kvm::{self, Flavor};

/// What kind of guest this host's KVM runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Guest {
    /// None.
    Nothing,
    /// Small ones that ask little of an emulator.
    BareMetal,
    /// Any, a stock Linux among them.
    Linux,
}

pub(super) fn all() -> (Guest, Vec<Finding>) {
    let mut findings = Vec::new();
    let guest = kvm_findings(&mut findings);
    findings.extend(uffd_findings());
    findings.push(transparent_huge_pages());
    findings.push(hugetlb());
    findings.push(io_uring());
    (guest, findings)
}

pub(super) fn kernel_release() -> String {
    read_trimmed("/proc/sys/kernel/osrelease").unwrap_or_else(|| "unknown".to_owned())
}

fn read_trimmed(path: impl AsRef<Path>) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// Opens KVM, looks for what makes it faster, and runs a few instructions in it.
fn kvm_findings(findings: &mut Vec<Finding>) -> Guest {
    let kvm = match kvm::open() {
        Ok(kvm) => kvm,
        Err(error) => {
            let fix = error.to_string();
            let fix = fix.split_once(": ").map_or(fix.as_str(), |(_, what_to_do)| what_to_do);
            findings.push(Finding::bad("kvm", Weight::Required, error.to_string(), "everything", fix));
            return Guest::Nothing;
        }
    };
    let flavor = Flavor::of_host();
    findings.push(Finding::good(
        "kvm",
        Weight::Required,
        format!("{} is usable, kind: {}", kvm::DEVICE, flavor.name()),
    ));
    for (name, capability, lost) in [
        (
            "kvm.tsc_deadline",
            Cap::TscDeadlineTimer,
            "a cheap timer in guests: they program the local APIC instead",
        ),
        ("kvm.async_pf", Cap::AsyncPf, "a guest that runs other work while a page is fetched"),
    ] {
        let has = kvm.check_extension(capability);
        findings.push(if has {
            Finding::good(name, Weight::Optional, "there")
        } else {
            Finding::bad(name, Weight::Optional, "this host's KVM lacks it", lost, "use a newer kernel")
        });
    }
    let (guest, finding) = run_trial(&kvm, flavor);
    findings.push(finding);
    guest
}

fn run_trial(kvm: &kvm_ioctls::Kvm, flavor: Flavor) -> (Guest, Finding) {
    let name = "kvm.guest_code";
    match trial::run(kvm) {
        Ok(Outcome::Finished) => (
            Guest::Linux,
            Finding::good(name, Weight::Required, "a guest's kernel code runs, stock Linux included"),
        ),
        Ok(Outcome::NotEmulated) => {
            let detail =
                format!("kind {}: kernel code of guests is emulated, and not all of it", flavor.name());
            let lost = "a stock Linux as a guest; bare-metal guests run";
            let fix = "use a host with VT-x or AMD-V, or ask its provider for nested virtualization";
            (Guest::BareMetal, Finding::bad(name, Weight::Optional, detail, lost, fix))
        }
        Err(error) => {
            let detail = format!("a trial guest failed: {error}");
            let fix = "look at the host's kernel log (`dmesg | grep -i kvm`)";
            (Guest::Nothing, Finding::bad(name, Weight::Required, detail, "everything", fix))
        }
    }
}

fn uffd_findings() -> Vec<Finding> {
    let name = "uffd";
    match uffd::probe() {
        Ok(probe) => {
            let way = match probe.opened {
                Opened::Device => "/dev/userfaultfd".to_owned(),
                Opened::Syscall => {
                    let reason = probe.device_error.as_ref().map(ToString::to_string).unwrap_or_default();
                    format!("the system call (/dev/userfaultfd: {reason})")
                }
            };
            let mut findings = vec![Finding::good(name, Weight::Optional, format!("usable through {way}"))];
            findings.extend(Feature::ALL.into_iter().map(|feature| uffd_feature(&probe, feature)));
            findings.push(pagemap_scan(&probe));
            findings
        }
        Err(error) => {
            let fix = match &error {
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
    let lost = "finding written pages at once: diff snapshots use KVM's dirty log";
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

fn io_uring() -> Finding {
    let name = "io_uring";
    match devices::virtio::block::check_io_uring() {
        Ok(()) => Finding::good(name, Weight::Optional, "usable"),
        Err(error) => Finding::bad(
            name,
            Weight::Optional,
            error.to_string(),
            "drives with `io_engine: Async`; those with `Sync` are not concerned",
            "sysctl kernel.io_uring_disabled=0, or use Linux 5.10 or newer",
        ),
    }
}
