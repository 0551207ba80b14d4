//! `faultless doctor`.

use clap::Args;

/// Say what this host can do.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct DoctorArgs {
    /// Print JSON, for programs.
    #[arg(long)]
    pub json: bool,
}
