//! Counters, told in two ways: Firecracker's metrics file, one JSON object a flush with what was counted since the
//! last one, and Prometheus's text, with totals.
//!
//! Counters live where they count; this room holds clones of them and knows their names. What counts in a way of its own
//! is [`Observed`].

mod observed;

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use api::types::Metrics;
use prometheus_client::encoding::text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::{Registry, Unit};
use serde_json::{Map, Value, json};

pub use observed::{Observed, Quantile, Total};

use super::sink;

/// What every Prometheus name starts with.
const PREFIX: &str = "faultless";

/// Why metrics could not be written.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// The file cannot be opened.
    #[error("Cannot open the metrics file {}", path.display())]
    Open {
        /// Which one.
        path: PathBuf,
        /// The host's answer.
        source: io::Error,
    },
    /// There is one already.
    #[error("Reinitialization of metrics not allowed.")]
    AlreadySet,
    /// There is none.
    #[error("the metrics file was not configured: set it with PUT /metrics before starting the microVM")]
    NotSet,
    /// It cannot be written.
    #[error("cannot write the metrics file (where it is a pipe: does somebody read it?)")]
    Write(#[source] io::Error),
}

/// One thing that is counted about.
struct Group {
    /// Its name in Firecracker's file.
    name: String,
    counted: Counted,
    /// The values at the last flush that was written.
    flushed: Vec<u64>,
}

