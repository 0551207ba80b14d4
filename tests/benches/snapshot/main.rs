//! How long a machine takes to be saved and to go on from its files: what `make bench` prints of snapshots.
//!
//! ```text
//!   offline   a machine that stands still: all of it, and what was written since
//!   restore   PUT /snapshot/load to the guest's first output, and until its working set is there
//!   live      what a guest notices of being saved while it works
//!   clones    many guests from one snapshot: how soon each runs, and what all of them take
//! ```
//!
//! The guest is the same in all of it: 512 MiB of RAM of which it has filled half with what is not zero, and a working
//! set of 64 MiB. Its files are on tmpfs, so that no disk is measured. What is compared is measured in the same run,
//! by turns. A promise that is not kept is printed and fails nothing: times are no tests.

mod clock;
mod clones;
mod guest;
mod live;
mod offline;
mod options;
#[path = "../shared/table.rs"]
mod report;
mod restore;
#[path = "../shared/row.rs"]
mod row;
#[path = "../shared/mod.rs"]
mod shared;
mod stretch;
mod way;

use std::process::ExitCode;

use options::{MENU, Options, Part};
use report::Report;
use shared::{host, samples};

fn main() -> ExitCode {
    shared::run(MENU, measure)
}

fn measure(host: host::Host, options: &Options) -> Report {
    let effort = &options.effort;
    let mut report = Report { host, sections: Vec::new() };
    if options.wants(Part::Offline) {
        report.sections.push(offline::measure(effort));
    }
    if options.wants(Part::Restore) {
        report.sections.push(restore::measure(effort));
    }
    if options.wants(Part::Live) {
        report.sections.push(live::measure(effort));
    }
    if options.wants(Part::Clones) {
        report.sections.push(clones::measure(effort));
    }
    report
}
