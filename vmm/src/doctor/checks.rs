//! What is looked at, one function for one part of the host.

use std::fs;
use std::path::Path;

use kvm_ioctls::Cap;

use super::trial::{self, Outcome};
use super::{Finding, Weight, guest_memory};
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
    findings.extend(guest_memory::all());
    findings.push(io_uring());
    (guest, findings)
}

pub(super) fn kernel_release() -> String {
    read_trimmed("/proc/sys/kernel/osrelease").unwrap_or_else(|| "unknown".to_owned())
}

pub(super) fn read_trimmed(path: impl AsRef<Path>) -> Option<String> {
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
