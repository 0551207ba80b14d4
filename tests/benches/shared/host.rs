//! What the figures were measured on.

use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use tests::vmm::binary;

/// How long the processors are looked at before anything is measured.
const LOOK_TIME: Duration = Duration::from_millis(500);
/// user, nice, system, idle, iowait, irq, softirq, steal: the ones behind them are counted in these.
const PROC_STAT_FIELDS: usize = 8;

/// Why nothing can be measured here.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HostError {
    #[error(
        "this machine's KVM runs no guest, and a host in software has no times worth printing; `{program} doctor` says what is missing"
    )]
    NoKvm { program: String },
    #[error("`{program} doctor --json` cannot be understood: {reason}")]
    Doctor { program: String, reason: String },
}

/// This machine.
pub(crate) struct Host {
    program: PathBuf,
    kvm: String,
    arch: &'static str,
    kernel: String,
    cpus: usize,
    model: String,
    /// How much of its processors' time others took just before this began: on a busy machine, figures are theirs too.
    busy_percent: f64,
}

impl Host {
    /// Asks the program itself, so that its word and this table's are the same.
    pub(crate) fn examine() -> Result<Self, HostError> {
        let program = binary();
        let name = program.display().to_string();
        let doctor = |reason: String| HostError::Doctor { program: name.clone(), reason };
        let output = Command::new(&program).args(["doctor", "--json"]).output();
        let output = output.map_err(|error| doctor(error.to_string()))?;
        let said: Value =
            serde_json::from_slice(&output.stdout).map_err(|error| doctor(error.to_string()))?;
        if said["can_run_vm"] != true {
            return Err(HostError::NoKvm { program: name });
        }
        let text = |key: &str| said[key].as_str().unwrap_or("unknown").to_owned();
        Ok(Self {
            program,
            kvm: text("kvm"),
            arch: std::env::consts::ARCH,
            kernel: text("kernel"),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            model: processor_model(),
            busy_percent: busy_percent(),
        })
    }

    pub(crate) fn to_json(&self) -> Value {
        json!({
            "program": self.program, "kvm": self.kvm, "arch": self.arch, "kernel": self.kernel,
            "cpus": self.cpus, "model": self.model, "busy_percent_before": self.busy_percent,
        })
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { program, kvm, arch, kernel, cpus, model, busy_percent } = self;
        writeln!(f, "{}", program.display())?;
        writeln!(f, "on this machine's own KVM, kind {kvm}; {arch}, Linux {kernel}")?;
        writeln!(f, "{cpus} CPUs, {model}; {busy_percent:.0} % busy before")
    }
}

fn processor_model() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("model name"));
    let model = line.and_then(|line| line.split_once(':')).map(|(_, model)| model.trim().to_owned());
    model.unwrap_or_else(|| "unknown model".to_owned())
}

fn busy_percent() -> f64 {
    let before = processor_times();
    std::thread::sleep(LOOK_TIME);
    let after = processor_times();
    let spent = |index: usize| after[index].saturating_sub(before[index]) as f64;
    100.0 * spent(0) / (spent(0) + spent(1)).max(1.0)
}

/// What the processors have done so far, and how long they were idle or waited (proc_stat(5)).
fn processor_times() -> [u64; 2] {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let fields: Vec<u64> = text
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1)
        .take(PROC_STAT_FIELDS)
        .filter_map(|field| field.parse().ok())
        .collect();
    let idle = fields.iter().skip(3).take(2).sum::<u64>();
    [fields.iter().sum::<u64>() - idle, idle]
}
