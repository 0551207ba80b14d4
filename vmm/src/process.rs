//! The process as a VMM: it serves the API on a socket, or runs what a file describes, and ends as its guest does.
//!
//! ```text
//!   main thread    the driver, until the machine ends
//!   "api"          one current-thread runtime: the API's connections, and signals
//! ```

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc::channel;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use api::Request;
use api::cli::VmmArgs;
use api::server::{self, BindError};
use api::types::{ConfigError, LogLevel, Logger, Metrics, VmConfig};

use crate::boot;
use crate::error::chain;
use crate::front::Front;
use crate::machine::build::BuildError;
use crate::machine::devices::{Console, Options};
use crate::machine::driver::{Driver, Ending, RequestError};
use crate::machine::memory::MemoryPlan;
use crate::machine::message::Notifier;
use crate::service::DriverService;
use crate::snapshot::files;
use crate::telemetry::log::Log;
use crate::{signals, terminal, vcpu};

/// Exit codes that orchestrators know.
pub(crate) const EXIT_GENERIC: u8 = 1;
/// A page of memory could not be had: what SIGBUS ends with, too.
pub(crate) const EXIT_MEMORY: u8 = 149;
const EXIT_BAD_CONFIGURATION: u8 = 152;
/// The largest configuration file, in bytes.
const CONFIG_BYTES_MAX: u64 = 1 << 20;
/// How long the end of the process waits for its last words to be written.
const LOG_FLUSH_TIMEOUT: Duration = Duration::from_millis(500);

/// Why the process ended before its machine began.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error(transparent)]
    Socket(#[from] BindError),
    #[error("cannot read the configuration file {}", path.display())]
    ReadConfig { path: PathBuf, source: io::Error },
    #[error("the configuration file is longer than {CONFIG_BYTES_MAX} bytes: it should hold one JSON object")]
    ConfigTooLong,
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error("cannot {step}")]
    Host { step: &'static str, source: io::Error },
}

impl StartError {
    /// A mistake in what was asked for has a code of its own; a host that cannot do it has the general one.
    fn exit_code(&self) -> u8 {
        match self {
            Self::ReadConfig { .. }
            | Self::ConfigTooLong
            | Self::Config(_)
            | Self::Request(
                RequestError::Configure(_)
                | RequestError::Build(BuildError::NoKernel | BuildError::Payload(_)),
            ) => EXIT_BAD_CONFIGURATION,
            Self::Socket(_) | Self::Request(_) | Self::Host { .. } => EXIT_GENERIC,
        }
    }
}

/// Is a VMM until its machine ends.
#[must_use]
pub fn main(args: &VmmArgs) -> ExitCode {
    if args.snapshot_version || args.describe_snapshot.is_some() {
        return files::tell_version(args.describe_snapshot.as_deref());
    }
    main_with(args, MemoryPlan::Fresh)
}

/// The same, of a machine whose memory comes about as `memory` says.
#[must_use]
pub fn main_with(args: &VmmArgs, memory: MemoryPlan) -> ExitCode {
    let log = match standard_output().and_then(|output| Log::install(&args.id, LogLevel::default(), output)) {
        Ok(log) => log,
        Err(error) => {
            eprintln!("faultless: cannot start the log: {error}");
            return ExitCode::from(EXIT_GENERIC);
        }
    };
    let code = match serve(args, memory, &log) {
        Ok(ending) => exit_code(&ending),
        Err(error) => {
            // To the log for machines, and to standard error for whoever started the process by hand.
            let text = chain(&error);
            tracing::error!("{text}");
            eprintln!("faultless: {text}");
            error.exit_code()
        }
    };
    log.flush(LOG_FLUSH_TIMEOUT);
    ExitCode::from(code)
}

/// What a process that ran its machine as `ending` tells its parent.
pub(crate) fn exit_code(ending: &Ending) -> u8 {
    match ending {
        Ending::ByGuest | Ending::ByUser => 0,
        Ending::Failed(_) => EXIT_GENERIC,
        Ending::MemoryFailed(_) => EXIT_MEMORY,
    }
}

