//! What counts in a way of its own, and is looked at when metrics are told.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

/// Something that has counts and latencies.
pub trait Observed: fmt::Debug + Send + Sync + 'static {
    /// All its counts, always in the same order; none once it is gone.
    fn totals(&self) -> Vec<Total>;

    /// What is known of latencies. Firecracker's file has none of them.
    fn latencies(&self) -> Vec<Quantile>;
}

/// How often something has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Total {
    /// Its name in both formats.
    pub name: &'static str,
    /// What is counted, for people.
    pub help: &'static str,
    /// How often.
    pub value: u64,
}

/// A quantile of a latency.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quantile {
    /// Of what, and which: each label with its value.
    pub labels: [(&'static str, &'static str); 3],
    /// The latency that it is.
    pub value: Duration,
}

/// Tells Prometheus of it.
pub(super) fn collector(observed: Arc<dyn Observed>) -> Box<dyn Collector> {
    Box::new(Collected(observed))
}

#[derive(Debug)]
struct Collected(Arc<dyn Observed>);

impl Collector for Collected {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        for total in self.0.totals() {
            let counter = ConstCounter::new(total.value);
            counter.encode(encoder.encode_descriptor(
                total.name,
                total.help,
                None,
                MetricType::Counter,
            )?)?;
        }
        let latencies = self.0.latencies();
        if latencies.is_empty() {
            return Ok(());
        }
        let help = "Time from when a fault was read to when whoever waited was woken";
        let mut family =
            encoder.encode_descriptor("latency", help, Some(&Unit::Seconds), MetricType::Gauge)?;
        for quantile in latencies {
            ConstGauge::new(quantile.value.as_secs_f64()).encode(family.encode_family(&quantile.labels)?)?;
        }
        Ok(())
    }
}
