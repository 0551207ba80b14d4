//! A line of the report: what is measured, what stands beside it, and what is promised of the two.

use crate::samples::Samples;

/// What a sample counts. A bench has some of these.
#[allow(dead_code, reason = "each bench is compiled alone")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    Microseconds,
    Milliseconds,
    MibPerSecond,
    ThousandPagesPerSecond,
    Kibibytes,
    Mebibytes,
}

impl Unit {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Microseconds => "µs",
            Self::Milliseconds => "ms",
            Self::MibPerSecond => "MiB/s",
            Self::ThousandPagesPerSecond => "k pages/s",
            Self::Kibibytes => "KiB",
            Self::Mebibytes => "MiB",
        }
    }

    /// Digits after the point.
    pub(crate) fn digits(self) -> usize {
        match self {
            Self::Microseconds | Self::Milliseconds | Self::Mebibytes => 2,
            Self::ThousandPagesPerSecond | Self::Kibibytes => 1,
            Self::MibPerSecond => 0,
        }
    }
}

/// What the two are held against each other by.
#[allow(dead_code, reason = "each bench is compiled alone")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ratio {
    /// The figure, in multiples of the one beside it.
    Of,
    /// The one beside it, in multiples of the figure: how many times faster this is, where figures are times.
    TimesFaster,
}

/// What is promised: of the ratio, or of the figure itself where nothing stands beside it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Promise {
    AtMost(f64),
    AtLeast(f64),
}

impl Promise {
    fn holds(self, value: f64) -> bool {
        match self {
            Self::AtMost(limit) => value <= limit,
            Self::AtLeast(limit) => value >= limit,
        }
    }
}

/// What stands beside a figure, and the ratios of the two, each of one round.
#[derive(Clone, Debug)]
pub(crate) struct Beside {
    pub(crate) name: &'static str,
    pub(crate) samples: Samples,
    pub(crate) ratios: Samples,
}

/// A line of the report.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) name: String,
    /// Or why there is nothing.
    pub(crate) figures: Result<Figures, String>,
}

/// What was measured.
#[derive(Clone, Debug)]
pub(crate) struct Figures {
    pub(crate) unit: Unit,
    pub(crate) samples: Samples,
    pub(crate) beside: Option<Beside>,
    pub(crate) promise: Option<Promise>,
}

impl Row {
    /// One sample of each round.
    pub(crate) fn new(name: impl Into<String>, unit: Unit, samples: Vec<f64>) -> Self {
        let figures = Figures { unit, samples: Samples::new(samples), beside: None, promise: None };
        Self { name: name.into(), figures: Ok(figures) }
    }

    /// Two figures, one sample of each in every round. Their ratio is taken round by round, so that what disturbs a
    /// round disturbs both.
    pub(crate) fn beside(
        name: impl Into<String>,
        unit: Unit,
        figure: Vec<f64>,
        (beside_name, beside): (&'static str, Vec<f64>),
        ratio: Ratio,
    ) -> Self {
        let ratios = figure.iter().zip(&beside).map(|(figure, beside)| match ratio {
            Ratio::Of => figure / beside,
            Ratio::TimesFaster => beside / figure,
        });
        let ratios = Samples::new(ratios.collect());
        let beside = Beside { name: beside_name, samples: Samples::new(beside), ratios };
        let figures = Figures { unit, samples: Samples::new(figure), beside: Some(beside), promise: None };
        Self { name: name.into(), figures: Ok(figures) }
    }

    /// What this host cannot do has no figures, and the reason instead.
    pub(crate) fn not_measured(name: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { name: name.into(), figures: Err(reason.into()) }
    }

    pub(crate) fn promised(mut self, promise: Promise) -> Self {
        if let Ok(figures) = &mut self.figures {
            figures.promise = Some(promise);
        }
        self
    }
}

impl Figures {
    /// What the promise is about.
    pub(crate) fn value(&self) -> f64 {
        self.beside.as_ref().map_or(&self.samples, |beside| &beside.ratios).median()
    }

    /// Whether the promise is kept, where there is one.
    pub(crate) fn is_kept(&self) -> Option<bool> {
        self.promise.map(|promise| promise.holds(self.value()))
    }
}