/// Ends the process as it stands, where a part of it waits for what will not come.
pub(crate) fn abandon(code: u8, why: &str) -> ! {
    terminal::restore();
    eprintln!("faultless: {why}");
    std::process::exit(code.into())
}

/// Standard output, without the lock and the buffer that the standard library gives it: a guest's output and the log
/// share the descriptor, and one that nobody reads must not hold up the other.
pub(crate) fn standard_output() -> io::Result<Box<dyn Write + Send>> {
    Ok(Box::new(File::from(io::stdout().as_fd().try_clone_to_owned()?)))
}

/// Handlers that are there before any thread is.
///
/// Signals that ask for an end are for the API's thread alone, which unblocks them: the kernel gives one to any thread that
/// takes it, also to one that waits for a page of guest memory and cannot take it after all.
pub(crate) fn install_handlers() -> io::Result<()> {
    signals::block_ends()?;
    signals::install_fatal_handlers()?;
    Ok(vcpu::install_kick_handler()?)
}

fn serve(args: &VmmArgs, memory: MemoryPlan, log: &Log) -> Result<Ending, StartError> {
    let host = |step| move |source| StartError::Host { step, source };
    install_handlers().map_err(host("install signal handlers"))?;
    let (sender, inbox) = channel();
    let notifier = Notifier::new(sender);
    let mut front = Front::start(&notifier).map_err(host("start the API thread"))?;
    let options = Options { console: Console::standard(), boot_timer: args.boot_timer };
    let driver = Driver::new(&args.id, inbox, notifier.clone(), options, log.clone());
    // Who cannot ask what has become of a machine learns it by its end.
    let mut driver = driver.with_memory(memory).keeping_failed(!args.no_api);
    for request in flags(args) {
        driver.configure_with(request)?;
    }
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "faultless is up");
    let config = args.config_file.as_deref().map(read_config).transpose()?;
    let socket = (!args.no_api).then(|| server::bind(&args.api_sock)).transpose()?;
    if let Some(config) = config {
        driver.start_with(config)?;
    }
    if let Some(socket) = socket {
        let service = DriverService::new(notifier, driver.publication());
        front.serve(socket, service, args.limits()).map_err(host("answer on the API socket"))?;
    }
    report_start_up(args);
    Ok(driver.run())
}

/// The flags that stand for a request of the API.
fn flags(args: &VmmArgs) -> Vec<Request> {
    let text = |path: &PathBuf| path.display().to_string();
    let logger = Logger {
        log_path: args.log_path.as_ref().map(text),
        level: args.level,
        show_level: args.show_level.then_some(true),
        show_log_origin: args.show_log_origin.then_some(true),
        module: args.module.clone(),
    };
    let metrics =
        args.metrics_path.as_ref().map(|path| Metrics { metrics_path: text(path), ..Metrics::default() });
    let logger = (logger != Logger::default()).then_some(logger);
    logger.map(Request::PutLogger).into_iter().chain(metrics.map(Request::PutMetrics)).collect()
}

fn read_config(path: &Path) -> Result<VmConfig, StartError> {
    let mut bytes = Vec::new();
    boot::open_file(path)
        .and_then(|file| file.take(CONFIG_BYTES_MAX + 1).read_to_end(&mut bytes))
        .map_err(|source| StartError::ReadConfig { path: path.to_owned(), source })?;
    if bytes.len() as u64 > CONFIG_BYTES_MAX {
        return Err(StartError::ConfigTooLong);
    }
    Ok(VmConfig::from_json(&bytes)?)
}

/// How long it took from what the parent calls the start, where it says when that was.
fn report_start_up(args: &VmmArgs) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    if let Some(started_us) = args.start_time_us {
        let elapsed = now.saturating_sub(Duration::from_micros(started_us));
        tracing::info!(elapsed_us = elapsed.as_micros(), "the process is ready");
    }
}
