//! The flags of the VMM itself, which are Firecracker's.

use crate::server::Limits;
use crate::types::{LogLevel, check_instance_id};
use clap::Args;
use clap::builder::RangedU64ValueParser;
use std::path::PathBuf;

/// Largest `--http-api-max-payload-size`: what ten clients could make the process hold at once stays bounded.
const PAYLOAD_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// How to be a VMM.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct VmmArgs {
    /// Path of the API socket.
    #[arg(long, value_name = "PATH", default_value = "/run/firecracker.socket")]
    pub api_sock: PathBuf,
    /// Name of this instance: letters, digits and hyphens.
    #[arg(long, value_name = "ID", default_value = "anonymous-instance", value_parser = parse_instance_id)]
    pub id: String,
    /// Run without seccomp filters. Accepted; there are no filters yet.
    #[arg(long, conflicts_with = "seccomp_filter")]
    pub no_seccomp: bool,
    #[arg(long, value_name = "PATH", hide = true)]
    seccomp_filter: Option<PathBuf>,
    /// When the process was started, by the wall clock in µs.
    #[arg(long, value_name = "US")]
    pub start_time_us: Option<u64>,
    /// CPU time of the process at its start, in µs.
    #[arg(long, value_name = "US")]
    pub start_time_cpu_us: Option<u64>,
    /// CPU time of the parent process, in µs.
    #[arg(long, value_name = "US")]
    pub parent_cpu_time_us: Option<u64>,
    /// Configure and start the machine that this JSON file describes.
    #[arg(long, value_name = "PATH")]
    pub config_file: Option<PathBuf>,
    /// Serve no API: run the machine of --config-file.
    #[arg(long, requires = "config_file")]
    pub no_api: bool,
    /// File or named pipe that gets the log.
    #[arg(long, value_name = "PATH")]
    pub log_path: Option<PathBuf>,
    /// How much is logged: Off, Error, Warning, Info, Debug or Trace.
    #[arg(long, value_name = "LEVEL")]
    pub level: Option<LogLevel>,
    /// Log only what this module does.
    #[arg(long, value_name = "MODULE")]
    pub module: Option<String>,
    /// Say its level in each line of the log.
    #[arg(long)]
    pub show_level: bool,
    /// Say its file and line in each line of the log.
    #[arg(long)]
    pub show_log_origin: bool,
    /// File or named pipe that gets the metrics.
    #[arg(long, value_name = "PATH")]
    pub metrics_path: Option<PathBuf>,
    /// Log how long the guest took to boot, when it says that it has.
    #[arg(long)]
    pub boot_timer: bool,
    /// Longest request body, in bytes.
    #[arg(
        long = "http-api-max-payload-size",
        value_name = "BYTES",
        default_value_t = Limits::default().payload_bytes_max,
        value_parser = RangedU64ValueParser::<usize>::new().range(1..=PAYLOAD_BYTES_MAX),
    )]
    pub payload_bytes_max: usize,
    /// Largest metadata store, in bytes. Accepted; there is no metadata service yet.
    #[arg(long, value_name = "BYTES")]
    pub mmds_size_limit: Option<u64>,
    #[arg(long, value_name = "PATH", hide = true)]
    metadata: Option<PathBuf>,
    #[arg(long, hide = true)]
    enable_pci: bool,
    /// Print the version of the state files that are written, and exit.
    #[arg(long)]
    pub snapshot_version: bool,
    /// Print the version of this state file, and exit.
    #[arg(long, value_name = "PATH")]
    pub describe_snapshot: Option<PathBuf>,
}

impl VmmArgs {
    /// Refuses flags of Firecracker's that would have to be ignored where its user counts on their effect.
    pub(super) fn supported(self) -> Result<Self, String> {
        let unsupported = [
            (self.seccomp_filter.is_some(), "--seccomp-filter", "start without it"),
            (self.metadata.is_some(), "--metadata", "there is no metadata service; start without it"),
            (self.enable_pci, "--enable-pci", "devices are on virtio-mmio; start without it"),
        ];
        match unsupported.iter().find(|(is_given, ..)| *is_given) {
            Some((_, flag, advice)) => Err(format!("error: {flag} is not supported yet: {advice}\n")),
            None => Ok(self),
        }
    }

    /// The limits of the API server.
    pub fn limits(&self) -> Limits {
        Limits { payload_bytes_max: self.payload_bytes_max, ..Limits::default() }
    }
}

fn parse_instance_id(id: &str) -> Result<String, String> {
    check_instance_id(id).map(|()| id.to_owned())
}
