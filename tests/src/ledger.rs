//! The ledger that the agent prints when it ends.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

/// What the table of the ledger says of a kind of record.
#[derive(Debug, PartialEq, Eq)]
pub struct Line {
    /// Seen, or made.
    pub attempted: u64,
    /// How many of them by what became of them.
    pub outcomes: BTreeMap<String, u64>,
}

impl Line {
    /// Reads the line of `what` (`process events`) from standard error.
    ///
    /// # Errors
    /// If there is no ledger, or no such line in it.
    pub fn of(stderr: &str, what: &str) -> Result<Self> {
        let find = |start: &str| stderr.lines().find(|line| line.starts_with(start));
        let heading = find("ledger").with_context(|| format!("no ledger in: {stderr}"))?;
        let line = find(what).with_context(|| format!("no {what:?} in: {stderr}"))?;
        let (_, names) = heading.split_once('=').context("no columns")?;
        let (attempted, numbers) = line.split_once('=').context("no columns")?;
        Ok(Self {
            attempted: attempted.replace(what, "").trim().parse()?,
            outcomes: names
                .split_whitespace()
                .zip(numbers.split_whitespace())
                .map(|(name, number)| Ok((name.to_owned(), number.parse()?)))
                .collect::<Result<_>>()?,
        })
    }

    /// How many ended so.
    ///
    /// # Panics
    /// If the ledger has no such column.
    #[must_use]
    pub fn outcome(&self, name: &str) -> u64 {
        self.outcomes.get(name).copied().unwrap_or_else(|| panic!("no {name} in {self:?}"))
    }

    /// How many did not arrive, though they were wanted.
    ///
    /// # Panics
    /// If the columns are no sum of what was attempted.
    #[must_use]
    pub fn undelivered(&self) -> u64 {
        assert_eq!(self.outcomes.values().sum::<u64>(), self.attempted, "{self:?}");
        self.attempted - self.outcome("delivered") - self.outcome("filtered")
    }

    /// Everything attempted arrived, or was not wanted.
    ///
    /// # Panics
    /// If that is not so.
    pub fn assert_all_delivered(&self) {
        assert_eq!(self.undelivered(), 0, "{self:?}");
    }
}
