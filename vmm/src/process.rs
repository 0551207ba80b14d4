//! The process as a VMM: it serves the API on a socket, or runs what a file describes, and ends as its guest does.
//!
//! ```text
//!   main thread    the driver, until the machine ends
//!   "api"          one current-thread runtime: the API's connections, and signals
//! ```

use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use api::cli::VmmArgs;
use api::server::{self, BindError, BoundSocket, Limits};
use api::types::{ConfigError, LogLevel, Logger, Metrics, VmConfig};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::machine::devices::{Console, Options};
use crate::machine::driver::{Driver, Ending, RequestError};
use crate::machine::message::Notifier;
use crate::service::DriverService;
use crate::telemetry::log::Log;
use crate::terminal::RawTerminal;
use crate::{signals, vcpu};

/// Exit codes that orchestrators know.
const EXIT_GENERIC: u8 = 1;
const EXIT_BAD_CONFIGURATION: u8 = 152;

/// Why the process ended before its machine began.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error("{0}")]
    Socket(#[from] BindError),
    #[error("cannot read the configuration file {}: {source}", path.display())]
    ReadConfig { path: PathBuf, source: io::Error },
    #[error("{0}")]
    Config(#[from] ConfigError),
    #[error("{0}")]
    Request(#[from] RequestError),
    #[error("cannot {step}: {source}")]
    Host { step: &'static str, source: io::Error },
}

impl StartError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::ReadConfig { .. } | Self::Config(_) | Self::Request(_) => EXIT_BAD_CONFIGURATION,
            Self::Socket(_) | Self::Host { .. } => EXIT_GENERIC,
        }
    }
}

/// Is a VMM until its machine ends.
#[must_use]
pub fn main(args: &VmmArgs) -> ExitCode {
    let log = Log::install(&args.id, LogLevel::default(), Box::new(io::stdout()));
    match serve(args, log) {
        Ok(ending) => exit_code(&ending),
        Err(error) => {
            // To the log for machines, and to standard error for whoever started the process by hand.
            tracing::error!("{error}");
            eprintln!("faultless: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

/// What a process that ran its machine as `ending` tells its parent.
pub(crate) fn exit_code(ending: &Ending) -> ExitCode {
    match ending {
        Ending::ByGuest | Ending::ByUser => ExitCode::SUCCESS,
        Ending::Failed(_) => ExitCode::from(EXIT_GENERIC),
        // A thread that does not end would be waited for by an orderly exit.
        Ending::Stuck(_) => std::process::exit(EXIT_GENERIC.into()),
    }
}

fn serve(args: &VmmArgs, log: Log) -> Result<Ending, StartError> {
    install_handlers()?;
    let (sender, inbox) = channel();
    let notifier = Notifier::new(sender);
    let options = Options { console: Console::standard(), boot_timer: args.boot_timer };
    let mut driver = Driver::new(&args.id, inbox, notifier.clone(), options, log);
    for request in flags(args) {
        driver.configure_with(request)?;
    }
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "faultless is up");
    let socket = (!args.no_api).then(|| server::bind(&args.api_sock)).transpose()?;
    let config = args.config_file.as_ref().map(read_config).transpose()?;
    let terminal =
        RawTerminal::stdin().map_err(|source| StartError::Host { step: "use the terminal", source })?;
    if let Some(config) = config {
        driver.start_with(config)?;
    }
    let front = Front::spawn(notifier, socket, args.limits())?;
    report_start_up(args);
    let ending = driver.run();
    front.stop();
    drop(terminal);
    Ok(ending)
}

/// Handlers that are there before any thread is.
pub(crate) fn install_handlers() -> Result<(), StartHandlersError> {
    signals::install_fatal_handlers()?;
    vcpu::install_kick_handler()
}

/// The error of [`install_handlers`].
pub(crate) type StartHandlersError = vmm_sys_util::errno::Error;

impl From<StartHandlersError> for StartError {
    fn from(error: StartHandlersError) -> Self {
        Self::Host { step: "install a signal handler", source: error.into() }
    }
}

/// The flags that stand for a request of the API.
fn flags(args: &VmmArgs) -> Vec<api::Request> {
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
    logger.map(api::Request::PutLogger).into_iter().chain(metrics.map(api::Request::PutMetrics)).collect()
}

fn read_config(path: &PathBuf) -> Result<VmConfig, StartError> {
    let bytes = fs::read(path).map_err(|source| StartError::ReadConfig { path: path.clone(), source })?;
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

/// The thread that takes what comes from outside: requests and signals.
pub(crate) struct Front {
    thread: JoinHandle<()>,
    stop: watch::Sender<bool>,
}

impl Front {
    fn spawn(notifier: Notifier, socket: Option<BoundSocket>, limits: Limits) -> Result<Self, StartError> {
        Self::start(notifier, socket, limits)
            .map_err(|source| StartError::Host { step: "start the API thread", source })
    }

    /// Takes signals, and requests where there is a socket.
    pub(crate) fn start(notifier: Notifier, socket: Option<BoundSocket>, limits: Limits) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = watch::channel(false);
        let thread = thread::Builder::new().name("api".to_owned()).spawn(move || {
            runtime.block_on(async move {
                if let Err(error) = watch_signals(&notifier) {
                    tracing::error!(%error, "signals that ask for an end are not handled");
                }
                match socket {
                    Some(socket) => answer(&socket, notifier, limits, stopped).await,
                    None => wait_for(stopped).await,
                }
            });
        })?;
        Ok(Self { thread, stop })
    }

    /// Finishes what is being answered, and ends the thread.
    pub(crate) fn stop(self) {
        // An error says that the thread has ended already.
        let _ = self.stop.send(true);
        if self.thread.join().is_err() {
            tracing::error!("the API thread panicked");
        }
    }
}

async fn answer(socket: &BoundSocket, notifier: Notifier, limits: Limits, stopped: watch::Receiver<bool>) {
    match socket.listener() {
        Ok(listener) => {
            let service = Arc::new(DriverService(notifier));
            server::serve(listener, service, limits, wait_for(stopped)).await;
        }
        Err(error) => {
            tracing::error!(%error, "the API socket cannot be used");
            notifier.quit();
            wait_for(stopped).await;
        }
    }
}

async fn wait_for(mut stopped: watch::Receiver<bool>) {
    // An error says that the other end is gone, which means the same.
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

/// Turns signals that ask for an end into a message.
fn watch_signals(notifier: &Notifier) -> io::Result<()> {
    for kind in [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()] {
        let mut signals = signal(kind)?;
        let notifier = notifier.clone();
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                notifier.quit();
            }
        });
    }
    Ok(())
}
