//! What a command with several parts did, as a table at its end.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How a part ended.
#[derive(Debug, PartialEq)]
pub enum Outcome {
    Passed,
    Failed(String),
    /// With the reason.
    Skipped(String),
}

/// The parts of a command that ran so far.
#[derive(Debug, Default)]
pub struct Report {
    parts: Vec<(&'static str, Outcome, Duration)>,
}

impl Report {
    /// Runs a part. The ones after a failed part run all the same: one call of the
    /// command shall show all that is wrong.
    pub fn part(&mut self, name: &'static str, run: impl FnOnce() -> Result<()>) {
        eprintln!("==> {name}");
        let start = Instant::now();
        let outcome = match run() {
            Ok(()) => Outcome::Passed,
            Err(error) => Outcome::Failed(format!("{error:#}")),
        };
        self.parts.push((name, outcome, start.elapsed()));
    }

    /// Notes a part that does not run.
    pub fn skip(&mut self, name: &'static str, reason: impl Into<String>) {
        let outcome = Outcome::Skipped(reason.into());
        self.parts.push((name, outcome, Duration::ZERO));
    }

    /// Notes something that is wrong though each part passed.
    pub fn fail(&mut self, name: &'static str, reason: impl Into<String>) {
        let outcome = Outcome::Failed(reason.into());
        self.parts.push((name, outcome, Duration::ZERO));
    }

    /// A line per part.
    pub fn table(&self) -> String {
        let width = self.parts.iter().map(|(name, ..)| name.len()).max();
        let width = width.unwrap_or_default();
        let line = |(name, outcome, took): &(&str, Outcome, Duration)| {
            let outcome = match outcome {
                Outcome::Passed => format!("passed   {:.1} s", took.as_secs_f64()),
                Outcome::Failed(reason) => format!("FAILED   {reason}"),
                Outcome::Skipped(reason) => format!("skipped  {reason}"),
            };
            format!("    {name:width$}  {outcome}\n")
        };
        self.parts.iter().map(line).collect()
    }

    /// # Errors
    /// Names the parts that failed.
    pub fn verdict(&self) -> Result<()> {
        let failed: Vec<_> = self
            .parts
            .iter()
            .filter(|(_, outcome, _)| matches!(outcome, Outcome::Failed(_)))
            .map(|(name, ..)| *name)
            .collect();
        if !failed.is_empty() {
            bail!("failed: {}", failed.join(", "));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn a_failed_part_does_not_keep_the_next_from_running() {
        let mut report = Report::default();
        let mut ran = false;
        report.part("first", || Err(anyhow!("why")));
        report.part("second", || {
            ran = true;
            Ok(())
        });
        report.skip("third", "not installed");
        assert!(ran);
        let error = report.verdict().expect_err("one failed").to_string();
        assert_eq!(error, "failed: first");
        let table = report.table();
        assert!(table.contains("    first   FAILED   why\n"), "{table}");
        assert!(table.contains("    second  passed   "), "{table}");
        assert!(table.contains("    third   skipped  not installed\n"), "{table}");
    }

    #[test]
    fn skipped_parts_alone_are_no_failure() {
        let mut report = Report::default();
        report.skip("deny", "not installed");
        assert!(report.verdict().is_ok());
    }
}
