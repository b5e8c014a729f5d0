//! Log events: `opentelemetry.proto.logs.v1.LogRecord`.

use super::{Attributes, SpanContext, wire};

/// `SEVERITY_NUMBER_INFO`
const INFO: u64 = 9;

/// What a log event has besides its attributes.
#[derive(Clone, Copy, Debug)]
pub struct LogEvent<'a> {
    /// `event_name`
    pub name: &'a str,
    /// When it happened, Unix ns.
    pub time: u64,
    /// When the agent saw it, Unix ns.
    pub observed: u64,
    /// The span it belongs to.
    pub span: SpanContext,
}

/// Appends one `log_records` entry of a `ScopeLogs`.
#[inline]
pub fn write(out: &mut Vec<u8>, event: &LogEvent<'_>, attributes: impl FnOnce(&mut Attributes<'_>)) {
    wire::message(out, 2, |out| {
        wire::fixed64(out, 1, event.time);
        wire::integer(out, 2, INFO);
        wire::bytes(out, 3, b"INFO");
        attributes(&mut Attributes { out, field: 6 });
        if event.span.span_id != 0 {
            wire::bytes(out, 9, &event.span.trace_id.to_be_bytes());
            wire::bytes(out, 10, &event.span.span_id.to_be_bytes());
        }
        wire::fixed64(out, 11, event.observed);
        wire::bytes(out, 12, event.name.as_bytes());
    });
}
