//! Contests: several things measured in turn, so that what disturbs the machine disturbs all.

use std::fmt;

use anyhow::{Context as _, Result};
use comfy_table::{CellAlignment, Table as Text, presets::NOTHING};
use serde::Serialize;

/// What a number counts.
#[derive(Clone, Copy, Serialize)]
pub enum Unit {
    Nanoseconds,
    Milliseconds,
    PerSecond,
}

/// Something to be measured, again and again.
pub struct Contender<'a> {
    name: String,
    sample: Box<dyn FnMut() -> Result<f64> + 'a>,
}

impl<'a> Contender<'a> {
    pub fn new(name: impl Into<String>, sample: impl FnMut() -> Result<f64> + 'a) -> Self {
        Self {
            name: name.into(),
            sample: Box::new(sample),
        }
    }
}

/// What came of a contest.
#[derive(Serialize)]
pub struct Table {
    pub title: String,
    pub unit: Unit,
    pub lines: Vec<Line>,
}

#[derive(Serialize)]
pub struct Line {
    pub name: String,
    pub median: f64,
    /// A tenth of the samples are below, a tenth above.
    pub low: f64,
    pub high: f64,
    pub samples: usize,
    /// The median less that of the first line, and as a multiple of it.
    pub above_floor: f64,
    pub of_floor: f64,
}

/// Measures every contender `rounds` times, forwards and backwards in turn, after one round that
/// does not count. The first is the floor.
pub fn contest(
    title: &str,
    unit: Unit,
    rounds: usize,
    mut contenders: Vec<Contender<'_>>,
) -> Result<Table> {
    let mut samples = vec![Vec::with_capacity(rounds); contenders.len()];
    for round in 0..=rounds {
        let mut order: Vec<usize> = (0..contenders.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for at in order {
            let Contender { name, sample } = &mut contenders[at];
            let value = sample().with_context(|| name.clone())?;
            if round > 0 {
                samples[at].push(value);
            }
        }
    }
    let names = contenders.into_iter().map(|contender| contender.name);
    Ok(table(title, unit, names.zip(samples)))
}

/// Sums samples up, the first line's being the floor.
pub fn table(
    title: &str,
    unit: Unit,
    measured: impl IntoIterator<Item = (String, Vec<f64>)>,
) -> Table {
    let mut lines: Vec<Line> = Vec::new();
    for (name, mut samples) in measured {
        samples.sort_by(f64::total_cmp);
        let median = quantile(&samples, 5);
        let floor = lines.first().map_or(median, |line| line.median);
        lines.push(Line {
            name,
            median,
            low: quantile(&samples, 1),
            high: quantile(&samples, 9),
            samples: samples.len(),
            above_floor: median - floor,
            of_floor: median / floor,
        });
    }
    Table {
        title: title.to_owned(),
        unit,
        lines,
    }
}

/// The value that so many tenths of the sorted samples are below.
fn quantile(samples: &[f64], tenths: usize) -> f64 {
    let last = samples.len().saturating_sub(1);
    samples.get(last * tenths / 10).copied().unwrap_or(f64::NAN)
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { title, unit, lines } = self;
        let (name, digits) = match unit {
            Unit::Nanoseconds => ("ns", 0),
            Unit::Milliseconds => ("ms", 1),
            Unit::PerSecond => ("per second", 0),
        };
        let mut text = Text::new();
        text.load_style(NOTHING);
        let spread = format!(
            "10–90 % of {}",
            lines.first().map_or(0, |line| line.samples)
        );
        text.set_header(vec!["", name, &spread, "above the first", "of the first"]);
        for line in lines {
            text.add_row(vec![
                line.name.clone(),
                format!("{:.digits$}", line.median),
                format!("{:.digits$}–{:.digits$}", line.low, line.high),
                format!("{:+.digits$}", line.above_floor),
                format!("{:.2}", line.of_floor),
            ]);
        }
        for column in text.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        write!(f, "{title}\n{text}")
    }
}
