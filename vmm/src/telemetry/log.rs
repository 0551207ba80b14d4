//! The log: one line an event, on standard output or in a file.
//!
//! ```text
//!   2026-11-22T09:30:00.123456Z [anonymous-instance:vcpu0:INFO:vmm/src/machine/driver.rs:42] the guest powered off
//!                                instance           thread level origin (both on demand)
//! ```
//!
//! Level, place and looks can change while the program runs: `PUT /logger` comes after the first lines.
//!
//! Invariants:
//!
//! - Nobody waits for the log: a thread writes it out, and what does not fit is dropped and counted.
//! - A guest cannot fill a disk through it: what guests cause is limited to a few lines a second for each place.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use api::types::{LogLevel, Logger};
use devices::output::{Output, OutputCounters};
use prometheus_client::metrics::counter::Counter;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::Registry;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

use super::budget::Budgets;
use super::sink;

/// The log cannot be written where it was to be.
#[derive(Debug, thiserror::Error)]
#[error("cannot open the log file {}", path.display())]
pub struct LogError {
    path: PathBuf,
    source: io::Error,
}

/// The log of this process. Clones are the same log.
#[derive(Clone)]
pub struct Log(Arc<Shared>);

struct Shared {
    level: AtomicU8,
    lines_lost: Counter,
    target: Mutex<Target>,
}

struct Target {
    instance_id: String,
    output: Output,
    /// How much may still be said of what guests cause.
    budgets: Budgets,
    show_level: bool,
    show_origin: bool,
    module: Option<String>,
}

impl Log {
    /// Sends this process's events to `output`, from `level` on.
    ///
    /// A process has one log: a second call gives one that nothing is sent to.
    ///
    /// # Errors
    ///
    /// When the host gives no thread to write it.
    pub fn install(instance_id: &str, level: LogLevel, output: Box<dyn Write + Send>) -> io::Result<Self> {
        let target = Target {
            instance_id: instance_id.to_owned(),
            output: new_output(output)?,
            budgets: Budgets::default(),
            show_level: false,
            show_origin: false,
            module: None,
        };
        let shared = Shared {
            level: AtomicU8::new(rank(level)),
            lines_lost: Counter::default(),
            target: Mutex::new(target),
        };
        let log = Self(Arc::new(shared));
        // An error says that a log is installed already, which tests in one process do.
        let _ = tracing::subscriber::set_global_default(Registry::default().with(log.clone()));
        Ok(log)
    }

    /// Changes what `settings` names and leaves the rest.
    ///
    /// # Errors
    ///
    /// [`LogError`] where the file cannot be opened; then nothing is changed.
    pub fn configure(&self, settings: &Logger) -> Result<(), LogError> {
        let output = settings.log_path.as_ref().map(|path| {
            let file = sink::open(path).and_then(|file| new_output(Box::new(file)));
            file.map_err(|source| LogError { path: path.into(), source })
        });
        let output = output.transpose()?;
        if let Some(level) = settings.level {
            self.0.level.store(rank(level), Ordering::Relaxed);
        }
        let mut target = self.0.target.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = output {
            target.output = file;
        }
        target.show_level = settings.show_level.unwrap_or(target.show_level);
        target.show_origin = settings.show_log_origin.unwrap_or(target.show_origin);
        if settings.module.is_some() {
            target.module.clone_from(&settings.module);
        }
        Ok(())
    }

    /// Counts the lines that could not be written.
    #[must_use]
    pub fn lines_lost(&self) -> Counter {
        self.0.lines_lost.clone()
    }

    /// Waits until all that was logged is written, for at most `timeout`.
    pub fn flush(&self, timeout: Duration) {
        // What is not written by then was told to somebody who does not listen.
        let _ = self.0.target.lock().unwrap_or_else(PoisonError::into_inner).output.flush(timeout);
    }