enum Counted {
    Counters(Vec<(&'static str, Counter)>),
    Observed(Arc<dyn Observed>),
}

impl Group {
    fn new(name: String, counted: Counted) -> Self {
        Self { name, counted, flushed: Vec::new() }
    }

    /// Each total by its name.
    fn read(&self) -> Vec<(&'static str, u64)> {
        match &self.counted {
            Counted::Counters(counters) => counters.iter().map(|(name, it)| (*name, it.get())).collect(),
            Counted::Observed(it) => it.totals().iter().map(|total| (total.name, total.value)).collect(),
        }
    }

    /// What came since the last flush, by `totals` that were read.
    fn since(&self, totals: &[(&'static str, u64)]) -> Map<String, Value> {
        let before = self.flushed.iter().copied().chain(std::iter::repeat(0));
        let news = totals.iter().zip(before);
        news.map(|((name, total), before)| ((*name).to_owned(), json!(total.saturating_sub(before))))
            .collect()
    }
}

struct Sink {
    file: File,
    id: Option<String>,
    properties: Map<String, Value>,
}

/// The metrics of this process.
#[derive(Default)]
pub struct MetricsRegistry {
    registry: Registry,
    groups: Vec<Group>,
    sink: Option<Sink>,
}

impl MetricsRegistry {
    /// One that knows no counters yet.
    #[must_use]
    pub fn new() -> Self {
        Self { registry: Registry::with_prefix(PREFIX), ..Self::default() }
    }

    /// Adds counters under `name` in Firecracker's file, and under `subsystem` with `labels` for Prometheus.
    pub fn register<'a>(
        &mut self,
        name: impl Into<String>,
        subsystem: &str,
        labels: &[(&'static str, &str)],
        counters: impl Iterator<Item = (&'static str, &'static str, &'a Counter)>,
    ) {
        let labels = labels.iter().map(|(key, value)| (Cow::from(*key), Cow::from((*value).to_owned())));
        let registry = self.registry.sub_registry_with_labels(labels);
        let registry = registry.sub_registry_with_prefix(subsystem);
        let mut tracked = Vec::new();
        for (name, help, counter) in counters {
            match name.strip_suffix("_bytes") {
                Some(stem) => registry.register_with_unit(stem, help, Unit::Bytes, counter.clone()),
                None => registry.register(name.strip_suffix("_count").unwrap_or(name), help, counter.clone()),
            }
            tracked.push((name, counter.clone()));
        }
        self.groups.push(Group::new(name.into(), Counted::Counters(tracked)));
    }

    /// Adds what `observed` counts, under `name` in both.
    pub fn observe(&mut self, name: &'static str, observed: Arc<dyn Observed>) {
        let registry = self.registry.sub_registry_with_prefix(name);
        registry.register_collector(observed::collector(Arc::clone(&observed)));
        self.groups.push(Group::new(name.to_owned(), Counted::Observed(observed)));
    }

    /// Sends flushes to the file that `settings` names.
    ///
    /// # Errors
    ///
    /// [`MetricsError`] where it cannot be opened, or one is set already.
    pub fn configure(&mut self, settings: &Metrics, instance_id: &str) -> Result<(), MetricsError> {
        if self.sink.is_some() {
            return Err(MetricsError::AlreadySet);
        }
        let file = sink::open(&settings.metrics_path)
            .map_err(|source| MetricsError::Open { path: (&settings.metrics_path).into(), source })?;
        let id = settings.emit_id.unwrap_or(false).then(|| instance_id.to_owned());
        let properties = settings.properties.clone().unwrap_or_default().into_iter().collect();
        self.sink = Some(Sink { file, id, properties });
        Ok(())
    }

    /// Whether flushes go anywhere.
    #[must_use]
    pub fn is_configured(&self) -> bool {
        self.sink.is_some()
    }

    /// Writes what was counted since the last flush, as one line.
    ///
    /// # Errors
    ///
    /// [`MetricsError`] where there is no file or it cannot be written; then the counts are part of the next flush.
    pub fn flush(&mut self) -> Result<(), MetricsError> {
        let sink = self.sink.as_mut().ok_or(MetricsError::NotSet)?;
        let mut line = sink.head();
        // Read once: what is counted while the line is written belongs to the next.
        let totals: Vec<_> = self.groups.iter().map(Group::read).collect();
        for (group, totals) in self.groups.iter().zip(&totals) {
            line.insert(group.name.clone(), Value::Object(group.since(totals)));
        }
        let mut text = Value::Object(line).to_string();
        text.push('\n');
        sink.file.write_all(text.as_bytes()).map_err(MetricsError::Write)?;
        for (group, totals) in self.groups.iter_mut().zip(totals) {
            group.flushed = totals.into_iter().map(|(_, total)| total).collect();
        }
        Ok(())
    }

    /// All totals, in Prometheus's (OpenMetrics) text format.
    #[must_use]
    pub fn prometheus(&self) -> String {
        let mut text = String::new();
        text::encode(&mut text, &self.registry).expect("a string takes all that is written to it");
        text
    }
}

impl Sink {
    fn head(&self) -> Map<String, Value> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut head = Map::new();
        head.insert("utc_timestamp_ms".to_owned(), json!(u64::try_from(now.as_millis()).unwrap_or(u64::MAX)));
        if let Some(id) = &self.id {
            head.insert("id".to_owned(), json!(id));
        }
        if !self.properties.is_empty() {
            head.insert("properties".to_owned(), Value::Object(self.properties.clone()));
        }
        head
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry(reads: &Counter, bytes: &Counter) -> MetricsRegistry {
        let mut registry = MetricsRegistry::new();
        let counters = [("read_count", "reads done", reads), ("read_bytes", "bytes read", bytes)];
        registry.register("block_root", "block", &[("drive", "root")], counters.into_iter());
        registry
    }

    #[test]
    fn prometheus_names_follow_the_conventions() {
        let (reads, bytes) = (Counter::default(), Counter::default());
        let registry = registry(&reads, &bytes);
        reads.inc_by(3);
        let text = registry.prometheus();
        for line in [
            "# TYPE faultless_block_read counter",
            "faultless_block_read_total{drive=\"root\"} 3",
            "# UNIT faultless_block_read_bytes bytes",
            "faultless_block_read_bytes_total{drive=\"root\"} 0",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn a_flush_writes_what_came_since_the_last() {
        let (reads, bytes) = (Counter::default(), Counter::default());
        let mut registry = registry(&reads, &bytes);
        assert!(matches!(registry.flush(), Err(MetricsError::NotSet)));
        let path = std::env::temp_dir().join(format!("faultless-metrics-{}", std::process::id()));
        let settings =
            Metrics { metrics_path: path.display().to_string(), emit_id: Some(true), ..Metrics::default() };
        registry.configure(&settings, "vm7").unwrap();
        assert!(matches!(registry.configure(&settings, "vm7"), Err(MetricsError::AlreadySet)));
        reads.inc_by(3);
        registry.flush().unwrap();
        reads.inc();
        registry.flush().unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines[0]["id"], "vm7");
        assert_eq!(
            (&lines[0]["block_root"]["read_count"], &lines[1]["block_root"]["read_count"]),
            (&json!(3), &json!(1))
        );
        assert!(lines[1]["utc_timestamp_ms"].as_u64().unwrap() > 0);
    }
}
