//! Samples of one thing, and what is said of them: medians and percentiles.

use serde_json::{Value, json};

/// Samples in ascending order; there is at least one.
#[derive(Clone, Debug)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    pub(crate) fn new(mut samples: Vec<f64>) -> Self {
        assert!(!samples.is_empty(), "a figure needs samples");
        samples.sort_by(f64::total_cmp);
        Self(samples)
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

    /// The tenth and the ninetieth percentile, as text.
    pub(crate) fn spread(&self, digits: usize) -> String {
        format!("{:.digits$} .. {:.digits$}", self.percentile(10.0), self.percentile(90.0))
    }

    pub(crate) fn to_json(&self) -> Value {
        let at = |percent| self.percentile(percent);
        json!({
            "runs": self.count(), "median": self.median(), "p10": at(10.0), "p90": at(90.0),
            "p99": at(99.0), "min": at(0.0), "max": at(100.0),
        })
    }
}
