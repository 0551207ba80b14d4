//! The program `faultless`.

use std::process::ExitCode;

use api::cli::Invocation;
use api::cli::ctl::{self, CtlArgs};

fn main() -> ExitCode {
    match Invocation::parse(std::env::args_os()) {
        Ok(Invocation::Vmm(args)) => vmm::process::main(&args),
        Ok(Invocation::Run(args)) => vmm::console::main(&args),
        Ok(Invocation::Ctl(args)) => control(&args),
        Ok(Invocation::Snapshot(args)) => vmm::snapshot::files::main(&args),
        Ok(Invocation::Doctor(args)) => vmm::doctor::main(args.json),
        Err(exit) if exit.code == 0 => {
            print!("{}", exit.text);
            ExitCode::SUCCESS
        }
        Err(exit) => {
            eprint!("{}", exit.text);
            ExitCode::from(exit.code)
        }
    }
}

/// Talks to a running VMM; what it answers goes to standard output, and what went wrong to standard error.
fn control(args: &CtlArgs) -> ExitCode {
    match ctl::execute(args, &mut std::io::stdout()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("faultless: {error}");
            ExitCode::FAILURE
        }
    }
}
