//! What a fault engine has done, as metrics.

use std::sync::Weak;
use std::time::Duration;

use memory::fault::FaultEngine;

use crate::telemetry::metrics::{Observed, Quantile, Total};

/// The quantiles of latencies that are told, in thousandths, and as Prometheus writes them.
const QUANTILES: [(u64, &str); 2] = [(500, "0.5"), (990, "0.99")];

/// An engine that is looked at as long as it is there.
#[derive(Debug)]
pub(super) struct EngineMetrics(pub(super) Weak<FaultEngine>);

impl Observed for EngineMetrics {
    fn totals(&self) -> Vec<Total> {
        let counts = self.0.upgrade().map(|engine| engine.report().counts.list()).unwrap_or_default();
        counts.into_iter().map(|(name, help, value)| Total { name, help, value }).collect()
    }

    fn latencies(&self) -> Vec<Quantile> {
        let latencies = self.0.upgrade().map(|engine| engine.report().latencies).unwrap_or_default();
        let quantiles = latencies.into_iter().flat_map(|(source, verb, latency)| {
            QUANTILES.map(|(per_mille, quantile)| Quantile {
                labels: [("source", source), ("verb", verb.name()), ("quantile", quantile)],
                value: Duration::from_nanos(latency.quantile_ns(per_mille)),
            })
        });
        quantiles.collect()
    }
}
