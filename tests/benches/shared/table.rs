//! A report of sections, each a table of rows: for people, and the same for programs.

use std::fmt;

use serde_json::{Value, json};

use crate::host::Host;
use crate::row::{Beside, Figures, Promise, Row};

/// The rows of one part.
pub(crate) struct Section {
    pub(crate) title: String,
    pub(crate) rows: Vec<Row>,
}

/// All that was measured.
pub(crate) struct Report {
    pub(crate) host: Host,
    pub(crate) sections: Vec<Section>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.host)?;
        self.sections.iter().try_for_each(|section| write_section(f, section))
    }
}

fn write_section(f: &mut fmt::Formatter<'_>, section: &Section) -> fmt::Result {
    writeln!(f, "{}", section.title)?;
    writeln!(
        f,
        "{:<52} {:>9} {:>19}  {:<27} {:>9} {:>19}  {:>6} {:>15} {:>4}  {:<8} kept",
        "",
        "median",
        "p10 .. p90",
        "beside",
        "median",
        "p10 .. p90",
        "ratio",
        "p10 .. p90",
        "runs",
        "promise"
    )?;
    section.rows.iter().try_for_each(|row| write_row(f, row))?;
    writeln!(f)
}

fn write_row(f: &mut fmt::Formatter<'_>, row: &Row) -> fmt::Result {
    match &row.figures {
        Ok(figures) => write_figures(f, &row.name, figures),
        Err(reason) => writeln!(f, "{}: not measured, for {reason}", row.name),
    }
}

fn write_figures(f: &mut fmt::Formatter<'_>, name: &str, figures: &Figures) -> fmt::Result {
    let digits = figures.unit.digits();
    let promise = match figures.promise {
        None => String::new(),
        Some(Promise::AtMost(limit)) => format!("≤ {limit}"),
        Some(Promise::AtLeast(limit)) => format!("≥ {limit}"),
    };
    let kept = figures.is_kept().map_or("", |kept| if kept { "yes" } else { "NO" });
    let line = format!(
        "{:<52} {:>9.digits$} {:>19}  {} {:>4}  {promise:<8} {kept}",
        format!("{name}, {}", figures.unit.name()),
        figures.samples.median(),
        figures.samples.spread(digits),
        beside_text(figures.beside.as_ref(), digits),
        figures.samples.count(),
    );
    writeln!(f, "{}", line.trim_end())
}

fn beside_text(beside: Option<&Beside>, digits: usize) -> String {
    let Some(Beside { name, samples, ratios }) = beside else { return format!("{:81}", "") };
    format!(
        "{name:<27} {:>9.digits$} {:>19}  {:>6.2} {:>15}",
        samples.median(),
        samples.spread(digits),
        ratios.median(),
        ratios.spread(2),
    )
}

impl crate::shared::Report for Report {
    fn to_json(&self) -> Value {
        let sections = self.sections.iter().map(|section| {
            json!({ "title": section.title, "rows": section.rows.iter().map(row_json).collect::<Vec<_>>() })
        });
        json!({ "host": self.host.to_json(), "sections": sections.collect::<Vec<_>>() })
    }
}

fn row_json(row: &Row) -> Value {
    match &row.figures {
        Ok(figures) => figures_json(&row.name, figures),
        Err(reason) => json!({ "name": row.name, "not_measured": reason }),
    }
}

fn figures_json(name: &str, figures: &Figures) -> Value {
    let promise = figures.promise.map(|promise| match promise {
        Promise::AtMost(limit) => json!({ "at_most": limit }),
        Promise::AtLeast(limit) => json!({ "at_least": limit }),
    });
    let beside = figures.beside.as_ref().map(|beside| {
        json!({
            "name": beside.name, "samples": beside.samples.to_json(), "ratios": beside.ratios.to_json(),
        })
    });
    json!({
        "name": name, "unit": figures.unit.name(), "samples": figures.samples.to_json(), "beside": beside,
        "promise": promise, "value": figures.value(), "kept": figures.is_kept(),
    })
}
