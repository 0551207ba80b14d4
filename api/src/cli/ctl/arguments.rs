//! What can be written after `faultless ctl`.

use super::snapshot::SnapshotCommand;
use crate::cli::size::parse_mib;
use crate::types::{CacheType, HugePages, IoEngine, LogLevel, RateLimiter, TokenBucket};
use clap::{Args, Subcommand, ValueEnum};
use std::path::PathBuf;
use std::time::Duration;

/// Talk to a running VMM.
#[derive(Debug, Clone, PartialEq, Args)]
pub struct CtlArgs {
    /// The API socket of the VMM.
    #[arg(long, global = true, value_name = "PATH", default_value = "/run/firecracker.socket")]
    pub api_sock: PathBuf,
    /// Print the answer as JSON, for programs.
    #[arg(long, global = true)]
    pub json: bool,
    /// How long to wait for the answer, in seconds.
    #[arg(long = "timeout", global = true, value_name = "SECONDS", default_value_t = 30,
          value_parser = clap::value_parser!(u32).range(1..))]
    pub timeout_s: u32,
    /// What to ask.
    #[command(subcommand)]
    pub operation: Operation,
}

impl CtlArgs {
    /// How long to wait for the answer.
    pub(super) fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout_s.into())
    }
}

/// What to ask: one of the contract's operations, or anything.
#[derive(Debug, Clone, PartialEq, Subcommand)]
pub enum Operation {
    /// An operation of the contract.
    #[command(flatten)]
    Api(ApiOperation),
    /// Send any request as it is.
    Raw {
        /// Like GET or PUT.
        method: String,
        /// Like /machine-config.
        path: String,
        /// The JSON body.
        body: Option<String>,
    },
}

/// An operation of the contract.
#[derive(Debug, Clone, PartialEq, Subcommand)]
pub enum ApiOperation {
    /// Who the VMM is and what state its machine is in.
    Info,
    /// The release of the contract.
    Version,
    /// The whole configuration; with --json, good as a --config-file.
    Config,
    /// Set kernel, initrd and command line.
    BootSource {
        /// The kernel: an uncompressed ELF or a bzImage.
        #[arg(value_name = "KERNEL")]
        kernel: String,
        /// The initial RAM disk.
        #[arg(long, value_name = "FILE")]
        initrd: Option<String>,
        /// The kernel's command line.
        #[arg(long, value_name = "TEXT")]
        cmdline: Option<String>,
    },
    /// vCPUs and memory.
    #[command(subcommand)]
    MachineConfig(MachineConfigCommand),
    /// Block devices.
    #[command(subcommand)]
    Drive(DriveCommand),
    /// Add the entropy device.
    Entropy(LimiterArgs),
    /// Say where the guest's console goes.
    Serial {
        /// File or named pipe that gets the guest's output.
        #[arg(long, value_name = "PATH")]
        out_path: Option<String>,
        /// Limit on the output, in bytes.
        #[arg(long, value_name = "SIZE/MS[/BURST]", value_parser = parse_bucket)]
        limit: Option<TokenBucket>,
    },
    /// Say where the log goes and what it holds.
    Logger(LoggerArgs),
    /// Say where the metrics are written.
    Metrics {
        /// File or named pipe.
        path: String,
    },
    /// All metrics, as they are scraped.
    Prometheus,
    /// Boot the machine.
    Start,
    /// Press Ctrl+Alt+Del on the guest's keyboard.
    CtrlAltDel,
    /// Write the metrics now.
    FlushMetrics,
    /// Stop the machine where it is.
    Pause,
    /// Let a paused machine go on.
    Resume,
    /// Save the machine to files, or go on from files.
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
}

/// vCPUs and memory.
#[derive(Debug, Clone, PartialEq, Subcommand)]
pub enum MachineConfigCommand {
    /// Show them.
    Get,
    /// Set all of them.
    Set {
        /// Number of vCPUs.
        #[arg(long, value_name = "N")]
        cpus: u8,
        /// Memory: a number of MiB, or like 512M or 2G.
        #[arg(long = "memory", value_name = "SIZE", value_parser = parse_mib)]
        memory_mib: u64,
        /// Show the guest two threads per core.
        #[arg(long)]
        smt: bool,
        /// Track which pages the guest writes.
        #[arg(long)]
        track_dirty_pages: bool,
        /// What backs the memory.
        #[arg(long, value_name = "KIND", default_value = "none", ignore_case = true)]
        huge_pages: HugePages,
    },
    /// Change some of them.
    Patch {
        /// Number of vCPUs.
        #[arg(long, value_name = "N")]
        cpus: Option<u8>,
        /// Memory: a number of MiB, or like 512M or 2G.
        #[arg(long = "memory", value_name = "SIZE", value_parser = parse_mib)]
        memory_mib: Option<u64>,
        /// Show the guest two threads per core.
        #[arg(long)]
        smt: Option<bool>,
        /// Track which pages the guest writes.
        #[arg(long)]
        track_dirty_pages: Option<bool>,
        /// What backs the memory.
        #[arg(long, value_name = "KIND", ignore_case = true)]
        huge_pages: Option<HugePages>,
    },
}

