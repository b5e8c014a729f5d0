//! What the guests have told, as tables for docs/kernels.md.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::Boot;

/// Where the tables stand in the document: what is between is written anew.
const BEGIN: &str = "<!-- written by `cargo xtask test kernels` -->";
const END: &str = "<!-- end -->";

/// Writes the tables into the document.
///
/// # Errors
/// If the document cannot be read or written, or has no place for them.
pub fn write(document: &Path, tables: &str) -> Result<()> {
    let (head, _, tail) = &parts(document)?;
    fs::write(document, format!("{head}{BEGIN}\n\n{tables}\n{END}{tail}"))
        .with_context(|| format!("cannot write {}", document.display()))
}

/// Rows of the document's tables, but for costs and the kernels' exact versions, that are not those of `tables`.
///
/// # Errors
/// As [`write`].
pub fn differences(document: &Path, tables: &str) -> Result<Vec<String>> {
    let (_, before, _) = parts(document)?;
    let (before, now) = (rows(&before), rows(tables));
    Ok(now.symmetric_difference(&before).map(|row| row.join(" | ")).collect())
}

/// What is before, between and after the marks.
fn parts(document: &Path) -> Result<(String, String, String)> {
    let text = fs::read_to_string(document).with_context(|| format!("cannot read {}", document.display()))?;
    let (head, rest) = text.split_once(BEGIN).with_context(|| format!("no {BEGIN} in {}", document.display()))?;
    let (between, tail) = rest.split_once(END).with_context(|| format!("no {END} in {}", document.display()))?;
    Ok((head.to_owned(), between.to_owned(), tail.to_owned()))
}

/// The cells of all rows up to the costs, without heads and lines.
fn rows(tables: &str) -> BTreeSet<Vec<String>> {
    let upto = tables.split("### Cost").next().unwrap_or_default();
    let lines: Vec<&str> = upto.lines().collect();
    let cells = |line: &str| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
    let is_row = |number: usize| {
        let is_line = |line: Option<&&str>| line.is_some_and(|line| line.starts_with("| -") || line.starts_with("|--"));
        lines[number].starts_with('|') && !is_line(lines.get(number)) && !is_line(lines.get(number + 1))
    };
    (0..lines.len()).filter(|number| is_row(*number)).map(|number| cells(lines[number])).collect()
}

/// The tables: rungs, poor machines, costs. And what is missing in them, or was not understood.
pub fn tables(boots: &[Boot]) -> (String, Vec<String>) {
    let mut holes = Vec::new();
    let mut kernels: Vec<(&str, &str)> = Vec::new();
    for boot in boots {
        if !kernels.iter().any(|(name, _)| *name == boot.kernel) {
            kernels.push((boot.kernel, &boot.release));
        }
    }
    let [mut rungs, mut poor, mut kept, mut costs] = [(); 4].map(|()| Grid::default());
    let mut causes: BTreeSet<String> = BTreeSet::new();
    for boot in boots {
        for line in &boot.lines {
            let words: Vec<&str> = line.iter().map(String::as_str).collect();
            match words.as_slice() {
                ["cell", room, rung, outcome, more] if boot.is_plain => {
                    let cell = match (*outcome, *rung) {
                        ("holds", "auto") => (*more).to_owned(),
                        ("holds", _) => "yes".to_owned(),
                        _ => {
                            causes.insert(format!("- {room} by {rung} on {}: {more}", boot.release));
                            "no".to_owned()
                        }
                    };
                    rungs.set(&[room, rung], boot.kernel, cell);
                }
                ["cell", room, "auto", "holds", rung] => poor.set(&[&boot.machine, room], boot.kernel, (*rung).into()),
                ["poor", what, room, rung] => poor.set(&[what, room], boot.kernel, (*rung).into()),
                ["kept", capabilities] => kept.set(&["capabilities"], boot.kernel, (*capabilities).into()),
                ["cost", program, instructions, states, "taken"] => {
                    costs.set(&[program], boot.kernel, format!("{instructions} / {states}"));
                }
                ["cost", program, ..] => costs.set(&[program], boot.kernel, "refused".into()),
                // Of a poor machine only what it takes by itself.
                ["cell", ..] => {}
                other => holes.push(format!("{} has told {other:?}", boot.release)),
            }
        }
    }
    for grid in [&rungs, &poor, &kept] {
        holes.extend(grid.holes(&kernels));
    }
    let mut out = String::from("### Rungs\n\n");
    out += &rungs.table(&["room", "rung"], &kernels);
    if !causes.is_empty() {
        out += "\nWhy not, as `agent doctor` says:\n\n";
        causes.iter().for_each(|cause| out += &format!("{cause}\n"));
    }
    out += "\n### Poor machines\n\nThe rung that each room takes there:\n\n";
    out += &poor.table(&["where", "room"], &kernels);
    out +=
        "\n### Cost of verification\n\nInstructions processed / peak states. The limit is 1,000,000 instructions.\n\n";
    out += &costs.table(&["program"], &kernels);
    (out, holes)
}

