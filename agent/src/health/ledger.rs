//! The ledger: what became of every event, from the hook to the acknowledgement.
//!
//! `attempted = filtered + rate_limited + ring_full + malformed +
//! queue_dropped + export_rejected + delivered + in_flight`

use agent_common::KernelLedger;
use std::{
    fmt::Write as _,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

/// The counters of one kind of record, written from any thread.
#[derive(Debug, Default)]
pub struct Ledger {
    name: String,
    attempted: AtomicU64,
    filtered: AtomicU64,
    rate_limited: AtomicU64,
    malformed: AtomicU64,
    queue_dropped: AtomicU64,
    export_rejected: AtomicU64,
    delivered: AtomicU64,
    /// What the kernel side has counted: attempted, filtered, rate-limited, ring full.
    kernel: [AtomicU64; 4],
}

/// One reading of a [`Ledger`], in records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// What is counted: `process events`.
    pub name: String,
    /// Seen by a hook, or made by the agent.
    pub attempted: u64,
    /// Excluded by configuration, or the agent's own.
    pub filtered: u64,
    /// Over the configured rate.
    pub rate_limited: u64,
    /// No space in the ring.
    pub ring_full: u64,
    /// Not what the decoder expects.
    pub malformed: u64,
    /// No space in the export queue, or not sent before the end.
    pub queue_dropped: u64,
    /// Refused by the receiver.
    pub export_rejected: u64,
    /// Acknowledged by the receiver, or written.
    pub delivered: u64,
}

impl Reading {
    /// The outcomes that have been counted, as (name, records).
    #[must_use]
    pub fn outcomes(&self) -> [(&'static str, u64); 8] {
        [
            ("filtered", self.filtered),
            ("rate_limited", self.rate_limited),
            ("ring_full", self.ring_full),
            ("malformed", self.malformed),
            ("queue_dropped", self.queue_dropped),
            ("export_rejected", self.export_rejected),
            ("delivered", self.delivered),
            ("in_flight", self.in_flight()),
        ]
    }

    /// On the way: neither delivered nor lost yet.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        let settled = self.filtered
            + self.rate_limited
            + self.ring_full
            + self.malformed
            + self.queue_dropped
            + self.export_rejected
            + self.delivered;
        self.attempted.saturating_sub(settled)
    }

    /// Records that were wanted and did not arrive.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.ring_full + self.malformed + self.queue_dropped + self.export_rejected
    }
}

impl Ledger {
    /// A ledger of nothing yet.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    /// Takes over what the kernel side has counted up to now.
    pub fn set_kernel(&self, kernel: &KernelLedger) {
        let counts = [kernel.attempted, kernel.filtered, kernel.rate_limited, kernel.ring_full];
        for (counter, count) in self.kernel.iter().zip(counts) {
            counter.store(count, Relaxed);
        }
    }

    /// Records that the user side made by itself.
    pub fn attempted(&self, records: u64) {
        self.attempted.fetch_add(records, Relaxed);
    }

    /// Records that the user side excluded.
    pub fn filtered(&self, records: u64) {
        self.filtered.fetch_add(records, Relaxed);
    }

    /// Records over the rate, counted by the user side.
    pub fn rate_limited(&self, records: u64) {
        self.rate_limited.fetch_add(records, Relaxed);
    }

    /// Bytes that were no record.
    pub fn malformed(&self, records: u64) {
        self.malformed.fetch_add(records, Relaxed);
    }

    /// Dropped before they were sent.
    pub fn queue_dropped(&self, records: u64) {
        self.queue_dropped.fetch_add(records, Relaxed);
    }

    /// Refused by the receiver.
    pub fn export_rejected(&self, records: u64) {
        self.export_rejected.fetch_add(records, Relaxed);
    }

    /// Acknowledged.
    pub fn delivered(&self, records: u64) {
        self.delivered.fetch_add(records, Relaxed);
    }

    /// The counters now.
    #[must_use]
    pub fn read(&self) -> Reading {
        // `attempted` last: what settles in between is not more than was attempted.
        let kernel = |counter: usize| self.kernel[counter].load(Relaxed);
        Reading {
            name: self.name.clone(),
            filtered: self.filtered.load(Relaxed) + kernel(1),
            rate_limited: self.rate_limited.load(Relaxed) + kernel(2),
            ring_full: kernel(3),
            malformed: self.malformed.load(Relaxed),
            queue_dropped: self.queue_dropped.load(Relaxed),
            export_rejected: self.export_rejected.load(Relaxed),
            delivered: self.delivered.load(Relaxed),
            attempted: self.attempted.load(Relaxed) + kernel(0),
        }
    }
}

/// The readings as a table of aligned columns, a line each and a heading.
#[must_use]
pub fn table(readings: &[Reading]) -> String {
    let mut out = String::new();
    for (line, reading) in std::iter::once(None).chain(readings.iter().map(Some)).enumerate() {
        let name = reading.map_or("ledger", |r| r.name.as_str());
        let _ = write!(out, "{}{name:<16}", if line == 0 { "" } else { "\n" });
        let attempted = reading.map_or_else(|| "attempted".to_owned(), |r| r.attempted.to_string());
        let _ = write!(out, " {attempted:>10} =");
        for (outcome, records) in reading.cloned().unwrap_or_default().outcomes() {
            let cell = reading.map_or_else(|| outcome.to_owned(), |_| records.to_string());
            let _ = write!(out, " {cell:>width$}", width = outcome.len().max(7));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_settled_is_in_flight() {
        let ledger = Ledger::new("process events");
        ledger.set_kernel(&KernelLedger {
            attempted: 100,
            filtered: 10,
            rate_limited: 5,
            ring_full: 1,
            sent: 84,
            ..KernelLedger::default()
        });
        ledger.malformed(1);
        ledger.queue_dropped(2);
        ledger.export_rejected(3);
        ledger.delivered(70);
        let reading = ledger.read();
        assert_eq!(reading.in_flight(), 8);
        assert_eq!(reading.outcomes().iter().map(|(_, n)| n).sum::<u64>(), reading.attempted);
        assert_eq!(reading.lost(), 7);
    }

    #[test]
    fn the_table_aligns_its_columns() {
        let text =
            table(&[Reading { name: "process events".into(), attempted: 12, delivered: 12, ..Reading::default() }]);
        let widths: Vec<usize> = text.lines().map(str::len).collect();
        assert_eq!(widths[0], widths[1], "{text}");
    }
}
