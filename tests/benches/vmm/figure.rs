//! One measured thing: its samples, and what is said about them.

use std::fmt;
use std::time::Duration;

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

/// Samples in ascending order; there is at least one.
#[derive(Clone, Debug)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    pub(crate) fn new(mut samples: Vec<f64>) -> Self {
        assert!(!samples.is_empty(), "a figure needs samples");
        samples.sort_by(f64::total_cmp);
        Self(samples)
    }

    pub(crate) fn of_durations(durations: impl IntoIterator<Item = Duration>) -> Self {
        Self::new(durations.into_iter().map(|duration| duration.as_secs_f64() * 1e3).collect())
    }

    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn median(&self) -> f64 {
        self.percentile(50.0)
    }

    /// The smallest sample that so many percent of the samples do not exceed (nearest rank).
    pub(crate) fn percentile(&self, percent: f64) -> f64 {
        let covers = |index: usize| (index + 1) as f64 * 100.0 >= percent * self.0.len() as f64;
        let index = (0..self.0.len()).find(|index| covers(*index));
        self.0[index.unwrap_or(self.0.len() - 1)]
    }
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
