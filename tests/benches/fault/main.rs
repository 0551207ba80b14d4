//! How much a fault costs, and how fast memory is filled: what `make bench` prints of the fault engine.
//!
//! ```text
//!   demand    one fault after the other, beside the barest loop that could be written by hand
//!   fill      bulk: by COPY, by MOVE, and zeros, beside raw COPY
//!   clones    what a memfd has already: by CONTINUE, beside COPY
//!   hugetlb   huge pages of the host's pool, on demand and in bulk
//!   walk      a vCPU that walks through memory that was placed by MOVE, or by COPY
//!   threads   several that fault at once
//!   memory    what the engine takes for itself
//!   around    a walk, and what comes with each fault
//!   protect   writes to protected pages, and protecting
//! ```
//!
//! What is promised are ratios to something that is measured in the same run, by turns: they hold on any machine, or
//! not. A promise that is not kept is printed and fails nothing: times are no tests. Content that is wrong does.

mod around;
mod bare;
mod bare_ways;
mod clones;
mod demand;
mod fill;
mod footprint;
mod heap;
mod hugetlb;
mod options;
mod place;
mod protect;
mod ram;
#[path = "../shared/table.rs"]
mod report;
#[path = "../shared/row.rs"]
mod row;
#[path = "../shared/mod.rs"]
mod shared;
mod threads;
#[cfg(target_arch = "x86_64")]
mod walk;

use std::process::ExitCode;

use options::{MENU, Options, Part};
use report::Report;
use shared::{host, samples};

#[global_allocator]
static ALLOCATOR: heap::Counting = heap::Counting;

fn main() -> ExitCode {
    shared::run(MENU, measure)
}

fn measure(host: host::Host, options: &Options) -> Report {
    let effort = &options.effort;
    let processors = place::processors();
    let mut report = Report { host, sections: Vec::new() };
    if options.wants(Part::Demand) {
        report.sections.push(demand::measure(effort, &processors));
    }
    if options.wants(Part::Fill) {
        report.sections.push(fill::measure(effort));
    }
    if options.wants(Part::Clones) {
        report.sections.push(clones::measure(effort, &processors));
    }
    if options.wants(Part::Hugetlb) {
        report.sections.push(hugetlb::measure(effort, &processors));
    }
    #[cfg(target_arch = "x86_64")]
    if options.wants(Part::Walk) {
        report.sections.push(walk::measure(effort));
    }
    if options.wants(Part::Threads) {
        report.sections.push(threads::measure(effort));
    }
    if options.wants(Part::Memory) {
        report.sections.push(footprint::measure(effort));
    }
    if options.wants(Part::Around) {
        report.sections.push(around::measure(effort));
    }
    if options.wants(Part::Protect) {
        report.sections.push(protect::measure(effort, &processors));
    }
    report
}
