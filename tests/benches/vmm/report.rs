//! The tables for people, and the same for programs.

use std::fmt;

use serde_json::{Value, json};

use crate::disk::{Comparison, MEDIUM};
use crate::figure::Figure;
use crate::host::Host;

/// All that was measured.
pub(crate) struct Report {
    pub(crate) host: Host,
    pub(crate) figures: Vec<Figure>,
    pub(crate) disk: Vec<Comparison>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.host)?;
        if !self.figures.is_empty() {
            write_figures(f, &self.figures)?;
        }
        if !self.disk.is_empty() {
            write_comparisons(f, &self.disk)?;
        }
        Ok(())
    }
}

fn write_figures(f: &mut fmt::Formatter<'_>, figures: &[Figure]) -> fmt::Result {
    writeln!(
        f,
        "{:<62} {:>8} {:>17} {:>8} {:>8} {:>5}  {:<14} met",
        "", "median", "p10 .. p90", "p99", "max", "runs", "target"
    )?;
    figures.iter().try_for_each(|figure| write_figure(f, figure))?;
    writeln!(f)
}

fn write_comparisons(f: &mut fmt::Formatter<'_>, comparisons: &[Comparison]) -> fmt::Result {
    writeln!(f, "A guest's disk, {MEDIUM}, beside a loop of pread or pwrite on the host, in MiB/s")?;
    writeln!(
        f,
        "{:<6} {:<6} {:>8} {:>9} {:>8} {:>17} {:>8} {:>17} {:>6} {:>5}",
        "engine", "", "request", "in flight", "guest", "p10 .. p90", "host", "p10 .. p90", "ratio", "runs"
    )?;
    comparisons.iter().try_for_each(|comparison| write_comparison(f, comparison))
}

fn write_figure(f: &mut fmt::Formatter<'_>, figure: &Figure) -> fmt::Result {
    let samples = &figure.samples;
    let target = figure.target.map_or_else(String::new, |target| {
        let statistic =
            if target.percentile == 50.0 { String::new() } else { format!("p{} ", target.percentile) };
        format!("{statistic}≤ {} {}", target.limit, figure.unit)
    });
    let met = figure.is_met().map_or("", |met| if met { "yes" } else { "NO" });
    let line = format!(
        "{:<62} {:>8.2} {:>17} {:>8.2} {:>8.2} {:>5}  {target:<14} {met}",
        format!("{}, {}", figure.name, figure.unit),
        samples.median(),
        samples.spread(2),
        samples.percentile(99.0),
        samples.percentile(100.0),
        samples.count(),
    );
    writeln!(f, "{}", line.trim_end())
}

fn write_comparison(f: &mut fmt::Formatter<'_>, comparison: &Comparison) -> fmt::Result {
    let Comparison { load, guest, host } = comparison;
    writeln!(
        f,
        "{:<6} {:<6} {:>8} {:>9} {:>8.0} {:>17} {:>8.0} {:>17} {:>6.2} {:>5}",
        load.engine,
        load.verb(),
        format!("{} KiB", load.request_kib),
        load.in_flight,
        guest.median(),
        guest.spread(0),
        host.median(),
        host.spread(0),
        comparison.ratio(),
        guest.count(),
    )
}

impl crate::shared::Report for Report {
    fn to_json(&self) -> Value {
        json!({
            "host": self.host.to_json(),
            "figures": self.figures.iter().map(figure_json).collect::<Vec<_>>(),
            "disk": self.disk.iter().map(comparison_json).collect::<Vec<_>>(),
        })
    }
}

fn figure_json(figure: &Figure) -> Value {
    json!({
        "name": figure.name,
        "unit": figure.unit.to_string(),
        "samples": figure.samples.to_json(),
        "target": figure.target.map(|target| json!({ "percentile": target.percentile, "limit": target.limit })),
        "met": figure.is_met(),
    })
}

fn comparison_json(comparison: &Comparison) -> Value {
    let load = &comparison.load;
    json!({
        "engine": load.engine, "operation": load.verb(), "request_kib": load.request_kib,
        "in_flight": load.in_flight, "unit": "MiB/s", "guest": comparison.guest.to_json(),
        "host": comparison.host.to_json(), "ratio": comparison.ratio(),
    })
}