/// Rows in the order in which they came, by kernel.
#[derive(Default)]
struct Grid {
    rows: Vec<Vec<String>>,
    cells: BTreeMap<(Vec<String>, String), String>,
}

impl Grid {
    fn set(&mut self, row: &[&str], kernel: &str, cell: String) {
        let row: Vec<String> = row.iter().map(|&word| word.to_owned()).collect();
        if !self.rows.contains(&row) {
            self.rows.push(row.clone());
        }
        self.cells.insert((row, kernel.to_owned()), cell);
    }

    /// Cells that no guest has told.
    fn holes(&self, kernels: &[(&str, &str)]) -> Vec<String> {
        let missing = |row: &Vec<String>| {
            let missing =
                kernels.iter().filter(|(kernel, _)| !self.cells.contains_key(&(row.clone(), (*kernel).to_owned())));
            missing
                .map(|(_, release)| format!("nothing is told of {} on {release}", row.join(", ")))
                .collect::<Vec<_>>()
        };
        self.rows.iter().flat_map(missing).collect()
    }

    fn table(&self, heads: &[&str], kernels: &[(&str, &str)]) -> String {
        let head =
            heads.iter().chain(kernels.iter().map(|(_, release)| release)).map(|&word| word.to_owned()).collect();
        let rows = self.rows.iter().map(|row| {
            let cells = kernels.iter().map(|(kernel, _)| {
                self.cells.get(&(row.clone(), (*kernel).to_owned())).cloned().unwrap_or_else(|| "–".into())
            });
            row.iter().cloned().chain(cells).collect()
        });
        markdown(&[vec![head], rows.collect()].concat())
    }
}

/// A table whose first row is its head.
fn markdown(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = String>| {
        let cells: Vec<String> = cells.zip(&widths).map(|(cell, &width)| format!(" {cell:<width$} ")).collect();
        format!("|{}|\n", cells.join("|"))
    };
    let mut out = String::new();
    for (number, row) in rows.iter().enumerate() {
        out += &line(&mut row.iter().cloned());
        if number == 0 {
            out += &line(&mut widths.iter().map(|&width| "-".repeat(width)));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn boot(kernel: &'static str, machine: &str, is_plain: bool, lines: &[&str]) -> Boot {
        let lines = lines.iter().map(|line| line.split(' ').map(str::to_owned).collect()).collect();
        Boot { kernel, release: format!("{kernel}.0-1"), machine: machine.into(), is_plain, lines }
    }

    #[test]
    fn what_guests_tell_is_sorted_into_tables() {
        let boots = [
            boot(
                "5.10",
                "plain",
                true,
                &["cell network tp_btf refused why", "cell network auto holds raw_tp", "cost state_btf 15 1 refused"],
            ),
            boot("6.1", "plain", true, &["cell network tp_btf holds tp_btf", "cost state_btf 7805 392 taken"]),
            boot("6.1", "one CPU", false, &["cell network auto holds tp_btf"]),
        ];
        let (text, holes) = tables(&boots);
        for line in [
            "| room    | rung   | 5.10.0-1 | 6.1.0-1 |",
            "| network | tp_btf | no       | yes     |",
            "| network | auto   | raw_tp   | –       |",
            "- network by tp_btf on 5.10.0-1: why",
            "| one CPU | network | –        | tp_btf  |",
            "| state_btf | refused  | 7805 / 392 |",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
        let told: Vec<&str> = holes.iter().map(String::as_str).collect();
        assert_eq!(
            told,
            ["nothing is told of network, auto on 6.1.0-1", "nothing is told of one CPU, network on 5.10.0-1"]
        );
        let (_, holes) = tables(&[boot("6.1", "plain", true, &["what is this"])]);
        assert_eq!(holes.len(), 1, "{holes:?}");
    }

    #[test]
    fn only_what_is_between_the_marks_is_written_anew() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("kernels.md");
        fs::write(&path, format!("before\n{BEGIN}\nold\n{END}\nafter\n")).expect("a file");
        let (tables, _) = tables(&[boot("6.1", "plain", true, &["cell network tp_btf holds tp_btf"])]);
        assert_eq!(differences(&path, &tables).expect("readable"), ["network | tp_btf | yes"]);
        write(&path, &tables).expect("written");
        assert_eq!(differences(&path, &tables).expect("readable"), [""; 0]);
        let text = fs::read_to_string(&path).expect("a file");
        assert!(text.starts_with("before\n") && text.ends_with(&format!("{END}\nafter\n")), "{text}");
        assert!(!text.contains("old") && text.contains("### Rungs"), "{text}");
        fs::write(&path, "no marks").expect("a file");
        assert!(write(&path, "").is_err());
    }
}