    fn shows(&self, level: Level) -> bool {
        let shown = match self.0.level.load(Ordering::Relaxed) {
            0 => LevelFilter::OFF,
            1 => LevelFilter::ERROR,
            2 => LevelFilter::WARN,
            3 => LevelFilter::INFO,
            4 => LevelFilter::DEBUG,
            _ => LevelFilter::TRACE,
        };
        level <= shown
    }
}

fn rank(level: LogLevel) -> u8 {
    match level {
        LogLevel::Off => 0,
        LogLevel::Error => 1,
        LogLevel::Warning => 2,
        LogLevel::Info => 3,
        LogLevel::Debug => 4,
        LogLevel::Trace => 5,
    }
}

impl<S: Subscriber> Layer<S> for Log {
    fn register_callsite(&self, _: &'static Metadata<'static>) -> Interest {
        // The level can change, so no answer may be remembered.
        Interest::sometimes()
    }

    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        self.shows(*metadata.level())
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut target = self.0.target.lock().unwrap_or_else(PoisonError::into_inner);
        if !target.wants(event.metadata()) {
            return;
        }
        let Some(left_out) = target.budgets.admit(event.metadata(), Instant::now()) else { return };
        let line = target.line(event, left_out);
        if !target.output.push(line.as_bytes()) {
            self.0.lines_lost.inc();
        }
    }
}

impl Target {
    fn wants(&self, metadata: &Metadata<'_>) -> bool {
        self.module.as_deref().is_none_or(|prefix| metadata.target().starts_with(prefix))
    }

    fn line(&self, event: &Event<'_>, left_out: u64) -> String {
        let mut line = String::with_capacity(128);
        // Writing into a string cannot fail.
        let _ = SystemTime.format_time(&mut Writer::new(&mut line));
        let thread = thread::current();
        let _ = write!(line, " [{}:{}", self.instance_id, thread.name().unwrap_or("?"));
        let metadata = event.metadata();
        if self.show_level {
            let _ = write!(line, ":{}", metadata.level());
        }
        if let (true, Some(file), Some(number)) = (self.show_origin, metadata.file(), metadata.line()) {
            let _ = write!(line, ":{file}:{number}");
        }
        line.push(']');
        event.record(&mut Fields(&mut line));
        if left_out > 0 {
            let _ = write!(line, " (and {left_out} more like it, left out)");
        }
        line.push('\n');
        line
    }
}

fn new_output(sink: Box<dyn Write + Send>) -> io::Result<Output> {
    Output::new("log", sink, OutputCounters::default())
}

/// Writes the message as it is and other fields as `name=value`. Line ends inside are escaped: what a guest or a
/// client sends must not look like a line of its own.
struct Fields<'a>(&'a mut String);

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let text = match field.name() {
            "message" => format!(" {value:?}"),
            name => format!(" {name}={value:?}"),
        };
        self.0.push_str(&text.replace('\n', "\\n").replace('\r', "\\r"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_says_who_and_what_and_follows_its_settings() {
        let buffer = Buffer::default();
        let log = Log::install("vm7", LogLevel::Info, Box::new(buffer.clone())).unwrap();
        tracing::debug!("hidden");
        tracing::info!(drive = "root", "opened\nfine");
        log.configure(&Logger { level: Some(LogLevel::Debug), show_level: Some(true), ..Logger::default() })
            .unwrap();
        tracing::debug!("shown");
        log.configure(&Logger { module: Some("elsewhere".into()), ..Logger::default() }).unwrap();
        tracing::error!("of another module");
        log.flush(Duration::from_secs(10));
        let text = String::from_utf8(buffer.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert!(lines[0].contains("[vm7:") && lines[0].ends_with("] opened\\nfine drive=\"root\""), "{text}");
        assert!(lines[1].ends_with(":DEBUG] shown"), "{text}");

        let error = log.configure(&Logger { log_path: Some("/nonexistent/log".into()), ..Logger::default() });
        assert!(error.unwrap_err().to_string().contains("/nonexistent/log"));
    }
}
