//! The command line of the one binary.
//!
//! ```text
//!   faultless [Firecracker's flags]     the VMM, behind its API socket
//!   faultless run --kernel K …          one machine on this terminal
//!   faultless ctl …                     a client of a running VMM
//!   faultless snapshot …                a snapshot's files: what is in them, whether they are whole
//!   faultless doctor                    what this host can do
//! ```
//!
//! Only `ctl` is executed here, since it needs nothing but the client; the rest is parsed, and executed by the VMM.

pub mod ctl;
mod doctor;
mod run;
mod size;
mod snapshot;
pub mod table;
mod vmm;

pub use doctor::DoctorArgs;
pub use run::{DiskArg, RunArgs};
pub use snapshot::{SnapshotArgs, SnapshotOperation};
pub use vmm::VmmArgs;

use crate::FIRECRACKER_VERSION;
use clap::error::ErrorKind;
use clap::{Parser, Subcommand};
use ctl::CtlArgs;
use std::ffi::{OsStr, OsString};
use std::path::Path;

/// Exit status when the arguments are wrong, as Firecracker has it.
pub const EXIT_ARGUMENTS: u8 = 153;

/// What the arguments ask for.
#[derive(Debug, Clone, PartialEq)]
pub enum Invocation {
    /// Be a VMM.
    Vmm(VmmArgs),
    /// Run one machine on this terminal.
    Run(RunArgs),
    /// Talk to a running VMM.
    Ctl(CtlArgs),
    /// Do something with a snapshot's files.
    Snapshot(SnapshotArgs),
    /// Say what this host can do.
    Doctor(DoctorArgs),
}

/// Arguments after which there is nothing to run: help, a version, or a mistake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// The exit status.
    pub code: u8,
    /// What to print: on stdout if the status is 0, on stderr otherwise.
    pub text: String,
}

impl Exit {
    fn refusal(text: String) -> Self {
        Self { code: EXIT_ARGUMENTS, text }
    }
}

/// A VMM that lives on page faults, wire-compatible with Firecracker.
///
/// Without a command: serve the API on a UNIX socket and wait to be told which machine to run.
#[derive(Debug, Parser)]
#[command(name = "faultless", disable_version_flag = true, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(flatten)]
    vmm: VmmArgs,
    /// Print the version and exit.
    #[arg(long, short = 'V')]
    version: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run one machine with its console on this terminal, until it powers off.
    Run(RunArgs),
    /// Talk to a running VMM.
    Ctl(CtlArgs),
    /// Look at a snapshot's files, check them, or make one of many.
    Snapshot(SnapshotArgs),
    /// Say what this host can do, and how to mend what it cannot.
    Doctor(DoctorArgs),
}

impl Invocation {
    /// Reads the arguments, the program's name first.
    pub fn parse<I>(arguments: I) -> Result<Self, Exit>
    where
        I: IntoIterator<Item = OsString>,
    {
        let arguments: Vec<OsString> = arguments.into_iter().collect();
        let cli = Cli::try_parse_from(&arguments).map_err(|error| exit_of(&error))?;
        if cli.version {
            return Err(Exit { code: 0, text: version(arguments.first().map(OsString::as_os_str)) });
        }
        match cli.command {
            None => cli.vmm.supported().map(Self::Vmm).map_err(Exit::refusal),
            Some(Command::Run(args)) => Ok(Self::Run(args)),
            Some(Command::Ctl(args)) => Ok(Self::Ctl(args)),
            Some(Command::Snapshot(args)) => Ok(Self::Snapshot(args)),
            Some(Command::Doctor(args)) => Ok(Self::Doctor(args)),
        }
    }
}

fn exit_of(error: &clap::Error) -> Exit {
    let text = error.render().to_string();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Exit { code: 0, text },
        _ => Exit::refusal(text),
    }
}

/// What `--version` prints.
///
/// Started under Firecracker's name, exactly what Firecracker prints and nothing more: clients split it at spaces
/// and take all that follows the first as the version.
fn version(program: Option<&OsStr>) -> String {
    if is_firecracker(program) {
        format!("Firecracker v{FIRECRACKER_VERSION}\n\n")
    } else {
        concat!("faultless ", env!("CARGO_PKG_VERSION"), "\n").to_owned()
    }
}

/// Whether the program was started under Firecracker's name; its releases are called like
/// `firecracker-v1.17.0-x86_64`.
fn is_firecracker(program: Option<&OsStr>) -> bool {
    let name = program.map(Path::new).and_then(Path::file_name).and_then(OsStr::to_str);
    name.is_some_and(|name| name.starts_with("firecracker"))
}

#[cfg(test)]
mod tests;
