//! An open batch: records are appended as protobuf, and the resource and scope
//! are put before them when it is closed, without a copy.

use super::{
    Signal,
    resource::{Resource, Scope},
    wire,
};
use crate::health::ledger::Ledger;
use bytes::Bytes;
use std::{sync::Arc, time::Instant};

/// A closed batch: one export request. Its records are counted when it is
/// settled; dropping it before is what `queue_dropped` means.
#[derive(Debug)]
pub struct Block {
    /// What the bytes are.
    pub signal: Signal,
    /// An `Export…ServiceRequest`.
    pub bytes: Bytes,
    records: u64,
    ledger: Arc<Ledger>,
}

impl Block {
    /// A request of `records` log records, spans or data points.
    #[must_use]
    pub fn new(signal: Signal, bytes: Bytes, records: u64, ledger: Arc<Ledger>) -> Self {
        Self { signal, bytes, records, ledger }
    }

    /// Where it comes from.
    #[must_use]
    pub fn source(&self) -> Source {
        Source { signal: self.signal, ledger: Arc::clone(&self.ledger) }
    }

    /// Log records, spans or data points in it.
    #[must_use]
    pub fn records(&self) -> u64 {
        self.records
    }

    /// The receiver has answered: it took all but `rejected`.
    pub fn settle(mut self, rejected: u64) {
        let records = std::mem::take(&mut self.records);
        let rejected = rejected.min(records);
        self.ledger.export_rejected(rejected);
        self.ledger.delivered(records - rejected);
    }
}

/// A signal of a room, whose batches keep their order.
#[derive(Clone, Debug)]
pub struct Source {
    signal: Signal,
    ledger: Arc<Ledger>,
}

impl PartialEq for Source {
    fn eq(&self, other: &Self) -> bool {
        self.signal == other.signal && Arc::ptr_eq(&self.ledger, &other.ledger)
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.ledger.queue_dropped(self.records);
    }
}

/// Records of one signal of one room that wait to be sent.
pub struct Batch {
    signal: Signal,
    /// `Resource` message with tag and length, inside `ResourceLogs` or `ResourceSpans`.
    resource: Vec<u8>,
    /// `InstrumentationScope` with tag and length.
    scope: Vec<u8>,
    /// `headroom` free bytes, then the records.
    buffer: Vec<u8>,
    headroom: usize,
    records: u64,
    opened: Option<Instant>,
    max_bytes: usize,
    ledger: Arc<Ledger>,
}

impl Batch {
    /// A batch that is due at `max_bytes` of records.
    #[must_use]
    pub fn new(signal: Signal, resource: &Resource, scope: &Scope, max_bytes: usize, ledger: Arc<Ledger>) -> Self {
        let field = |body: Vec<u8>| {
            let mut out = Vec::with_capacity(body.len() + 6);
            wire::bytes(&mut out, 1, &body);
            out
        };
        let (resource, scope) = (field(resource.encode()), field(scope.encode()));
        // Two tags of a byte and two lengths of ten at most.
        let headroom = resource.len() + scope.len() + 22;
        let mut batch =
            Self { signal, resource, scope, buffer: Vec::new(), headroom, records: 0, opened: None, max_bytes, ledger };
        batch.reset();
        batch
    }

    fn reset(&mut self) {
        // Room for a last record past the limit, so that the buffer is not grown.
        self.buffer = Vec::with_capacity(self.headroom + self.max_bytes + 4096);
        self.buffer.resize(self.headroom, 0);
        self.records = 0;
        self.opened = None;
    }

    /// Appends a record: `write` adds it to the buffer. `now` is noted for the batch's age.
    #[inline]
    pub fn push(&mut self, now: Instant, write: impl FnOnce(&mut Vec<u8>)) {
        write(&mut self.buffer);
        self.records += 1;
        if self.opened.is_none() {
            self.opened = Some(now);
        }
    }

    /// Whether it holds `max_bytes`.
    #[inline]
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.buffer.len() >= self.headroom + self.max_bytes
    }

    /// When its first record came.
    #[must_use]
    pub fn opened(&self) -> Option<Instant> {
        self.opened
    }

    /// Where its records are counted.
    #[must_use]
    pub fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }

    /// Closes the batch and opens a new one; `None` if it is empty.
    pub fn take(&mut self) -> Option<Block> {
        if self.records == 0 {
            return None;
        }
        // Request { 1: ResourceX { 1: Resource, 2: ScopeX { 1: Scope, 2: record … } } }
        let scope_len = self.scope.len() + self.buffer.len() - self.headroom;
        let mut scope_prefix = Vec::with_capacity(11);
        wire::len_prefix(&mut scope_prefix, 2, scope_len);
        let mut prefix = Vec::with_capacity(self.headroom);
        wire::len_prefix(&mut prefix, 1, self.resource.len() + scope_prefix.len() + scope_len);
        prefix.extend_from_slice(&self.resource);
        prefix.extend_from_slice(&scope_prefix);
        prefix.extend_from_slice(&self.scope);
        let start = self.headroom - prefix.len();
        self.buffer[start..self.headroom].copy_from_slice(&prefix);
        let records = self.records;
        let buffer = std::mem::take(&mut self.buffer);
        self.reset();
        let bytes = Bytes::from(buffer).slice(start..);
        Some(Block::new(self.signal, bytes, records, Arc::clone(&self.ledger)))
    }
}
