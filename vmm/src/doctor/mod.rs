//! `faultless doctor`: what this host can do, what is lost by what it cannot, and how to mend it.

mod checks;
mod guest_memory;
mod trial;

use std::fmt::Write as _;
use std::process::ExitCode;

use serde::Serialize;

/// How much depends on something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Weight {
    /// Without it there is no VM.
    Required,
    /// Without it something is slower, or cannot be done.
    Optional,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Finding {
    /// What was looked at, as `area.thing`.
    name: String,
    /// Whether it is there and usable.
    ok: bool,
    weight: Weight,
    /// What was found.
    detail: String,
    /// What a user goes without.
    #[serde(skip_serializing_if = "Option::is_none")]
    lost: Option<String>,
    /// What mends it: a command, or what to change.
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<String>,
}

impl Finding {
    fn good(name: impl Into<String>, weight: Weight, detail: impl Into<String>) -> Self {
        Self { name: name.into(), ok: true, weight, detail: detail.into(), lost: None, fix: None }
    }

    fn bad(
        name: impl Into<String>,
        weight: Weight,
        detail: impl Into<String>,
        lost: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self { lost: Some(lost.into()), fix: Some(fix.into()), ok: false, ..Self::good(name, weight, detail) }
    }
}

/// All that was found.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Whether a VM can run at all.
    can_run_vm: bool,
    /// Whether a stock Linux can be its guest.
    can_run_linux: bool,
    arch: &'static str,
    kernel: String,
    /// What is behind `/dev/kvm`: `vmx`, `svm`, `pvm` or `unknown`.
    kvm: &'static str,
    findings: Vec<Finding>,
}

impl Report {
    /// Looks at this host.
    #[must_use]
    pub fn of_host() -> Self {
        let (guest, findings) = checks::all();
        Self {
            can_run_vm: findings.iter().all(|finding| finding.ok || finding.weight == Weight::Optional),
            can_run_linux: guest == checks::Guest::Linux,
            arch: std::env::consts::ARCH,
            kernel: checks::kernel_release(),
            kvm: crate::kvm::Flavor::of_host().name(),
            findings,
        }
    }

    fn table(&self) -> String {
        let mut text = String::new();
        let width = self.findings.iter().map(|finding| finding.name.len()).max().unwrap_or(0);
        for finding in &self.findings {
            let mark = match (finding.ok, finding.weight) {
                (true, _) => "ok  ",
                (false, Weight::Required) => "FAIL",
                (false, Weight::Optional) => "miss",
            };
            // Writing into a string cannot fail.
            let _ = writeln!(text, "{mark}  {:width$}  {}", finding.name, finding.detail);
            for (word, note) in [("lost", &finding.lost), ("mend", &finding.fix)] {
                if let Some(note) = note {
                    let _ = writeln!(text, "      {:width$}    {word}: {note}", "");
                }
            }
        }
        let verdict = match (self.can_run_vm, self.can_run_linux) {
            (true, true) => "this host can run microVMs",
            (true, false) => "this host can run microVMs, but not a stock Linux in them",
            (false, _) => "this host cannot run a microVM: see the lines marked FAIL",
        };
        let _ = writeln!(text, "\n{} on Linux {}: {verdict}", self.arch, self.kernel);
        text
    }
}

/// Prints the report; the status says whether a VM can run.
#[must_use]
pub fn main(as_json: bool) -> ExitCode {
    let report = Report::of_host();
    if as_json {
        let json = serde_json::to_string_pretty(&report).expect("the report has string keys only");
        println!("{json}");
    } else {
        print!("{}", report.table());
    }
    if report.can_run_vm { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_told_with_its_loss_and_its_mending() {
        let report = Report {
            can_run_vm: true,
            can_run_linux: false,
            arch: "x86_64",
            kernel: "6.1".to_owned(),
            kvm: "vmx",
            findings: vec![
                Finding::good("kvm", Weight::Required, "there"),
                Finding::bad("uffd.move", Weight::Optional, "missing", "speed", "Linux 6.8"),
            ],
        };
        let table = report.table();
        assert!(table.contains("ok    kvm        there"), "{table}");
        assert!(table.contains("miss  uffd.move  missing") && table.contains("lost: speed"), "{table}");
        assert!(table.contains("mend: Linux 6.8") && table.contains("but not a stock Linux"), "{table}");
    }

    #[test]
    fn every_finding_that_is_bad_says_what_to_do() {
        for finding in Report::of_host().findings {
            assert_eq!(finding.ok, finding.lost.is_none(), "{finding:?}");
            assert_eq!(finding.ok, finding.fix.is_none(), "{finding:?}");
        }
    }
}
