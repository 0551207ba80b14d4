//! What all benches have in common: a command line, the host they run on, and a report for people and for programs.
//!
//! ```text
//!   arguments ──▶ Menu ──▶ Choice ─┐
//!   this machine ────────▶ Host ───┴▶ the bench measures ──▶ Report ──▶ tables, or JSON
//! ```
//!
//! A bench has a [`Menu`] of its parts and efforts, and a function that measures what was chosen; [`run`] is the rest.
//! Tables of figures with something beside them are in `row` and `table`, which a bench takes in where it has any.

pub(crate) mod host;
pub(crate) mod options;
pub(crate) mod samples;

use std::fmt;
use std::process::ExitCode;

use serde_json::Value;

use host::Host;
use options::{Choice, Menu};

/// All that a bench has measured. As text it is for people.
pub(crate) trait Report: fmt::Display {
    /// The same for programs.
    fn to_json(&self) -> Value;
}

/// Measures what the command line asks for, and prints it.
pub(crate) fn run<P: Copy + PartialEq, E, R: Report>(
    menu: Menu<P, E>,
    measure: impl FnOnce(Host, &Choice<P, E>) -> R,
) -> ExitCode {
    let choice = match menu.choose(std::env::args().skip(1)) {
        Ok(choice) => choice,
        Err(usage) => {
            eprintln!("{usage}");
            return ExitCode::FAILURE;
        }
    };
    let host = match Host::examine() {
        Ok(host) => host,
        Err(error) => {
            eprintln!("bench: {error}");
            return ExitCode::FAILURE;
        }
    };
    let report = measure(host, &choice);
    if choice.json {
        println!("{:#}", report.to_json());
    } else {
        print!("{report}");
    }
    ExitCode::SUCCESS
}
