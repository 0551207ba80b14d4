//! One measured thing, and what is promised of it.

use std::fmt;
use std::time::Duration;

use crate::samples::Samples;

/// What a sample counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    Milliseconds,
    Mebibytes,
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Milliseconds => "ms",
            Self::Mebibytes => "MiB",
        })
    }
}

/// What must not be exceeded, and by which percentile.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    pub(crate) percentile: f64,
    pub(crate) limit: f64,
}

impl Target {
    pub(crate) const fn median(limit: f64) -> Self {
        Self { percentile: 50.0, limit }
    }
}

/// As samples in milliseconds.
pub(crate) fn milliseconds(durations: impl IntoIterator<Item = Duration>) -> Samples {
    Samples::new(durations.into_iter().map(|duration| duration.as_secs_f64() * 1e3).collect())
}

/// A line of the report.
#[derive(Clone, Debug)]
pub(crate) struct Figure {
    pub(crate) name: String,
    pub(crate) unit: Unit,
    pub(crate) samples: Samples,
    pub(crate) target: Option<Target>,
}

impl Figure {
    pub(crate) fn new(name: impl Into<String>, unit: Unit, samples: Samples) -> Self {
        Self { name: name.into(), unit, samples, target: None }
    }

    pub(crate) fn with_target(self, target: Target) -> Self {
        Self { target: Some(target), ..self }
    }

    /// Whether the target is met, where there is one.
    pub(crate) fn is_met(&self) -> Option<bool> {
        self.target.map(|target| self.samples.percentile(target.percentile) <= target.limit)
    }
}
