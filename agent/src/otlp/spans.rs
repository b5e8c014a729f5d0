//! Spans: `opentelemetry.proto.trace.v1.Span`.

use super::{Attributes, SpanContext, wire};

/// `Span.SpanKind`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Work inside the node.
    Internal = 1,
    /// The accepting end of a connection.
    Server = 2,
    /// The connecting end of a connection.
    Client = 3,
}

/// What a span has besides its attributes.
#[derive(Clone, Copy, Debug)]
pub struct Span<'a> {
    /// Its own place.
    pub context: SpanContext,
    /// Span id of its parent, 0 for a root.
    pub parent: u64,
    /// What it is called.
    pub name: &'a str,
    /// Its role.
    pub kind: Kind,
    /// Unix ns.
    pub start: u64,
    /// Unix ns.
    pub end: u64,
    /// Why it failed, if it did: the status is then an error.
    pub error: Option<&'a str>,
    /// Another span that it belongs together with.
    pub link: Option<SpanContext>,
}

/// Appends one `spans` entry of a `ScopeSpans`.
#[inline]
pub fn write(out: &mut Vec<u8>, span: &Span<'_>, attributes: impl FnOnce(&mut Attributes<'_>)) {
    /// `Status.StatusCode.STATUS_CODE_ERROR`
    const ERROR: u64 = 2;
    wire::message(out, 2, |out| {
        wire::bytes(out, 1, &span.context.trace_id.to_be_bytes());
        wire::bytes(out, 2, &span.context.span_id.to_be_bytes());
        if span.parent != 0 {
            wire::bytes(out, 4, &span.parent.to_be_bytes());
        }
        wire::bytes(out, 5, span.name.as_bytes());
        wire::integer(out, 6, span.kind as u64);
        wire::fixed64(out, 7, span.start);
        wire::fixed64(out, 8, span.end);
        attributes(&mut Attributes { out, field: 9 });
        if let Some(link) = span.link {
            wire::len_prefix(out, 13, 18 + 10);
            wire::bytes(out, 1, &link.trace_id.to_be_bytes());
            wire::bytes(out, 2, &link.span_id.to_be_bytes());
        }
        if let Some(reason) = span.error {
            // Its length is known: nothing needs to be moved.
            let code = 2;
            wire::len_prefix(out, 15, 1 + wire::varint_len(reason.len() as u64) + reason.len() + code);
            wire::bytes(out, 2, reason.as_bytes());
            wire::integer(out, 3, ERROR);
        }
    });
}
