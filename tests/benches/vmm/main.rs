//! How fast and how small the program is: what `make bench` prints.
//!
//! ```text
//!   start      process start to API ready, InstanceStart to the guest's first output
//!   footprint  memory beyond guest RAM, the binary's size
//!   kick       how long a guest that never exits holds a pause up
//!   disk       block throughput, beside a plain loop on the host over the same file
//! ```
//!
//! Everything runs on this machine's own KVM with the bare-metal guest, and every figure comes from this run; only
//! targets are written down. A missed target is printed and fails nothing: times are no tests.

mod disk;
mod figure;
mod footprint;
mod kick;
mod options;
mod report;
#[path = "../shared/mod.rs"]
mod shared;
mod start;

use std::process::ExitCode;

use options::{MENU, Options, Part};
use report::Report;
use shared::{host, samples};

fn main() -> ExitCode {
    shared::run(MENU, measure)
}

fn measure(host: host::Host, options: &Options) -> Report {
    let effort = &options.effort;
    let mut report = Report { host, figures: Vec::new(), disk: Vec::new() };
    if options.wants(Part::Start) {
        report.figures.push(start::api_ready(effort));
        report.figures.extend(start::first_output(effort));
    }
    if options.wants(Part::Footprint) {
        report.figures.push(footprint::memory_beyond_ram(effort));
        report.figures.push(footprint::binary_size());
    }
    if options.wants(Part::Kick) {
        report.figures.extend(kick::round_trips(effort));
    }
    if options.wants(Part::Disk) {
        report.disk = disk::throughput(effort);
    }
    report
}
