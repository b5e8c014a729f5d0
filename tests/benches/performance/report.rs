//! The results: a row each, with its goal and what peers need for the same.

use std::fs;

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// All rows so far.
#[derive(Default)]
pub struct Report {
    rows: Vec<Row>,
}

/// Which values meet a goal.
#[derive(Clone, Copy)]
pub enum Goal {
    /// This or less.
    AtMost(f64),
    /// This or more.
    AtLeast(f64),
    /// Only for comparison.
    None,
}

struct Row {
    what: String,
    unit: &'static str,
    ours: f64,
    goal: Goal,
    peers: Vec<(String, f64)>,
}

impl Report {
    /// Adds a result.
    pub fn add(&mut self, what: impl Into<String>, unit: &'static str, ours: f64, goal: Goal, peers: &[(&str, f64)]) {
        let peers = peers.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
        self.rows.push(Row { what: what.into(), unit, ours, goal, peers });
    }

    /// As a Markdown table.
    pub fn table(&self) -> String {
        let mut lines = vec![["what", "leaf", "goal", "met", "peers"].map(str::to_owned).to_vec()];
        for row in &self.rows {
            let value = |value: f64| format!("{} {}", rounded(value), row.unit).trim().to_owned();
            let peers: Vec<_> = row.peers.iter().map(|(name, figure)| format!("{name} {}", value(*figure))).collect();
            let met = match row.met() {
                Some(true) => "yes",
                Some(false) => "no",
                None => "",
            };
            let goal = match row.goal {
                Goal::AtMost(most) => format!("≤ {}", value(most)),
                Goal::AtLeast(least) => format!("≥ {}", value(least)),
                Goal::None => String::new(),
            };
            lines.push(vec![row.what.clone(), value(row.ours), goal, met.into(), peers.join(", ")]);
        }
        let widths: Vec<usize> =
            (0..5).map(|i| lines.iter().map(|line| line[i].chars().count()).max().unwrap_or(0)).collect();
        let print = |cells: &[String]| {
            let cells: Vec<_> = cells.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}")).collect();
            format!("| {} |", cells.join(" | "))
        };
        let rule: Vec<_> = widths.iter().map(|&width| "-".repeat(width)).collect();
        let mut table = vec![print(&lines[0]), print(&rule)];
        table.extend(lines[1..].iter().map(|line| print(line)));
        table.join("\n")
    }

    /// Writes the rows where `LEAF_BENCH_FILE` says, if it does.
    pub fn write_json(&self) -> Result<()> {
        let Some(path) = std::env::var_os("LEAF_BENCH_FILE") else {
            return Ok(());
        };
        let rows: Vec<Value> = self.rows.iter().map(Row::json).collect();
        fs::write(&path, format!("{:#}\n", json!({ "results": rows })))
            .with_context(|| format!("failed to write {}", path.display()))
    }
}

impl Row {
    fn met(&self) -> Option<bool> {
        match self.goal {
            Goal::AtMost(most) => Some(self.ours <= most),
            Goal::AtLeast(least) => Some(self.ours >= least),
            Goal::None => None,
        }
    }

    fn json(&self) -> Value {
        let peers: serde_json::Map<String, Value> =
            self.peers.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
        let goal = match self.goal {
            Goal::AtMost(most) => json!({ "at_most": most }),
            Goal::AtLeast(least) => json!({ "at_least": least }),
            Goal::None => Value::Null,
        };
        json!({ "what": self.what, "unit": self.unit, "leaf": self.ours, "goal": goal, "met": self.met(), "peers": peers })
    }
}

/// Three digits that matter.
fn rounded(value: f64) -> String {
    match value.abs() {
        large if large >= 100.0 || large == 0.0 => format!("{value:.0}"),
        medium if medium >= 10.0 => format!("{value:.1}"),
        medium if medium >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// The middle value.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => values[odd / 2],
        even => f64::midpoint(values[even / 2 - 1], values[even / 2]),
    }
}