/// Block devices.
#[derive(Debug, Clone, PartialEq, Subcommand)]
pub enum DriveCommand {
    /// Add a drive, or replace the one of that id; before boot.
    Add {
        /// The drive's id.
        id: String,
        /// Its file or block device.
        path: String,
        /// Make it the root device.
        #[arg(long)]
        root: bool,
        /// Let the guest only read.
        #[arg(long)]
        read_only: bool,
        /// Id of the partition to boot from.
        #[arg(long, value_name = "UUID")]
        partuuid: Option<String>,
        /// What a guest's flush means.
        #[arg(long, value_enum, default_value_t, ignore_case = true)]
        cache_type: CacheType,
        /// How the host does the I/O.
        #[arg(long, value_enum, ignore_case = true)]
        io_engine: Option<IoEngine>,
        /// Limits.
        #[command(flatten)]
        limits: LimiterArgs,
    },
    /// Change a drive; after boot.
    Patch {
        /// The drive's id.
        id: String,
        /// Another file or block device.
        #[arg(long, value_name = "PATH")]
        path: Option<String>,
        /// Other limits.
        #[command(flatten)]
        limits: LimiterArgs,
    },
}

/// Limits on bytes and operations.
#[derive(Debug, Clone, PartialEq, Args)]
pub struct LimiterArgs {
    /// At most SIZE bytes in MS milliseconds, and BURST more once.
    #[arg(long, value_name = "SIZE/MS[/BURST]", value_parser = parse_bucket)]
    bandwidth: Option<TokenBucket>,
    /// At most SIZE operations in MS milliseconds, and BURST more once.
    #[arg(long, value_name = "SIZE/MS[/BURST]", value_parser = parse_bucket)]
    ops: Option<TokenBucket>,
}

impl LimiterArgs {
    /// The limiter, if there is any limit.
    pub(super) fn limiter(&self) -> Option<RateLimiter> {
        let any = self.bandwidth.is_some() || self.ops.is_some();
        any.then_some(RateLimiter { bandwidth: self.bandwidth, ops: self.ops })
    }
}

/// The log.
#[derive(Debug, Clone, PartialEq, Args)]
pub struct LoggerArgs {
    /// File or named pipe that gets the log.
    #[arg(long, value_name = "PATH")]
    pub(super) path: Option<String>,
    /// Off, Error, Warning, Info, Debug or Trace.
    #[arg(long)]
    pub(super) level: Option<LogLevel>,
    /// Say its level in each line.
    #[arg(long)]
    pub(super) show_level: Option<bool>,
    /// Say its file and line in each line.
    #[arg(long)]
    pub(super) show_origin: Option<bool>,
    /// Log only what this module does.
    #[arg(long)]
    pub(super) module: Option<String>,
}

impl ValueEnum for CacheType {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Unsafe, Self::Writeback]
    }

    fn to_possible_value(&self) -> Option<clap::builder::PossibleValue> {
        Some(match self {
            Self::Unsafe => "unsafe".into(),
            Self::Writeback => "writeback".into(),
        })
    }
}

impl ValueEnum for IoEngine {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Sync, Self::Async]
    }

    fn to_possible_value(&self) -> Option<clap::builder::PossibleValue> {
        Some(match self {
            Self::Sync => "sync".into(),
            Self::Async => "async".into(),
        })
    }
}

/// Reads `SIZE/MS` or `SIZE/MS/BURST`.
fn parse_bucket(text: &str) -> Result<TokenBucket, String> {
    let numbers: Result<Vec<u64>, _> = text.splitn(4, '/').map(str::parse).collect();
    let (size, refill_time, one_time_burst) = match numbers.as_deref() {
        Ok([size, refill_time]) => (*size, *refill_time, None),
        Ok([size, refill_time, burst]) => (*size, *refill_time, Some(*burst)),
        _ => return Err("write SIZE/MS or SIZE/MS/BURST, like 1048576/1000".to_owned()),
    };
    Ok(TokenBucket { size, one_time_burst, refill_time })
}
