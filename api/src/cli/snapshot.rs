//! `faultless snapshot`: what one can do with a snapshot's files, without a VMM.

use clap::{Args, Subcommand};
use std::path::PathBuf;

/// Look at a snapshot's files, check them, or make one of many.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct SnapshotArgs {
    /// Print JSON, for programs.
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do.
    #[command(subcommand)]
    pub operation: SnapshotOperation,
}

/// What to do with a snapshot's files.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum SnapshotOperation {
    /// Say what is in a state file: who saved which machine, on which host, and what its memory is over.
    Inspect {
        /// The state file.
        state: PathBuf,
    },
    /// Check a snapshot: the state file, and every page of its memory file and of those below it.
    Verify {
        /// The state file.
        state: PathBuf,
        /// The memory file.
        memory: PathBuf,
    },
    /// Make a full snapshot of a diff and all that is below it. Those stay as they are.
    Rebase {
        /// The diff's state file.
        state: PathBuf,
        /// The diff's memory file.
        memory: PathBuf,
        /// The state file that is written.
        to_state: PathBuf,
        /// The memory file that is written.
        to_memory: PathBuf,
    },
}
