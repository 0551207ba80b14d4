//! A VMM whose guest's memory is served as its first argument says ([`tests::served`]); the others are the VMM's own.
//! What was served goes to standard error at the end, and what was wrong with it to the exit status.

use std::process::ExitCode;

use api::cli::Invocation;
use tests::served;

const USAGE: &str = "usage: served WORD,WORD… [the VMM's flags]";

fn main() -> ExitCode {
    let mut arguments: Vec<_> = std::env::args_os().collect();
    if arguments.len() < 2 {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    }
    let words = arguments.remove(1).to_string_lossy().into_owned();
    let Ok(Invocation::Vmm(args)) = Invocation::parse(arguments) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    match served::plan(&words) {
        Ok((plan, outcome)) => outcome.check(vmm::process::main_with(&args, plan)),
        Err(error) => {
            eprintln!("served: {error}");
            ExitCode::FAILURE
        }
    }
}
